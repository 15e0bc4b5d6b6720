"""Weights files of safetensors that describe their network: how to build it and how to prepare its input.

`encoder.safetensors` of a pretraining and `model.safetensors` of a fine-tuning have the same format: tensors under the
network's own names, and under the metadata key `sparkmim` a JSON object of :func:`network_metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..data.config import DataConfig, ViewConfig, files_of
from ..models.backbone import Backbone
from ..models.factory import code_of, load_backbone
from ..utils.io import write_atomically
from .run_folder import RunFolder
from .weights import load_weights

METADATA_KEY = "sparkmim"


def network_metadata(model: str, stages: Sequence[str], in_chans: int, data: ViewConfig, **more: Any) -> dict[str, str]:
    """Return the metadata of a weights file.

    Args:
        model: name of the network.
        stages: names of the submodules whose outputs are the feature maps, if given by the user.
        in_chans: channels of the images.
        data: how images are prepared.
        more: further values: `step`, `levels` (number of feature maps, if given by the user), and `classes` of a
            classifier.
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

    Args:
        weights: a state dict.
        path: the file; its folder must exist.
        metadata: stored in the file; see :func:`network_metadata`.
    """
    own = {key: tensor.detach().cpu() for key, tensor in weights.items()}
    copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in own.items()}  # tied ones too
    content = safetensors.torch.save(copies, dict(metadata))
    write_atomically(Path(path), lambda file: file.write(content))


def save_encoder(module: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a network's state dict; see :func:`save_weights`."""
    save_weights(module.state_dict(), path, metadata)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        ValueError: if the file is damaged or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or a damaged one: {error}") from error


def read_network_metadata(path: str | Path) -> dict[str, Any]:
    """Return what a weights file records of its network, empty if nothing; the inverse of :func:`network_metadata`.

    Raises:
        ValueError: if the file is damaged or of another format.
    """
    return json.loads(read_metadata(path).get(METADATA_KEY, "{}"))  # type: ignore[no-any-return]


class TrainedEncoder(NamedTuple):
    """A network with its weights, and what is known of it.

    Attributes:
        name: the network's name.
        backbone: the network, in evaluation mode.
        data: how its input is prepared.
        step: number of pretraining steps, None if unknown.
        stages: names of the submodules whose outputs are the feature maps, if given by the user.
        levels: number of feature maps, if given by the user.
        statistics_known: whether mean and deviation of `data` are those that the weights were trained with, rather
            than ImageNet's for want of others.
    """

    name: str
    backbone: Backbone
    data: DataConfig
    step: int | None = None
    stages: tuple[str, ...] = ()
    levels: int | None = None
    statistics_known: bool = True


def load_encoder(
    encoder: str | Path,
    model: str | None = None,
    *,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build an encoder's network and load its weights: an ordinary module in evaluation mode, without a classifier.

    Args:
        encoder: an `encoder.safetensors`, which records its network, or the run folder that holds one; other weights,
            see :func:`~sparkmim.checkpoints.weights.load_weights`; "timm" for timm's own; "none" for random ones.
        model: a timm name, `FILE.py:FUNCTION` or `MODULE:FUNCTION`, for weights that do not record their network.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded; 3 by default, or those of a Backbone.
        seed: of random weights.

    Raises:
        ValueError: if the network is unknown, or the weights do not fit it.
    """
    return load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans).backbone.module


def load_trained_encoder(
    encoder: str | Path,
    model: str | None = None,
    seed: int = 0,
    *,
    stages: Sequence[str] = (),
    levels: int | None = None,
    in_chans: int | None = None,
) -> TrainedEncoder:
    """Load an encoder's network as :func:`load_encoder` does, with what is known of it."""
    if str(encoder) in ("none", "timm"):
        return _named_network(str(encoder), model, seed, stages, in_chans, levels)
    path = RunFolder(encoder).encoder if Path(encoder).is_dir() else Path(encoder)
    if not path.is_file() and RunFolder(encoder).classifier.is_file():
        raise ValueError(f"{encoder} is the folder of a fine-tuning; take {RunFolder(encoder).classifier}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; --encoder takes a file of weights, a run folder, timm, or none")
    try:
        known = read_network_metadata(path)
    except ValueError:  # other formats record nothing; load_weights rejects damaged files
        known = {}
    name = model or known.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which network it is of; name it with --model")
    stages = stages or known.get("stages", ())
    levels = levels or known.get("levels")
    with code_of(name):
        backbone = load_backbone(name, stages, known.get("in_chans", in_chans), levels=levels)
    try:
        load_weights(backbone.module, path)
    except ValueError as error:
        if known.get("model", name) == name:
            raise
        raise ValueError(
            f"{path} holds the weights of {known['model']}, not of {name}: leave --model out. {error}"
        ) from error
    backbone.module.eval()
    step = None if "classes" in known else known.get("step")  # a classifier's steps are not those of a pretraining
    known = {**published_statistics(backbone), **known}
    return TrainedEncoder(
        name, backbone, _input_of(backbone, known), step, tuple(stages), levels, statistics_known="mean" in known
    )


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
    known = {} if weights == "none" else published_statistics(backbone)
    published = (getattr(backbone.module, "pretrained_cfg", None) or {}) if weights == "timm" else {}
    if "input_size" in published:
        known["image_size"] = published["input_size"][1:]
    data = _input_of(backbone, known)
    return TrainedEncoder(model, backbone, data, stages=tuple(stages), levels=levels, statistics_known="mean" in known)


def published_statistics(backbone: Backbone) -> dict[str, Any]:
    """Return mean and std that a timm network's configuration names, if they are for as many channels."""
    published = getattr(backbone.module, "pretrained_cfg", None) or {}
    found = {key: tuple(published.get(key) or ()) for key in ("mean", "std")}
    return found if all(len(values) == backbone.in_chans for values in found.values()) else {}


def input_of_weights(weights: str, backbone: Backbone) -> dict[str, Any]:
    """Return what is known of the input of weights: `mean` and `std` among others, empty if nothing is.

    Args:
        weights: a file, the folder of a run, "timm", or "none".
        backbone: the network that they are for.
    """
    if weights == "none":
        return {}
    known: dict[str, Any] = {}
    if weights != "timm":
        path = RunFolder(weights).encoder if Path(weights).is_dir() else Path(weights)
        try:
            known = read_network_metadata(path)
        except (OSError, ValueError):  # other formats record nothing; load_weights rejects damaged files
            known = {}
    fitting = len(known.get("mean", ())) == len(known.get("std", ())) == backbone.in_chans
    return known if fitting else published_statistics(backbone)


def _input_of(backbone: Backbone, known: Mapping[str, Any]) -> DataConfig:
    """Return how input is prepared: as recorded, else resized to 224 pixels with the statistics of ImageNet."""
    channels = backbone.in_chans
    return DataConfig(
        image_size=tuple(known.get("image_size", (224, 224))),
        crop=known.get("crop", "resized"),
        flip=known.get("flip", True),
        mean=tuple(known.get("mean", (0.485, 0.456, 0.406) if channels == 3 else (0.449,) * channels)),
        std=tuple(known.get("std", (0.229, 0.224, 0.225) if channels == 3 else (0.226,) * channels)),
        **asdict(files_of(known)),
    )
