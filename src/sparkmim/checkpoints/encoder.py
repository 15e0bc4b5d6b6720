"""Weights files of safetensors that describe their network: how to build it and how to prepare its input.

`encoder.safetensors` of a pretraining and `model.safetensors` of a fine-tuning have the same format: tensors under the
network's own names, and under the metadata key `sparkmim` a JSON object of :func:`network_metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..data.clips.opening import ClipPreparation
from ..data.config import DataConfig, ViewConfig, files_of
from ..data.signals.source import SignalPreparation
from ..data.volumes.preparing import Preparation
from ..models.backbone import Backbone
from ..models.factory import code_of, is_registered, load_backbone
from ..utils.fields import flag, show, validate_as
from ..utils.io import require_utf8, write_atomically
from ..utils.logging import log
from ..utils.specs import is_function
from ..utils.trust import names_code, require_trust
from .metadata import (
    METADATA_KEY,
    Recorded,
    of_checkpoint,
    of_timm_folder,
    read_metadata,
    read_network_metadata,
    require_room,
)
from .own_files import require_own_files
from .run_folder import RunFolder
from .weights import Content, is_safetensors, load_weights, read_weights, tied_names

__all__ = [
    "METADATA_KEY",
    "TrainedEncoder",
    "load_encoder",
    "load_trained_encoder",
    "network_metadata",
    "read_metadata",
    "read_network_metadata",
    "save_encoder",
    "save_weights",
]


def network_metadata(model: str, stages: Sequence[str], in_chans: int, data: ViewConfig, **more: Any) -> dict[str, str]:
    """Return the metadata of a weights file.

    Args:
        model: name of the network.
        stages: names of the submodules whose outputs are the feature maps, if given by the user.
        in_chans: channels of the images.
        data: how images are prepared.
        more: further values: `step`, `levels` (number of feature maps, if given by the user), `classes` of a
            classifier, and `volumes`, `signals` or `clips` (how they were prepared).
    """
    values = {
        "model": model,
        "stages": tuple(stages),
        "in_chans": in_chans,
        "image_size": data.image_size,
        "crop": data.crop,
        "flip": data.flip,
        "mean": data.mean,
        "std": data.std,
        **asdict(files_of(vars(data))),
        **more,
    }
    return {METADATA_KEY: json.dumps(values)}


def save_weights(weights: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, atomically: a crash leaves the old file or the new one.

    A tensor with several names, as nnU-Net's networks have, is written under the first; the metadata says of each other
    name which one that is, as :func:`safetensors.torch.save_model` does, and :func:`safetensors.torch.load_model` reads
    the file.

    Args:
        weights: a state dict.
        path: the file; its folder must exist.
        metadata: stored in the file; see :func:`network_metadata`.
    """
    others = {name: kept for name, kept in tied_names(weights).items() if name not in metadata}
    own = {name: tensor.detach().cpu() for name, tensor in weights.items() if name not in others}
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in own.items()}
    content = safetensors.torch.save(copies, {**others, **metadata})
    write_atomically(Path(path), lambda file: file.write(content))


def save_encoder(module: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a network's state dict; see :func:`save_weights`."""
    save_weights(module.state_dict(), path, metadata)


class TrainedEncoder(NamedTuple):
    """A network with its weights, and what is known of it.

    Attributes:
        name: the network's name.
        backbone: the network, in evaluation mode.
        data: how its input is prepared.
        step: number of pretraining steps, None if unknown.
        stages: names of the submodules whose outputs are the feature maps, if given by the user.
        levels: number of feature maps, if given by the user.
        statistics_known: whether mean and standard deviation are those that the weights were trained with; if not, they
            are a default, and those of the images at hand serve better.
        volumes: how the volumes that it has learned from were prepared; None for all else.
        signals: likewise of signals.
        clips: likewise of clips.
    """

    name: str
    backbone: Backbone
    data: DataConfig
    step: int | None = None
    stages: tuple[str, ...] = ()
    levels: int | None = None
    statistics_known: bool = True
    volumes: Preparation | None = None
    signals: SignalPreparation | None = None
    clips: ClipPreparation | None = None


def load_encoder(
    encoder: str | Path,
    model: str | None = None,
    *,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    seed: int = 0,
    trust: bool = False,
) -> nn.Module:
    """Build an encoder's network and load its weights: an ordinary module in evaluation mode, without a classifier.

    Args:
        encoder: an `encoder.safetensors`, which records its network, the run folder that holds one, a run's checkpoint,
            or a folder of timm; other weights, see :func:`~sparkmim.checkpoints.weights.load_weights`; "timm" for
            timm's own; "none" for random ones.
        model: a timm name, `FILE.py:FUNCTION` or `MODULE:FUNCTION`, for weights that do not record their network.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded; by default those of the weights, of a Backbone, or 3.
        seed: of random weights.
        trust: run the code of a network that the file names, where `model` does not.

    Raises:
        ValueError: if the network is unknown, the weights do not fit it, or the file names code without `trust`
            (:class:`~sparkmim.utils.trust.Untrusted`).
    """
    return load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans, trust=trust).backbone.module


