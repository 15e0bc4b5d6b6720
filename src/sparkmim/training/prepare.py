"""Validate a training of any kind before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.sources.address import absolute_address
from ..utils.specs import absolute_spec, is_function
from .config import Configuration, TrainingConfig, differences, known_fields, show

PARAMETERS = frozenset(
    {"model", "stages", "in_chans", "decoder_width", "decoder_block", "densify_norm", "hierarchy", "shared_mask_token"}
    | {"optimizer"}
)
"""Settings that decide which parameters a model has, and what is remembered of them."""


def check_named_checkpoint(path: str, recorded: Configuration, config: Configuration, weights: str) -> None:
    """Whether the checkpoint that `resume` names has the parameters of a configuration's model and optimiser.

    Args:
        path: of the checkpoint.
        recorded: the configuration under which it was written.
        config: that of the run that is to go on from it.
        weights: how to start from the weights of its run alone.

    Raises:
        ValueError: if not, with the settings that differ.
    """
    wanted = config.flat()
    shaping = PARAMETERS if not is_function(wanted["model"]) else PARAMETERS - {"model"}  # a file may have moved
    unlike = differences(recorded.flat(), {name: value for name, value in wanted.items() if name in shaping})
    if unlike:
        raise ValueError(
            f"{path} is the checkpoint of another model or optimiser ({'; '.join(unlike)}). Leave these settings to "
            f"it, or start from the weights of its run: {weights}"
        )


def normalise(chosen: Mapping[str, Any], kind: type[Configuration]) -> dict[str, Any]:
    """Choices in the form in which a configuration records them: tuples, sizes for each axis, absolute paths.

    Raises:
        ValueError: for a name that no field has, or a size that is none.
    """
    known_fields(chosen, kind)
    made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    for name in ("image_size", "patch_size"):
        if name in made:
            size = made[name]
            size = (size,) if isinstance(size, int) else tuple(size)
            made[name] = size * 2 if len(size) == 1 else size
            if any(s < 1 for s in size):
                raise ValueError(f"--{name.replace('_', '-')} {' '.join(map(str, size))} is not a number of pixels")
    for name in ("data", "val_data", "test_data", "monitor_data"):
        if made.get(name) is not None:
            made[name] = absolute_address(made[name])
    for name in ("init", "encoder"):
        if made.get(name, "none") not in ("none", "timm"):
            made[name] = str(Path(made[name]).expanduser().absolute())
    if ".py:" in made.get("model", ""):
        made["model"] = absolute_spec(made["model"])
    return made


def check_size(image_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Whether views divide into patches.

    Raises:
        ValueError: if not, with the sizes next to it that do.
    """
    if len(image_size) != len(patch_size):
        raise ValueError(f"--image-size takes one number or {len(patch_size)}, not {len(image_size)}")
    for name, size, patch in zip(("height", "width"), image_size, patch_size, strict=False):
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            use = f"{below} or {above}" if below else str(above)
            raise ValueError(f"image {name} {size} is not divisible by the patch size {patch}; use --image-size {use}")


def check_output(output: Path, config: Mapping[str, Any]) -> None:
    """Whether a run's own pictures would be taken for images when it is continued under a flat configuration.

    Raises:
        ValueError: if so.
    """
    for name in ("data", "val_data", "test_data", "monitor_data"):
        flag, folder = f"--{name.replace('_', '-')}", config.get(name)
        if folder is None or not output.resolve().is_relative_to(Path(folder).resolve()):
            continue
        below = output.resolve().relative_to(Path(folder).resolve())
        if not any(part.startswith(".") for part in below.parts):  # hidden folders are passed over
            raise ValueError(
                f"--output {output} is in the folder of {flag} {folder}, and the run's pictures would be taken for its "
                "images; use an --output elsewhere"
            )


def check_training(config: TrainingConfig, images: int, in_chans: int, processes: int) -> None:
    """Find what would go wrong later in a training of any kind.

    Raises:
        ValueError: naming the thing, the value and the remedy.
    """
    run, data = config.run, config.data
    if run.batch_size > images:
        raise ValueError(f"--batch-size {run.batch_size} is larger than the {images} images; use at most {images}")
    parts = run.accumulate * processes
    if parts > images:
        raise ValueError(
            f"{images} images are too few for {processes} process{'es' * (processes > 1)} times --accumulate "
            f"{run.accumulate}; use fewer"
        )
    if run.batch_size % parts:
        among = (
            f"{processes} processes times --accumulate {run.accumulate}" if processes > 1 else f"--accumulate {parts}"
        )
        raise ValueError(
            f"--batch-size {run.batch_size} does not divide by {among}; use "
            f"{min(run.batch_size // parts + 1, images // parts) * parts}, or another multiple of {parts}"
        )
    if config.schedule.warmup_epochs >= config.schedule.epochs:
        raise ValueError(
            f"--warmup-epochs {config.schedule.warmup_epochs:g} must be fewer than --epochs {config.schedule.epochs:g}"
        )
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != in_chans:
            raise ValueError(f"--{name} has {len(values)} values for {in_chans} channels; give one for each channel")
    if not 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1:
        raise ValueError(
            f"--crop-scale {show(data.crop_scale)} must be two shares, the smaller one first, above 0 and at most 1"
        )
