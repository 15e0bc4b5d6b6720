"""A fine-tuned network as a file: its weights under the network's own names, and what is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..checkpoints.encoder import network_metadata, save_weights
from ..checkpoints.metadata import read_network_metadata, require_room
from ..checkpoints.own_files import require_own_files
from ..checkpoints.run_folder import RunFolder
from ..checkpoints.weights import read_weights
from ..data.config import ViewConfig, files_of
from ..data.volumes.preparing import Preparation
from ..models.factory import code_of, is_registered
from ..training.config import LoopConfig
from ..utils.fields import validate_as
from ..utils.io import require_utf8
from ..utils.trust import names_code, require_trust
from .config import CLASSIFICATION, NetworkConfig, TransferConfig
from .tasks.base import TransferTask, find_task
from .tasks.classification import Classification

NEEDED = ("model", "stages", "in_chans", "image_size", "crop", "mean", "std")
"""What is recorded of every model."""


class SavedModel(NamedTuple):
    """A network in evaluation mode, its task, what it knows of the targets, and how its input is prepared."""

    module: nn.Module
    task: TransferTask[Any]
    targets: dict[str, Any]
    view: ViewConfig
    in_chans: int


def save_model(
    weights: Mapping[str, Tensor],
    path: Path,
    config: TransferConfig,
    settings: Mapping[str, Any],
    targets: Mapping[str, Any],
    step: int,
) -> None:
    """Write a network, atomically.

    Args:
        weights: its state dict.
        path: of the file.
        config: of its run.
        settings: of its task.
        targets: see :meth:`~sparkmim.transfer.tasks.base.TransferTask.describe_targets`.
        step: of its run.
    """
    model = config.model
    if model.task == CLASSIFICATION:
        known = dict(targets)
    else:
        known = {"task": model.task, "settings": dict(settings), "targets": targets}
        if targets.get("volumes") is not None:  # for whoever starts from these weights
            known["volumes"] = targets["volumes"]
    metadata = network_metadata(
        model.model, model.stages, model.in_chans, config.data, step=step, levels=model.levels, padded=True, **known
    )
    save_weights(weights, path, metadata)


def model_file(run: str | Path) -> Path:
    """Return the file of a fine-tuned network: that of a run's folder, or the one that is named."""
    path = Path(run).expanduser()
    return RunFolder(path).classifier if path.is_dir() else path


def load_for_prediction(
    run: str | Path,
    model: str | None,
    *,
    trust: bool,
    image_size: int | None,
    batch_size: int,
    workers: int,
    files: Mapping[str, Any],
) -> tuple[SavedModel, Path]:
    """Read the network of a run as :func:`load_model` does, with the view of images that is asked for; and its file.

    Args:
        run: folder of a fine-tuning run, or its `model.safetensors`.
        model: see :func:`load_model`.
        trust: likewise.
        image_size: pixels of each side of the view; that of the fine-tuning if None.
        batch_size: images at a time, validated.
        workers: processes that read images, validated.
        files: how they are read, where that differs; see :func:`~sparkmim.data.config.chosen_files`.

    Raises:
        ValueError: for an invalid setting, or as :func:`load_model`.
    """
    run = Path(run).expanduser()
    require_utf8(run, "--run")
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ViewConfig, workers=workers)
    if run.is_dir():
        require_own_files(run)
    path = model_file(run)
    saved = load_model(path, model, trust=trust)
    view = replace(saved.view, **files)
    if image_size is not None:
        view = replace(view, image_size=(image_size,) * len(view.image_size))
    return saved._replace(view=view), path


def load_model(path: Path, model: str | None = None, *, trust: bool = False) -> SavedModel:
    """Read a fine-tuned network.

    Args:
        path: of the file.
        model: the network, where the file names code; another place of the same code.
        trust: run the code of a network or a task that the file names.

    Raises:
        ValueError: if there is no such file, it is of something else, or it names code without `trust`.
    """
    if not path.is_file():
        raise ValueError(f"there is no model {path}; expected what `sparkmim finetune` leaves in its run folder")
    known = read_network_metadata(path)
    if "classes" not in known and "task" not in known:
        raise ValueError(f"{path} is not a model of `sparkmim finetune`")
    missing = [name for name in NEEDED if name not in known]
    if missing:
        raise ValueError(f"{path} is not a model of `sparkmim finetune`: it does not record its {', '.join(missing)}")
    name = known.get("task", CLASSIFICATION)
    if names_code(name):
        require_trust(name, "task", path, trust=trust)
    own = model or known["model"]
    if model is None and names_code(own) and not is_registered(own):
        require_trust(own, "network", path, trust=trust, remedy=f"--model {own}")
    own_targets = {key: known[key] for key in ("classes", "volumes") if key in known}
    targets = known.get("targets", own_targets)
    weights = read_weights(path).value
    _require_classes(targets.get("classes"), weights, path)
    if model is None:
        require_room(own, path)
    kind = find_task(name)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in known.get("settings", {}).items()}
    task = kind(kind.settings_type(**settings))
    config = NetworkConfig(
        task=name, model=own, stages=tuple(known["stages"]), levels=known.get("levels"), in_chans=known["in_chans"]
    )
    with code_of(config.model):
        if isinstance(task, Classification):  # older versions fine-tuned without the padding of the pretraining
            module = task.build(config, targets, padded=known.get("padded", False)).module
        else:
            module = task.build(config, targets).module
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise ValueError(f"{path} does not fit {own} as it is now: {reason}") from error
    view = ViewConfig(
        image_size=tuple(known["image_size"]),
        crop=known["crop"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        **asdict(files_of(known)),
    )
    return SavedModel(module.eval(), task, targets, view, known["in_chans"])


def recorded_volumes(saved: SavedModel, path: Path) -> Preparation | None:
    """Return how the volumes that a network was fine-tuned on were prepared, None for one of images.

    Raises:
        ValueError: if what the file records cannot be.
    """
    if saved.targets.get("volumes") is None:
        return None
    try:
        return Preparation.from_json(saved.targets["volumes"])
    except ValueError as error:
        raise ValueError(f"{path} records how volumes were prepared, and is damaged: {error}") from error


def _require_classes(classes: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise unless some tensor has a row for each class, before a network with as many outputs is built.

    Raises:
        ValueError: with the number of classes.
    """
    if classes is not None and not any(tensor.ndim and len(tensor) == len(classes) for tensor in weights.values()):
        raise ValueError(f"{path} is damaged: it records {len(classes)} classes, and has weights of another number")