def load_trained_encoder(
    encoder: str | Path,
    model: str | None = None,
    seed: int = 0,
    *,
    stages: Sequence[str] = (),
    levels: int | None = None,
    in_chans: int | None = None,
    trust: bool = False,
) -> TrainedEncoder:
    """Load an encoder's network as :func:`load_encoder` does, with what is known of it."""
    if str(encoder) in ("none", "timm"):
        return _named_network(str(encoder), model, seed, stages, in_chans, levels)
    path = find_weights(encoder)
    content = read_weights(path)
    recorded = _recorded(path, content, model)
    known = recorded.values
    name = model or known.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which network it is of; name it with --model")
    if model is None and names_code(name) and not is_registered(name):
        require_trust(name, "network", recorded.path, trust=trust, remedy=f"--model {name}")
    if model is None:
        require_room(name, path)
    stages = stages or known.get("stages", ())
    levels = levels or known.get("levels")
    if in_chans is not None and known.get("in_chans", in_chans) != in_chans:
        raise ValueError(
            f"--in-chans {in_chans}, but the encoder takes {known['in_chans']} channels; leave it out, and give images "
            "of so many"
        )
    with code_of(name):
        backbone = load_backbone(name, stages, known.get("in_chans", in_chans), levels=levels)
    try:
        report = load_weights(backbone.module, path, content)
        if report.adapted is not None and "in_chans" not in known and in_chans is None and not is_function(name):
            backbone = load_backbone(
                name, stages, report.adapted, levels=levels
            )  # the file's own channels, which nobody has changed
            report = load_weights(backbone.module, path, content)
    except ValueError as error:
        if known.get("model", name) == name:
            raise
        raise ValueError(
            f"{path} holds the weights of {known['model']}, not of {name}: leave --model out. {error}"
        ) from error
    if report.adapted is not None:
        log.info(f"weights of {report.adapted} channels adapted to {backbone.in_chans}, as timm does")
    backbone.module.eval()
    step = None if {"classes", "task"} & known.keys() else known.get("step")  # of a pretraining, not of a fine-tuning
    data, certain = _input_of(backbone, {**_published(backbone), **known}, recorded.path)
    prepared = {kind: _prepared(kind, known, recorded.path) for kind in PREPARATIONS}
    return TrainedEncoder(name, backbone, data, step, tuple(stages), levels, certain, **prepared)


def find_weights(encoder: str | Path) -> Path:
    """Return the file of weights that an encoder's name stands for.

    Raises:
        ValueError: if there is none.
    """
    given = Path(encoder).expanduser()
    require_utf8(given, "--encoder")
    if given.is_dir() and of_timm_folder(given):
        path = given / "model.safetensors"
        return path if path.is_file() else given / "pytorch_model.bin"
    run = RunFolder(given)
    if given.is_dir():
        require_own_files(given)
    path = run.encoder if given.is_dir() else given
    if not path.is_file() and run.classifier.is_file():
        raise ValueError(f"{encoder} is the folder of a fine-tuning; take {run.classifier}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; --encoder takes a file of weights, a run folder, timm, or none")
    return path


def _in_file(path: Path, content: Content | None = None) -> dict[str, Any]:
    """Return what a file of weights records of its network; `content` is the file's, if it has been read."""
    if is_safetensors(path):
        return read_network_metadata(path)
    return of_checkpoint((read_weights(path) if content is None else content).value, path)


def _recorded(path: Path, content: Content, model: str | None) -> Recorded:
    """Return what is recorded of weights: in their file, or in the folder of timm that they lie in."""
    values = _in_file(path, content)
    if values or path.name not in ("model.safetensors", "pytorch_model.bin") or model is not None:
        return Recorded(values, path)
    return Recorded(of_timm_folder(path.parent), path.parent / "config.json")


def with_input(
    network: TrainedEncoder,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    files: Mapping[str, Any] = {},
) -> TrainedEncoder:
    """Return an encoder with the user's choices for its input.

    Args:
        network: the encoder.
        image_size: pixels or voxels of each side of the view, but frames; None keeps its own.
        mean: mean of each channel, likewise.
        std: standard deviation of each channel, likewise.
        files: how files are read, where that differs; see :func:`~sparkmim.data.config.chosen_files`.

    Raises:
        ValueError: for a size that is not one, or statistics that do not fit the network's channels.
    """
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"--image-size {image_size} is not a number of pixels")
        frames = network.data.image_size[:1] if network.clips is not None else ()
        size = (*frames, *[image_size] * (network.backbone.dims - len(frames)))
        network = network._replace(data=replace(network.data, image_size=size))
    if files:
        network = network._replace(data=replace(network.data, **files))
    channels = network.backbone.in_chans
    given: dict[str, Any] = {name: tuple(map(float, v)) for name, v in (("mean", mean), ("std", std)) if v}
    for name, values in given.items():
        validate_as(ViewConfig, **{name: values})
        if len(values) != channels:
            raise ValueError(f"{flag(name)} {show(values)} has {len(values)} values for {channels} channels")
    if len(given) == 1:
        raise ValueError("--mean and --std are given together")
    if given:
        network = network._replace(data=replace(network.data, **given), statistics_known=True)
    return network


