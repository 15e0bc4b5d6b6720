"""A classifier as a file: its weights under the network's own names, and what is needed to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..checkpoints.encoder import read_metadata
from ..data.config import ViewConfig
from ..models.factory import code_of
from ..utils.io import write_atomically
from .classifier import ClassifierConfig, build_classifier
from .config import FinetuneConfig


class SavedClassifier(NamedTuple):
    """A network in evaluation mode, its classes, and how its input is prepared."""

    module: nn.Module
    classes: tuple[str, ...]
    view: ViewConfig
    in_chans: int


def save_classifier(
    weights: Mapping[str, Tensor], path: Path, config: FinetuneConfig, classes: Sequence[str], step: int
) -> None:
    """Write a classifier, atomically."""
    model, data = config.model, config.data
    known = {
        "model": model.model,
        "stages": model.stages,
        "in_chans": model.in_chans,
        "image_size": data.image_size,
        "crop": data.crop,
        "flip": data.flip,
        "mean": data.mean,
        "std": data.std,
        "classes": list(classes),
        "step": step,
    }
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    content = safetensors.torch.save(own, {"sparkmim": json.dumps(known)})
    write_atomically(path, lambda file: file.write(content))


def load_classifier(path: Path) -> SavedClassifier:
    """Read a classifier.

    Raises:
        ValueError: if there is no such file, or it is of something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no classifier {path}; wanted is what `sparkmim finetune` leaves in its run folder")
    known = json.loads(read_metadata(path).get("sparkmim", "{}"))
    if "classes" not in known:
        raise ValueError(f"{path} is not a classifier of `sparkmim finetune`")
    config = ClassifierConfig(model=known["model"], stages=tuple(known["stages"]), in_chans=known["in_chans"])
    with code_of(config.model):
        module = build_classifier(config, len(known["classes"])).module
    try:
        module.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise ValueError(f"{path} does not fit {known['model']} as it is now: {reason}") from error
    view = ViewConfig(
        image_size=tuple(known["image_size"]),
        crop=known["crop"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )
    return SavedClassifier(module.eval(), tuple(known["classes"]), view, known["in_chans"])
