"""Reconstructions of images by a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ..checkpoints.encoder import PREPARATIONS, read_network_metadata
from ..checkpoints.run_folder import RunFolder
from ..data.config import Pages, chosen_files
from ..data.crops import central_start
from ..data.kinds import Kind, kind_of
from ..data.loader import MaskedViews
from ..data.normalize import Normalize, join
from ..data.sources.address import open_source
from ..data.sources.base import ImageSource
from ..data.sources.pages import by_page
from ..data.statistics import first_readable
from ..data.views import evaluation_view
from ..data.volumes.extensions import extension_of
from ..data.volumes.geometry import reordered
from ..data.volumes.store import StoredVolume
from ..data.volumes.writing import volume_to_nifti
from ..evaluation.features import log_skipped, open_learned
from ..models.config import ModelConfig
from ..reporting.reconstructions import MOST_IMAGES, denormalize, reconstruction_grid
from ..training.config import LoopConfig
from ..utils.fields import validate_as
from ..utils.orientation import RAS, axes_of
from .config import PretrainConfig
from .evaluators import readable_views
from .kinds import kind_in
from .model import load_run, require_pretraining


class PlacedVolume(NamedTuple):
    """The part of a volume that a network sees, in the values and voxels that preparation gave it.

    Attributes:
        name: of the volume.
        start: its first voxel in the prepared volume, along X, Y and Z.
        affine: 4x4, from voxels of the prepared volume in RAS orientation to the RAS world in millimeters.
        volume: `(C, X, Y, Z)`.
        visible: the same with hidden patches at the least value of each channel.
        reconstruction: the same with hidden patches as predicted.
    """

    name: str
    start: tuple[int, ...]
    affine: np.ndarray
    volume: Float[Tensor, "channel x y z"]
    visible: Float[Tensor, "channel x y z"]
    reconstruction: Float[Tensor, "channel x y z"]

    def write(self, stem: Path, extension: str) -> list[Path]:
        """Write NIfTI files `STEM_volume`, `STEM_visible` and `STEM_reconstruction`, in their place in the world."""
        paths = []
        for kind in ("volume", "visible", "reconstruction"):
            paths.append(stem.with_name(f"{stem.name}_{kind}{extension}"))
            volume_to_nifti(getattr(self, kind), self.affine, paths[-1], self.start)
        return paths


class Reconstructions(NamedTuple):
    """Images, what the network sees of them, and its reconstructions.

    Attributes:
        images: normalized views.
        visible: visible patches, True = visible.
        reconstructions: the images with hidden patches as predicted, normalized.
        picture: the three as a picture.
        step: number of pretraining steps of the model.
        skipped: name and error of each image that could not be read.
        volumes: each volume in its place in the world, none of images.
    """

    images: Float[Tensor, "batch channel *size"]
    visible: Bool[Tensor, "batch *grid"]
    reconstructions: Float[Tensor, "batch channel *size"]
    picture: Image.Image
    step: int
    skipped: list[tuple[str, str]]
    volumes: list[PlacedVolume] = []

    def write_nifti(self, path: str | Path) -> list[Path]:
        """Write volumes, what the network sees of them and its reconstructions as NIfTI files.

        Args:
            path: names the files: of `NAME.nii.gz` they are `NAME_volume.nii.gz`, `NAME_visible.nii.gz` and
                `NAME_reconstruction.nii.gz`; of several volumes `NAME_0_volume.nii.gz`...

        Returns:
            The files.

        Raises:
            OSError: if one cannot be written.
        """
        extension = extension_of(Path(path).name)
        stem = Path(path).with_name(Path(path).name[: -len(extension)])
        stems = [stem.with_name(f"{stem.name}_{number}") for number in range(len(self.volumes))]
        written = [
            volume.write(where, extension)
            for volume, where in zip(self.volumes, stems if len(stems) > 1 else [stem], strict=True)
        ]
        return [path for paths in written for path in paths]


def require_volumes(run: str | Path, output: Path) -> None:
    """Raise unless a run is of volumes, whose reconstructions NIfTI files can hold.

    Raises:
        ValueError: naming the remedy; or if there is no such run.
    """
    recorded = require_pretraining(RunFolder(run), "--run", "it has no reconstructions")
    if len(recorded["data"]["image_size"]) != 3:
        raise ValueError(f"--output {output} is for volumes, and {run} is a run on images; write a .png file")


def open_as_learned(run: str | Path, kind: Kind, data: str | Path, config: PretrainConfig) -> ImageSource:
    """Return volumes, signals or clips, prepared as those of a run.

    Raises:
        ValueError: if there are none, they are of another kind, or the run has no encoder yet.
    """
    file = RunFolder(run).encoder
    recorded = read_network_metadata(file) if file.is_file() else {}
    if kind not in recorded:
        raise ValueError(f"{file} does not record how {kind} are prepared; the run has not written its encoder yet")
    found = kind_of(data, lambda: len(config.data.image_size), likely=kind)
    if found != kind:
        raise ValueError(f"--data {data} holds {found}, and the run in {run} is of {kind}")
    return open_learned(data, {kind: PREPARATIONS[kind](recorded[kind])}, config.model.in_chans)


@torch.no_grad()
def reconstruct(
    run: str | Path,
    data: str | Path | None = None,
    *,
    count: int = 8,
    seed: int = 0,
    mask_ratio: float | None = None,
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    trust: bool = False,
) -> Reconstructions:
    """Mask images and reconstruct them with the newest checkpoint of a run.

    Args:
        run: folder of a pretraining run.
        data: folder or address of images; the built-in photographs by default, of all but images those of the run.
        count: number of images, spread evenly over the folder, at most 8; those that cannot be read are skipped.
        seed: of the masks.
        mask_ratio: share of patches to hide; that of the run by default.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        trust: run the code of a network or an objective that the run's configuration names.

    Raises:
        ValueError: for an invalid setting, a folder without images or without a run, or unreadable images.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"--count {count} is not a number of images from 1 to {MOST_IMAGES}")
    validate_as(LoopConfig, seed=seed)
    if mask_ratio is not None:
        validate_as(ModelConfig, mask_ratio=mask_ratio)
    files = chosen_files(pages, nodata, max_pixels)
    trained = load_run(run, trust=trust, chosen=None if data is None else {"data": data})
    config = trained.config.replace(files)
    kind, where = kind_in(config), config.data.data if data is None else data
    if kind != "images" and where is not None:
        source = open_as_learned(run, kind, where, config)
    else:
        source = by_page(open_source(data), config.model.in_chans, config.data)
    first_readable(source, config.model.in_chans, config.data, by_part=config.data.by_part)
    grid = trained.model.grid_shape(config.data.image_size)
    ratio = config.model.mask_ratio if mask_ratio is None else mask_ratio
    view = evaluation_view(config.data, source)
    shape = config.model.mask_shape
    views = MaskedViews(source, view, config.model.in_chans, grid, ratio, seed, shape=shape, replace=False)
    batch, broken = readable_views(views, count)
    skipped = log_skipped(source, broken)
    if not batch:
        raise ValueError(f"none of {len(skipped)} images tried can be read; {skipped[0][0]}: {skipped[0][1]}")
    images = Normalize(config.data)(join([view.images for view in batch]))
    visible = torch.cat([view.visible for view in batch])
    reconstructions = trained.model.reconstruct(images, visible)
    orientation = config.volumes.orientation
    picture = reconstruction_grid(
        images,
        visible,
        reconstructions,
        mean=config.data.mean,
        std=config.data.std,
        clips=kind == "clips",
        orientation=orientation,
    )
    found = Reconstructions(images, visible, reconstructions, picture, trained.step, skipped)
    if kind != "volumes":
        return found
    own = [denormalize(x, config.data.mean, config.data.std) for x in (images, reconstructions)]
    indices = [index for view in batch for index in view.indices]
    placed = [_placed(source, index, orientation, *parts) for index, *parts in zip(indices, *own, visible, strict=True)]
    return found._replace(volumes=placed)