def _named_network(
    weights: str, model: str | None, seed: int, stages: Sequence[str], in_chans: int | None, levels: int | None
) -> TrainedEncoder:
    """Build a network with timm's weights or with random ones."""
    if model is None:
        raise ValueError(f"--encoder {weights} does not say which network; name it with --model")
    with torch.random.fork_rng(devices=()), code_of(model):
        torch.manual_seed(seed)
        try:
            backbone = load_backbone(model, stages, in_chans, levels=levels, pretrained=weights == "timm")
        except (OSError, RuntimeError) as error:
            if weights != "timm":
                raise
            raise ValueError(f"timm's weights of {model} cannot be had ({error})") from error
    backbone.module.eval()
    data, certain = _input_of(backbone, _published(backbone) if weights == "timm" else {})
    return TrainedEncoder(model, backbone, data, stages=tuple(stages), levels=levels, statistics_known=certain)


def _published(backbone: Backbone) -> dict[str, Any]:
    """Return how timm's configuration of a network prepares its input, empty for a network without one."""
    known = published_statistics(backbone)
    published = getattr(backbone.module, "pretrained_cfg", None) or {}
    if "input_size" in published:
        known["image_size"] = published["input_size"][1:]
    return known


def published_statistics(backbone: Backbone) -> dict[str, Any]:
    """Return mean and std that a timm network's configuration names, if they are for as many channels."""
    published = getattr(backbone.module, "pretrained_cfg", None) or {}
    found = {key: tuple(published.get(key) or ()) for key in ("mean", "std")}
    return found if all(len(values) == backbone.in_chans for values in found.values()) else {}


def input_of_weights(weights: str | Path, backbone: Backbone) -> dict[str, Any]:
    """Return what is known of the input of weights: `mean` and `std` among others, empty if nothing is.

    What a file records is read as :func:`load_trained_encoder` reads it; no code that it names is run.

    Args:
        weights: a file, the folder of a run, "timm", or "none".
        backbone: the network that they are for.

    Raises:
        ValueError: if a file is damaged, or records what cannot be.
    """
    if str(weights) == "none":
        return {}
    known: dict[str, Any] = {}
    if str(weights) != "timm" and not _without_encoder(Path(weights)):
        known = _in_file(find_weights(weights))
    fitting = len(known.get("mean", ())) == len(known.get("std", ())) == backbone.in_chans
    return known if fitting else published_statistics(backbone)


def _without_encoder(path: Path) -> bool:
    """Return whether a path is the folder of a run that has written no encoder yet."""
    return path.is_dir() and not of_timm_folder(path) and not RunFolder(path).encoder.is_file()


PREPARATIONS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "volumes": Preparation.from_json,
    "signals": SignalPreparation.from_json,
    "clips": ClipPreparation.from_json,
}
"""What reads how data were prepared, by their kind."""


def _prepared(kind: str, known: Mapping[str, Any], path: object) -> Any:
    """Return how data of a kind were prepared, as a file records; None if it does not.

    Raises:
        ValueError: if it cannot be.
    """
    if kind not in known:
        return None
    try:
        return PREPARATIONS[kind](known[kind])
    except ValueError as error:
        raise ValueError(f"{path} records how {kind} were prepared, and is damaged: {error}") from error


def _input_of(backbone: Backbone, known: Mapping[str, Any], path: object = "timm") -> tuple[DataConfig, bool]:
    """Return how input is prepared, and whether its statistics are known.

    As recorded, else resized to 224 pixels with the statistics of ImageNet, or of its channels together.

    Raises:
        ValueError: if what is recorded does not fit the network.
    """
    channels = backbone.in_chans
    data = DataConfig(
        image_size=tuple(known.get("image_size", (224,) * backbone.dims)),
        crop=known.get("crop", "resized"),
        flip=known.get("flip", True),
        mean=tuple(known.get("mean", (0.485, 0.456, 0.406) if channels == 3 else (0.449,) * channels)),
        std=tuple(known.get("std", (0.229, 0.224, 0.225) if channels == 3 else (0.226,) * channels)),
        **asdict(files_of(known)),
    )
    if len(data.image_size) != backbone.dims or not len(data.mean) == len(data.std) == channels:
        raise ValueError(
            f"{path} records an image size of {show(data.image_size)} pixels, {len(data.mean)} means and "
            f"{len(data.std)} deviations for a network of {channels} channels and {backbone.dims} axes: it is damaged"
        )
    return data, "mean" in known and "std" in known
