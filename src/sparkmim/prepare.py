"""What a pretraining is to do, and whether it can: everything that can be found wrong is found here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .build import load_backbone
from .data import ImageSource, builtin_photographs, find_images, held_out
from .data.decode import MODES
from .data.sources import fingerprint
from .masking import visible_patches
from .recipes import Situation, find_recipe
from .train import PretrainConfig, RunFolder, differences, read_checkpoint
from .train.memory import free_memory


class Preparation(NamedTuple):
    """A run that can begin: everything checked, nothing written."""

    recipe: str
    config: PretrainConfig
    source: ImageSource
    held_out: ImageSource | None
    run: RunFolder
    state: dict[str, Any] | None  # the checkpoint to continue from


def prepare(
    output: str | Path, recipe: str | None, resume: str, chosen: Mapping[str, Any], device: torch.device, processes: int
) -> Preparation:
    """Find out what is to be done, and whether it can be.

    Which state a run begins from:

    1. `resume` names a file: that checkpoint.
    2. The folder holds a run with checkpoints: its newest one that can be read.
    3. The folder holds a run without: the beginning, under the recorded configuration.
    4. Otherwise: the beginning, from the weights that `init` names.

    Raises:
        ValueError: naming what is wrong and what to do.
    """
    chosen = normalise(chosen)
    run = RunFolder(output)
    recorded = run.read_config()
    if recorded is not None and resume == "never":
        raise ValueError(f"{run.root} holds a run already, and --resume never does not touch it; use another --output")
    state = None if resume in ("auto", "never") else read_checkpoint(Path(resume))
    if recorded is not None:
        name = recorded["recipe"]
        config = PretrainConfig.from_dict(recorded)
        unlike = differences(config.flat(), chosen)
        if recipe not in (None, name):
            unlike.insert(0, f"recipe: {name} there, {recipe} asked for")
        if unlike:
            raise ValueError(
                f"{run.root} holds a run of another configuration ({'; '.join(unlike)}). Give the same settings to "
                f"continue it (--output alone is enough), or use another --output"
            )
        config = config.replace(chosen)
        source, other = sources(config)
        for what, images in (("images", source), ("held_out", other)):
            there, here = recorded[what], described(images)
            if there != here:
                raise ValueError(
                    f"{run.root} was trained on other {what.replace('_', '-')} images: {there} there, {here} here. "
                    "Give it the same folder, or use another --output"
                )
        if state is None:
            newest = run.newest_checkpoint()
            state = newest[0] if newest is not None else None
    else:
        name = recipe or "auto"
        config, source, other = resolve(name, chosen, device, processes)
    validate(config, source, processes)
    return Preparation(name, config, source, other, run, state)


def normalise(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Choices in the form in which they are recorded: sizes for each axis, absolute paths."""
    made = dict(chosen)
    for name in ("image_size", "patch_size"):
        if name in made:
            size = made[name]
            size = (size,) if isinstance(size, int) else tuple(size)
            made[name] = size * 2 if len(size) == 1 else size
            if any(s < 1 for s in size):
                raise ValueError(f"--{name.replace('_', '-')} {' '.join(map(str, size))} is not a number of pixels")
    for name in ("data", "val_data"):
        if made.get(name) is not None:
            made[name] = str(Path(made[name]).expanduser().absolute())
    if made.get("init", "none") not in ("none", "timm"):
        made["init"] = str(Path(made["init"]).expanduser().absolute())
    if ".py:" in made.get("model", ""):
        path, _, function = made["model"].rpartition(":")
        made["model"] = f"{Path(path).expanduser().absolute()}:{function}"
    return made