def _placed(
    source: ImageSource,
    index: int,
    orientation: str,
    view: Float[Tensor, "channel *size"],
    reconstruction: Float[Tensor, "channel *size"],
    visible: Bool[Tensor, "*grid"],
) -> PlacedVolume:
    """Return the central view of a volume, turned to RAS, without what lies beyond the volume."""
    stored = source.open(index)
    assert isinstance(stored, StoredVolume)
    turn = axes_of(RAS, orientation)
    view, reconstruction = (part.permute(0, *(1 + axis for axis in turn)) for part in (view, reconstruction))
    visible, affine = visible.permute(turn), reordered(stored.affine, turn)
    size, space = view.shape[1:], [stored.shape[1 + axis] for axis in turn]
    start = central_start(space, size)
    inside = [slice(max(0, -a), min(w, s - a)) for a, w, s in zip(start, size, space, strict=True)]
    shown = visible
    for axis, (extent, patches) in enumerate(zip(size, visible.shape, strict=True)):
        shown = shown.repeat_interleave(extent // patches, axis)
    volume, predicted, shown = view[:, *inside], reconstruction[:, *inside], shown[*inside]
    seen = torch.where(shown, volume, volume.amin((1, 2, 3), keepdim=True))
    first = tuple(max(0, a) for a in start)
    return PlacedVolume(source.name(index), first, affine, volume, seen, predicted)
