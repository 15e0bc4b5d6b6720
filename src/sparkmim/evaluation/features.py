"""Frozen features of images: a feature map averaged over all positions."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_trained_encoder, with_input
from ..data.clips.opening import open_clips
from ..data.config import DataConfig, Pages, ViewConfig, chosen_files
from ..data.kinds import AXES, Kind, kind_of
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalize, join
from ..data.places import files_outside, shared_files
from ..data.signals.opening import open_signals
from ..data.sources.address import open_source
from ..data.sources.base import ImageSource
from ..data.sources.pages import by_page
from ..data.statistics import input_statistics
from ..data.views import evaluation_view
from ..data.volumes.base import Case
from ..data.volumes.opening import are_volumes, cases_at, open_prepared
from ..data.volumes.preparing import Preparation, PrepareSettings
from ..data.volumes.unprepared import UnpreparedVolumes
from ..models.backbone import Backbone
from ..models.factory import orientation_of, require_image_size
from ..training.config import Device, LoopConfig
from ..utils.devices import pick_device
from ..utils.fields import show, validate_as
from ..utils.io import write_atomically
from ..utils.logging import log
from ..utils.text import counted, printable, verb
from .config import Pooling
from .neighbors import write_neighbors

Stage = int | Sequence[int]
"""Index of a feature map, or those of several, whose features are concatenated."""

MOST_SEEN = 128
"""Voxels of a view along an axis at most, of a network that has learned from no volumes."""


class Features(NamedTuple):
    """Features of the images that could be read.

    Attributes:
        values: float32, on the CPU; with an axis of positions before that of features if they were not pooled.
        indices: index of each row's image in its source.
        broken: index and error of each image that could not be read.
    """

    values: Float[Tensor, "image *position feature"]
    indices: list[int]
    broken: list[tuple[int, str]]


class Embeddings(NamedTuple):
    """Features of the images of a folder.

    Attributes:
        names: path of each row's image, relative to the folder.
        features: `(images, features)`, float32.
        skipped: name and error of each image that could not be read.
    """

    names: list[str]
    features: np.ndarray
    skipped: list[tuple[str, str]]

    def write(self, path: str | Path) -> None:
        """Write an .npz file with the arrays `names` and `features`, or a .parquet file with these columns.

        In a .parquet file, bytes of a name that are not UTF-8 are written as `\\xNN`.

        Raises:
            ValueError: for another suffix.
        """
        path = Path(path)
        if path.suffix not in WRITERS:
            raise ValueError(f"--output {path} must end in .npz or .parquet")
        write_atomically(path, lambda file: WRITERS[path.suffix](file, self.names, self.features))


def _write_npz(file: BinaryIO, names: list[str], features: np.ndarray) -> None:
    np.savez(file, names=np.array(names), features=features)


def _write_parquet(file: BinaryIO, names: list[str], features: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    texts = [os.fsencode(name).decode(errors="backslashreplace") for name in names]  # the format's texts are UTF-8
    pyarrow.parquet.write_table(pyarrow.table({"name": texts, "features": columns}), file)


WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}


def embed(
    encoder: str | Path,
    data: str | Path | None = None,
    *,
    model: str | None = None,
    image_size: int | None = None,
    stage: Stage = -1,
    batch_size: int = 32,
    workers: int = 1,
    device: Device = "auto",
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    trust: bool = False,
    index: str | Path | None = None,
) -> Embeddings:
    """Compute an encoder's features of a folder of images.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, "timm" or "none"; see
            :func:`sparkmim.load_encoder`.
        data: folder or address of images; the built-in photographs by default.
        model: the network's name, for weights that do not record it.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default, or measured where nothing is known.
        std: standard deviation of each channel, likewise.
        seed: of random weights.
        trust: run the code of a network that the encoder's file names, where `model` does not.
        index: an HTML file for some of the images and their nearest neighbors, as pictures.

    Raises:
        ValueError: for an invalid setting, an encoder that cannot be loaded, or if no image can be read.
    """
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ViewConfig, workers=workers)
    files = chosen_files(pages, nodata, max_pixels)
    loaded = load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans, trust=trust)
    loaded = with_input(loaded, image_size=image_size, mean=mean, std=std, files=files)
    if index is not None and loaded.backbone.dims != 2:
        raise ValueError(
            f"--index shows images, and {loaded.name} takes data of {loaded.backbone.dims} axes; leave it out"
        )
    if str(encoder) == "none" and data is not None and kind_seen(data, loaded) == "volumes":
        cases = cases_at(data, channels=loaded.backbone.in_chans)
        loaded = untrained_on(loaded, cases, image_size, statistics=mean is not None)
    source = by_page(open_seen(data, loaded), loaded.backbone.in_chans, loaded.data)
    log_places(source)
    network = ready_for(loaded, source, stage)
    where = pick_device(device)
    network.backbone.module.to(where)
    found = pooled_features(
        network.backbone, source, network.data, stage, batch_size=batch_size, workers=workers, device=where
    )
    skipped = log_skipped(source, found.broken)
    if not found.indices:
        raise ValueError(f"none of the {len(source)} images can be read")
    if index is not None:
        title = f"{network.name} on {Path(str(data)).name if data else 'built-in photographs'}"
        channels = network.backbone.in_chans
        write_neighbors(Path(index), title, source, network.data, channels, found.values, found.indices)
    return Embeddings([source.name(place) for place in found.indices], found.values.numpy(), skipped)


def kind_seen(data: str | Path | None, network: TrainedEncoder) -> Kind:
    """Return what an address holds.

    Raises:
        ValueError: if it is not what the network takes.
    """
    dims = network.backbone.dims
    learned = _learned_from(network)
    kind = kind_of(data, lambda: dims, likely="clips" if learned == "clips" else "volumes" if dims == 3 else None)
    if AXES[kind] != dims:
        pictures = "pictures (name volumes of .npy or .tif files as volumes://FOLDER)" if dims == 3 else "pictures"
        raise ValueError(
            f"{data or 'the built-in photographs'}: {network.name} takes images of {dims} axes, and these are "
            f"{pictures if kind == 'images' else kind}"
        )
    return kind


def _learned_from(network: TrainedEncoder) -> str | None:
    """Return the kind of data, other than images, that a network has learned from, if its file says so."""
    prepared = {"volumes": network.volumes, "signals": network.signals, "clips": network.clips}
    return next((name for name, how in prepared.items() if how is not None), None)


def open_seen(data: str | Path | None, network: TrainedEncoder) -> ImageSource:
    """Return the images at an address; other data are prepared as those that a network has learned from.

    Raises:
        ValueError: if there are none, or they are not what the network takes.
    """
    kind, learned = kind_seen(data, network), _learned_from(network)
    prepared = {"volumes": network.volumes, "signals": network.signals, "clips": network.clips}
    if data is None or kind == "images":
        return open_source(data)
    if prepared[kind] is None:
        about = f"has learned from {learned}" if learned else f"does not record how {kind} were prepared"
        raise ValueError(
            f"the file of {network.name} {about}, so {kind} would be prepared otherwise here; use an "
            f"encoder.safetensors of a pretraining on {kind}"
        )
    return open_learned(data, {kind: prepared[kind]}, network.backbone.in_chans)


def open_learned(data: str | Path, prepared: Mapping[str, Any], channels: int) -> ImageSource:
    """Return data at an address, prepared as those that a network has learned from.

    Args:
        data: folder or address.
        prepared: what was done to those, by their kind.
        channels: of the network.

    Raises:
        ValueError: if there are none.
    """
    ((kind, how),) = prepared.items()
    if kind == "volumes":
        return open_prepared(data, how)
    return open_clips(data, how, channels) if kind == "clips" else open_signals(data, how, channels)


def preparation_for(network: TrainedEncoder, data: str | Path | None) -> Preparation | None:
    """Return how labeled volumes are prepared for a network, None for one of images.

    Raises:
        ValueError: if a network of images is given volumes, its file does not say how they are prepared, or it has
            learned from signals or clips.
    """
    if network.signals is not None or network.clips is not None or network.backbone.dims == 1:
        takes = "clips" if network.clips is not None else "signals"
        raise ValueError(f"{network.name} takes {takes}, and labeled {takes} are not read yet; `sparkmim embed` is")
    if network.backbone.dims != 3:
        if are_volumes(data):
            raise ValueError(
                f"{data}: {network.name} takes images of {network.backbone.dims} axes, and these are volumes"
            )
        return None
    if network.volumes is None:
        raise ValueError(
            f"the file of {network.name} does not record how volumes were prepared, so they would be prepared "
            "otherwise here; use an encoder.safetensors of a pretraining on volumes"
        )
    return network.volumes


def untrained_on(
    network: TrainedEncoder, cases: Sequence[Case], image_size: int | None, *, statistics: bool
) -> TrainedEncoder:
    """Return a network that has learned from no volumes, with how some are prepared and seen by default.

    They are normalized, resampled to their median spacing, in the order of axes that the network is made for, and seen
    by crops of the size of most of them.

    Args:
        network: with random weights.
        cases: the volumes, of which up to 32 are measured.
        image_size: voxels of each side of the view, if the user says.
        statistics: whether the user says mean and standard deviation.

    Raises:
        ValueError: if none of the volumes can be read.
    """
    source = UnpreparedVolumes(cases, PrepareSettings(orientation=orientation_of(network.name)))
    backbone = network.backbone
    size: Sequence[int] = (image_size,) * backbone.dims if image_size else ()
    if not size:
        extents, strides = np.median(source.shapes, axis=0), zip(*backbone.strides, strict=True)
        unit = [math.lcm(*own) for own in strides]
        size = [max(2 * u, min(round(extent / u), MOST_SEEN // u) * u) for extent, u in zip(extents, unit, strict=True)]
    data = replace(network.data, image_size=tuple(size), crop="native")
    if not statistics:
        data = replace(data, mean=(0.0,) * backbone.in_chans, std=(1.0,) * backbone.in_chans)
    return network._replace(volumes=source.preparation, data=data, statistics_known=True)


def input_for(network: TrainedEncoder, source: ImageSource) -> DataConfig:
    """Return how input is prepared: as the weights were trained, or by the images' statistics if that is unknown.

    Raises:
        ValueError: if no image can be read.
    """
    if network.statistics_known:
        return network.data
    found = input_statistics(source, network.backbone.in_chans, network.data)
    return replace(network.data, mean=found.mean, std=found.std)


def ready_for(network: TrainedEncoder, source: ImageSource, stage: Stage = -1) -> TrainedEncoder:
    """Return an encoder whose input is known: statistics that are not are measured on images, and logged as flags.

    Raises:
        ValueError: if the network has no such stage or does not take images of the size, or none can be read.
    """
    backbone = network.backbone
    require_stage(backbone, stage)
    require_image_size(backbone, backbone.module, network.name, backbone.in_chans, network.data.image_size)
    if network.statistics_known:
        return network
    found = input_statistics(source, backbone.in_chans, network.data)
    if found.images:
        log.info(f"measured on {counted(found.images, 'image')}: --mean {show(found.mean)} --std {show(found.std)}")
    data = replace(network.data, mean=found.mean, std=found.std)
    return network._replace(data=data, statistics_known=True)


def log_places(source: ImageSource, trained: ImageSource | None = None) -> None:
    """Warn of images that lie outside of their folder, and of those that are among the images that are learned from."""
    outside = files_outside(source)
    if outside is not None:
        log.warning(
            f"{outside.number:,} of {len(source):,} images {verb(outside.number, 'lie')} "
            f"{str(outside).partition(' ')[2]}"
        )
    twice = 0 if trained is None else shared_files(trained, source)
    if twice:
        log.warning(
            f"{twice:,} of the {len(source):,} images that are scored "
            f"{verb(twice, 'are')} among those that are learned from"
        )


def log_skipped(source: ImageSource, broken: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """Log images that could not be read, and return their names and errors."""
    skipped = [(source.name(index), error) for index, error in broken]
    for name, error in skipped:
        log.warning(f"skipped {printable(name)}: {error}")
    return skipped


@torch.no_grad()
def pooled_features(
    backbone: Backbone,
    source: ImageSource,
    data: ViewConfig,
    stage: Stage = -1,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    pooling: Pooling = "mean",
) -> Features:
    """Compute the features of every image of a source, in order, without augmentation.

    Args:
        backbone: the network, on the device, in evaluation mode.
        source: the images.
        data: their size, mean and standard deviation.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        pooling: "mean" averages each map over all positions; "attention" keeps the positions, of one map.

    Raises:
        ValueError: if the network has no such map, or positions of several are to be kept.
    """
    require_stage(backbone, stage)
    require_poolable(stage, pooling)
    places = stages_of(stage)
    rows: list[Tensor] = []
    indices: list[int] = []
    broken: list[tuple[int, str]] = []
    normalize = Normalize(data, device)
    views = PlainViews(source, evaluation_view(data, source), backbone.in_chans)
    with read(plain_batches(views, batch_size, workers)) as batches:
        for batch in batches:
            broken += batch.broken
            indices += batch.indices
            if batch.images:
                maps = backbone(normalize(join(batch.images)))
                positions = [maps[place].flatten(2) for place in places]
                if pooling == "attention":
                    rows.append(positions[0].mT.float().cpu())
                else:
                    rows.append(torch.cat([part.mean(2, dtype=torch.float32) for part in positions], 1).cpu())
    values = torch.cat(rows) if rows else torch.zeros(0, sum(backbone.channels[place] for place in places))
    return Features(values, indices, broken)


def require_poolable(stage: Stage, pooling: Pooling) -> None:
    """Raise if positions of several feature maps are to be kept: they differ in number.

    Raises:
        ValueError: with what to name instead.
    """
    if pooling == "attention" and len(stages_of(stage)) > 1:
        raise ValueError(
            f"--pooling attention reads the positions of one map, got --stage {show(stages_of(stage))}; name one stage"
        )


def stages_of(stage: Stage) -> tuple[int, ...]:
    """Return the indices of feature maps."""
    return (stage,) if isinstance(stage, int) else tuple(stage)


def require_stage(backbone: Backbone, stage: Stage) -> None:
    """Raise unless a network has feature maps of some indices, each named once.

    Raises:
        ValueError: with the indices there are.
    """
    levels = len(backbone.levels)
    for place in stages_of(stage):
        if not -levels <= place < levels:
            raise ValueError(
                f"--stage {place} is not one of the network's {levels} maps, 0 to {levels - 1} or -{levels} to -1"
            )
    places = [place % levels for place in stages_of(stage)]
    if not places or len(set(places)) < len(places):
        raise ValueError(f"--stage {show(stages_of(stage))} must name maps, each once")