def resolve(
    recipe: str, chosen: Mapping[str, Any], device: torch.device, processes: int
) -> tuple[PretrainConfig, ImageSource, ImageSource | None]:
    """The configuration that a recipe makes of a situation, and its images."""
    make = find_recipe(recipe)
    if "model" not in chosen:
        raise ValueError("which network? --model takes a timm name such as resnet50, or FILE.py:FUNCTION")
    in_chans = chosen.get("in_chans", 3)
    if in_chans not in MODES:
        raise ValueError(f"images can be read as 1, 3 or 4 channels, not --in-chans {in_chans}")
    everything = load_images(chosen.get("data"))
    source, _ = split(everything, chosen.get("val_data"), chosen.get("val_share", 0.0), chosen.get("seed", 0))
    backbone = load_backbone(chosen["model"], chosen.get("stages", ()), in_chans)
    if chosen.get("init", "none") == "timm" and not (getattr(backbone.module, "pretrained_cfg", None) or {}).get("tag"):
        raise ValueError(f"timm has no weights for {chosen['model']}; use --init none or a file")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    situation = Situation(
        images=len(source),
        backbone=backbone,
        device=device,
        memory_bytes=free_memory(device, local),
        cores=max(1, (os.cpu_count() or 1) // local),
        processes=processes,
        chosen=chosen,
    )
    config = make(situation)
    if not isinstance(config, PretrainConfig):
        raise ValueError(f"recipe {recipe} returns a {type(config).__name__}, not a sparkmim.train.PretrainConfig")
    config = config.replace(chosen)
    return config, *sources(config)


def load_images(folder: str | None) -> ImageSource:
    """The images of a folder, or the built-in photographs."""
    return builtin_photographs() if folder is None else find_images(folder)


def split(
    everything: ImageSource, val_data: str | None, val_share: float, seed: int
) -> tuple[ImageSource, ImageSource | None]:
    """Images to train on and images held out."""
    if val_data is not None and val_share:
        raise ValueError("--val-data and --val-share are two ways to say the same; use one")
    if val_data is not None:
        return everything, find_images(val_data)
    return held_out(everything, val_share, seed) if val_share else (everything, None)


def sources(config: PretrainConfig) -> tuple[ImageSource, ImageSource | None]:
    """The images of a configuration: to train on, and held out."""
    return split(load_images(config.data.data), config.data.val_data, config.data.val_share, config.run.seed)


def described(source: ImageSource | None) -> str:
    """Number and digest of the names of some images."""
    return "none" if source is None else f"{len(source)} ({fingerprint(source)})"


def validate(config: PretrainConfig, source: ImageSource, processes: int) -> None:
    """Find what would go wrong later.

    Raises:
        ValueError: naming the thing, the value and the remedy.
    """
    run, data, model = config.run, config.data, config.model
    if not 0 < model.mask_ratio < 1:
        raise ValueError(f"--mask-ratio is the share of patches to hide, between 0 and 1, not {model.mask_ratio}")
    if len(data.image_size) != len(model.patch_size):
        raise ValueError(f"--image-size takes one number or {len(model.patch_size)}, not {len(data.image_size)}")
    for name, size, patch in zip(("height", "width"), data.image_size, model.patch_size, strict=False):
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            use = f"{below} or {above}" if below else str(above)
            raise ValueError(f"image {name} {size} is not divisible by the patch size {patch}; use --image-size {use}")
    visible_patches([s // p for s, p in zip(data.image_size, model.patch_size, strict=True)], model.mask_ratio)
    if run.batch_size < 1:
        raise ValueError(f"--batch-size {run.batch_size} is not a number of images")
    if run.batch_size > len(source):
        raise ValueError(
            f"--batch-size {run.batch_size} is larger than the {len(source)} images; use at most {len(source)}"
        )
    if run.accumulate < 1 or run.batch_size % (run.accumulate * processes):
        parts = f"{processes} processes times --accumulate {run.accumulate}"
        raise ValueError(f"--batch-size {run.batch_size} does not divide among {parts}")
    if config.schedule.epochs <= 0 or not 0 <= config.schedule.warmup_epochs < config.schedule.epochs:
        raise ValueError(
            f"--epochs {config.schedule.epochs:g} must be above 0 and above --warmup-epochs "
            f"{config.schedule.warmup_epochs:g}"
        )
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != model.in_chans:
            raise ValueError(f"--{name} has {len(values)} values for {model.in_chans} channels")
    if not 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1:
        raise ValueError(
            f"--crop-scale {data.crop_scale} must be two shares, the smaller one first, above 0 and at most 1"
        )
    if config.optimizer.lr <= 0:
        raise ValueError(f"--lr {config.optimizer.lr} must be above 0")
    for name in ("log_every", "keep_checkpoints", "pictures"):
        if getattr(run, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(run, name)}")
    if data.workers < 0:
        raise ValueError(f"--workers {data.workers} is negative")
