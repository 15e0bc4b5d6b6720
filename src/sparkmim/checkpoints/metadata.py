"""What a file of weights records of its network, validated: a file may come from anybody."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import safetensors
import timm
import torch
import torchvision

from ..data.config import Pages
from ..models.factory import is_registered
from ..models.named.base import find_named
from ..utils.io import parse_json, read_json
from ..utils.specs import is_function
from ..utils.text import printable
from .state import PARTS

METADATA_KEY = "sparkmim"

TIMM_CONFIG = "config.json"
"""File of a folder of timm or the Hugging Face hub that describes its network."""

SAME_WEIGHTS = {"in_chans", "num_classes", "drop_rate", "drop_path_rate", "global_pool"}
"""Settings of a network of timm that change none of its layers but the first and the classifier."""

INPUT = ("image_size", "crop", "flip", "mean", "std", "pages", "nodata", "max_pixels")
"""Fields of a run's images that its weights depend on."""

LARGEST_SIZE = 16_384
"""Pixels of the longest side of a view that a file may record."""

LONGEST_SIGNAL = 2**24
"""Samples of a view of a signal that a file may record."""

MOST_CHANNELS = 10_000

MOST_PIXELS = 2**34
"""Largest number of pixels of an image that a file may allow by itself."""


def _whole(low: int, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _list_of(valid: Callable[[Any], bool], most: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(valid, value))


def largest_side(size: Any) -> int:
    """Return the longest side of a view that a file may record, given all of its sides."""
    return LONGEST_SIGNAL if isinstance(size, (list, tuple)) and len(size) == 1 else LARGEST_SIZE


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 4096


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: _text(value) and value != "", "a name"),
    "stages": (_list_of(_text, 1000), "a list of names"),
    "levels": (lambda value: value is None or _whole(1, 1000)(value), "a number of feature maps"),
    "in_chans": (_whole(1, MOST_CHANNELS), f"a number of channels from 1 to {MOST_CHANNELS:,}"),
    "image_size": (
        lambda value: _list_of(_whole(1, largest_side(value)), 3, 1)(value),
        f"sides from 1 to {LARGEST_SIZE:,} pixels, or up to {LONGEST_SIGNAL:,} samples",
    ),
    "crop": (lambda value: value in ("resized", "native"), "resized or native"),
    "flip": (lambda value: isinstance(value, bool), "true or false"),
    "pages": (lambda value: value in get_args(Pages), ", ".join(get_args(Pages))),
    "nodata": (lambda value: value is None or _number(value), "a finite number"),
    "max_pixels": (_whole(1, MOST_PIXELS), f"a number of pixels from 1 to {MOST_PIXELS:,}"),
    "mean": (_list_of(_number, MOST_CHANNELS, 1), "a list of finite numbers"),
    "std": (_list_of(lambda value: _number(value) and value > 0, MOST_CHANNELS, 1), "a list of numbers above 0"),
    "step": (_whole(0, math.inf), "a number of steps"),
    "classes": (_list_of(_text, 10_000_000, 1), "a list of names"),
    "task": (lambda value: _text(value) and value != "", "a name"),
    "settings": (lambda value: isinstance(value, dict), "an object"),
    "targets": (lambda value: isinstance(value, dict), "an object"),
    "volumes": (lambda value: isinstance(value, dict), "an object"),
    "signals": (lambda value: isinstance(value, dict), "an object"),
    "clips": (lambda value: isinstance(value, dict), "an object"),
    "padded": (lambda value: isinstance(value, bool), "true or false"),
}
"""What each recorded value must be."""


class Recorded(NamedTuple):
    """What is recorded of a network, and the file that says so; empty if nothing is."""

    values: Mapping[str, Any]
    path: Path


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
    """Return what a weights file records of its network, empty if nothing; the inverse of
    :func:`~sparkmim.checkpoints.encoder.network_metadata`.

    Raises:
        ValueError: if the file is damaged or of another format, or records what cannot be.
    """
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not an encoder of this project: its metadata is not JSON ({error})") from error
    return validated(values, path)


