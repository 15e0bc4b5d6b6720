"""The encoder file: weights under the network's own names, and what is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from ..data.config import DataConfig
from ..models.backbone import Backbone
from ..models.factory import code_of, load_backbone
from ..utils.io import write_atomically
from .run_folder import RunFolder
from .weights import load_encoder


def save_encoder(module: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a network's state dict as safetensors, atomically: a crash leaves the old file or the new one.

    Args:
        module: the network.
        path: of the file; its folder must exist.
        metadata: kept in the file, see :func:`read_metadata`.
    """
    path = Path(path)
    own = {key: tensor.detach().cpu() for key, tensor in module.state_dict().items()}
    copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in own.items()}  # tied ones too
    content = safetensors.torch.save(copies, dict(metadata))
    write_atomically(path, lambda file: file.write(content))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ValueError if it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or a damaged one: {error}") from error


class TrainedEncoder(NamedTuple):
    """A network in evaluation mode, its name, how its input is prepared, and the steps of its pretraining if known.

    `stages` are the names of the submodules whose outputs are its maps, if they were told.
    """

    name: str
    backbone: Backbone
    data: DataConfig
    step: int | None = None
    stages: tuple[str, ...] = ()


def load_network(
    encoder: str | Path,
    model: str | None = None,
    seed: int = 0,
    *,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
) -> TrainedEncoder:
    """The ordinary network of an encoder.

    Args:
        encoder: an `encoder.safetensors`, which knows its network, or the run folder that holds one; other weights, see
            :func:`~sparkmim.checkpoints.weights.load_encoder`; "timm" for timm's own weights; "none" for random ones.
        model: the network's name, where the encoder does not know it.
        seed: of random weights.
        stages: names of the submodules whose outputs are the maps; those that the encoder knows if not given.
        in_chans: channels of the images, where the encoder does not know them; 3 if not given, or those of a Backbone.

    Raises:
        ValueError: if the encoder does not know its network and no name is given, or they do not fit.
    """
    if str(encoder) in ("none", "timm"):
        return _named_network(str(encoder), model, seed, tuple(stages), in_chans)
    path = RunFolder(encoder).encoder if Path(encoder).is_dir() else Path(encoder)
    if not path.is_file() and RunFolder(encoder).classifier.is_file():
        raise ValueError(f"{encoder} is the folder of a fine-tuning; take {RunFolder(encoder).classifier}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; --encoder takes a file of weights, a run folder, timm, or none")
    try:
        known: dict[str, Any] = json.loads(read_metadata(path).get("sparkmim", "{}"))
    except ValueError:  # other kinds of weights know nothing of their network; damaged ones are refused below
        known = {}
    name = model or known.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which network it is of; name it with --model")
    stages = tuple(stages or known.get("stages", ()))
    with code_of(name):
        backbone = load_backbone(name, stages, known.get("in_chans", in_chans))
    try:
        load_encoder(backbone.module, path)
    except ValueError as error:
        if known.get("model", name) == name:
            raise
        raise ValueError(
            f"{path} holds the weights of {known['model']}, not of {name}: leave --model out. {error}"
        ) from error
    backbone.module.eval()
    step = None if "classes" in known else known.get("step")  # a classifier's steps are not those of a pretraining
    return TrainedEncoder(name, backbone, _input_of(backbone, known), step, stages)


def _named_network(
    weights: str, model: str | None, seed: int, stages: tuple[str, ...], in_chans: int | None
) -> TrainedEncoder:
    """A network with timm's weights or with random ones."""
    if model is None:
        raise ValueError(f"--encoder {weights} does not say which network; name it with --model")
    with torch.random.fork_rng(devices=()), code_of(model):
        torch.manual_seed(seed)
        try:
            backbone = load_backbone(model, stages, in_chans, pretrained=weights == "timm")
        except (OSError, RuntimeError) as error:
            if weights != "timm":
                raise
            raise ValueError(f"timm's weights of {model} cannot be had ({error})") from error
    backbone.module.eval()
    published = (getattr(backbone.module, "pretrained_cfg", None) or {}) if weights == "timm" else {}
    known = {key: published[key] for key in ("mean", "std") if len(published.get(key, ())) == backbone.in_chans}
    if "input_size" in published:
        known["image_size"] = published["input_size"][1:]
    return TrainedEncoder(model, backbone, _input_of(backbone, known), stages=stages)


def _input_of(backbone: Backbone, known: Mapping[str, Any]) -> DataConfig:
    """How a network's input is prepared: as known, else 224 pixels, resized, and the statistics of ImageNet."""
    channels = backbone.in_chans
    return DataConfig(
        image_size=tuple(known.get("image_size", (224, 224))),
        crop=known.get("crop", "resized"),
        flip=known.get("flip", True),
        mean=tuple(known.get("mean", (0.485, 0.456, 0.406) if channels == 3 else (0.449,) * channels)),
        std=tuple(known.get("std", (0.229, 0.224, 0.225) if channels == 3 else (0.226,) * channels)),
    )
