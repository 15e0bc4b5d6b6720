"""A fine-tuned network as a file: its weights under the network's own names, and what is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor, nn

from ..checkpoints.encoder import network_metadata, read_network_metadata, save_weights
from ..data.config import ViewConfig, files_of
from ..models.factory import code_of
from .config import CLASSIFICATION, NetworkConfig, TransferConfig
from .tasks.base import TransferTask, find_task


class SavedModel(NamedTuple):
    """A network in evaluation mode, its task, what it knows of the targets, and how its input is prepared."""

    module: nn.Module
    task: TransferTask[Any]
    targets: dict[str, Any]
    view: ViewConfig
    in_chans: int


def save_model(
    weights: Mapping[str, Tensor], path: Path, config: TransferConfig, targets: Mapping[str, Any], step: int
) -> None:
    """Write a network, atomically.

    Args:
        weights: its state dict.
        path: of the file.
        config: of its run.
        targets: see :meth:`~sparkmim.transfer.tasks.base.TransferTask.describe_targets`.
        step: of its run.
    """
    model = config.model
    if model.task == CLASSIFICATION:
        known = dict(targets)
    else:
        known = {"task": model.task, "settings": config.to_dict().get("task_settings", {}), "targets": targets}
    metadata = network_metadata(
        model.model, model.stages, model.in_chans, config.data, step=step, levels=model.levels, **known
    )
    save_weights(weights, path, metadata)


def load_model(path: Path) -> SavedModel:
    """Read a fine-tuned network.

    Raises:
        ValueError: if there is no such file, or it is of something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no model {path}; expected what `sparkmim finetune` leaves in its run folder")
    known = read_network_metadata(path)
    if "classes" not in known and "task" not in known:
        raise ValueError(f"{path} is not a model of `sparkmim finetune`")
    name = known.get("task", CLASSIFICATION)
    kind = find_task(name)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in known.get("settings", {}).items()}
    task = kind(kind.settings_type(**settings))
    targets = known["targets"] if "targets" in known else {"classes": known["classes"]}
    config = NetworkConfig(
        task=name,
        model=known["model"],
        stages=tuple(known["stages"]),
        levels=known.get("levels"),
        in_chans=known["in_chans"],
    )
    with code_of(config.model):
        module = task.build(config, targets).module
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
        **asdict(files_of(known)),
    )
    return SavedModel(module.eval(), task, targets, view, known["in_chans"])