def validated(values: Any, path: object) -> dict[str, Any]:
    """Return recorded values if each can be what it says.

    Raises:
        ValueError: naming the file, the value, and what was expected.
    """
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} is not an encoder of this project: its metadata is a {type(values).__name__}, not an object"
        )
    for name, (valid, expected) in FIELDS.items():
        if name in values and not valid(values[name]):
            raise ValueError(
                f"{path} is not an encoder of this project: its {name} is {_shortened(values[name])}, not {expected}"
            )
    lengths = {name: len(values[name]) for name in ("mean", "std") if name in values}
    channels = values.get("in_chans")
    for name, length in lengths.items():
        if length != (channels or next(iter(lengths.values()))):
            raise ValueError(f"{path} is not an encoder of this project: its {name} has {length} values")
    return values


def of_checkpoint(content: Any, path: Path) -> dict[str, Any]:
    """Return what the content of a run's checkpoint records of its network, empty for other content.

    Raises:
        ValueError: if it records what cannot be.
    """
    if not (isinstance(content, dict) and content.keys() >= PARTS and isinstance(content["config"], str)):
        return {}
    try:
        config = parse_json(content["config"])
        model, data = config["model"], config["data"]
        known = {name: model[name] for name in ("model", "stages", "levels", "in_chans") if name in model}
        known |= {name: data[name] for name in INPUT if name in data}
        if "encoder" not in model:  # a classifier's steps are not those of a pretraining
            known["step"] = content["step"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} records a configuration that is not of this project ({error!r})") from error
    return validated(known, path)


def of_timm_folder(folder: Path) -> dict[str, Any]:
    """Return what the `config.json` of a folder of timm records, as our own metadata; empty if it is of something else.

    Raises:
        ValueError: if it records what cannot be.
    """
    path = folder / TIMM_CONFIG
    if not path.is_file():
        return {}
    try:
        config = read_json(path)
    except (ValueError, OSError):
        return {}
    if not isinstance(config, dict) or "architecture" not in config:
        return {}
    described = config.get("pretrained_cfg", config)
    described = described if isinstance(described, dict) else {}
    known: dict[str, Any] = {"model": config["architecture"]}
    size = described.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        known |= {"in_chans": size[0], "image_size": size[1:]}
    known |= {name: described[name] for name in ("mean", "std") if isinstance(described.get(name), list)}
    settings = config.get("model_args") or {}
    if not isinstance(settings, dict) or settings.keys() - SAME_WEIGHTS:
        raise ValueError(
            f"{path} builds its network with settings of its own; give it as --model local-dir:{folder} with "
            f"--encoder {folder / 'model.safetensors'}"
        )
    return validated(known, path)


def require_room(model: str, path: Path) -> None:
    """Raise if a file cannot hold the weights of the registered network that it names: a byte for each value at least.

    A small file could otherwise have a machine build its largest network.

    Raises:
        ValueError: with both sizes.
    """
    if not is_registered(model):
        return
    values = _known_values(model)
    size = path.stat().st_size
    if values > size:
        raise ValueError(f"{path} names {model}, whose {values:,} values do not fit into its {size:,} bytes")


def _known_values(model: str) -> int:
    """Return the number of values of a registered network, 0 where it cannot be had without building the network."""
    named = find_named(model)
    if named is not None:
        try:
            with torch.device("meta"):
                return sum(parameter.numel() for parameter in named.build(None).module.parameters())
        except (RuntimeError, NotImplementedError):
            return 0
    if is_function(model):  # whole networks of torchvision are saved, as these numbers count them
        name = model.rpartition(":")[2]
        return int(torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"])
    try:
        with torch.device("meta"):
            module = timm.create_model(model, num_classes=0)
    except (RuntimeError, NotImplementedError):  # some networks compute with values while they are built
        return 0
    return sum(parameter.numel() for parameter in module.parameters())


def _shortened(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge number"
    return printable(reprlib.repr(value))
