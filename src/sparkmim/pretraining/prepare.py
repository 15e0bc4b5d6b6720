"""Resolve and validate a pretraining config before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.run_folder import Contents, RunFolder, read_checkpoint
from ..data.sources.address import open_source
from ..data.sources.base import ImageSource, held_out
from ..data.statistics import first_readable
from ..models.factory import code_of, load_backbone
from ..models.masking import visible_patches
from ..training.memory import free_memory
from ..training.prepare import check_named_checkpoint, check_output, check_size, check_training, normalise
from ..training.ranges import check_values
from ..training.resume import config_of, described, newest_state, recorded_run
from ..utils.devices import pick_device
from ..utils.specs import absolute_spec
from .config import PretrainConfig
from .recipes import Situation, find_recipe

FINETUNED = "a checkpoint of a fine-tuning; start from the weights of its run: --init RUN/model.safetensors"
"""What `--resume` is told of the checkpoint of a run of the other kind."""


class Preparation(NamedTuple):
    """A run that can begin: everything checked, nothing written."""

    recipe: str
    config: PretrainConfig
    source: ImageSource
    held_out: ImageSource | None
    run: RunFolder
    found: Contents  # of its folder
    state: dict[str, Any] | None  # the checkpoint to continue from
    warnings: list[str]  # for the user


def prepare(
    output: str | Path, recipe: str | None, resume: str, chosen: Mapping[str, Any], processes: int
) -> Preparation:
    """Find out what is to be done, and whether it can be.

    Which state a run begins from:

    1. `resume` names a file: that checkpoint; in a new folder under its settings, but for `chosen` ones, unless there
       is a `recipe`.
    2. The folder holds a run with checkpoints: its newest one that can be read.
    3. The folder holds a run without: the beginning, under the recorded configuration.
    4. Otherwise: the beginning, from the weights that `init` names.

    Raises:
        ValueError: naming what is wrong and what to do.
    """
    chosen = normalise(chosen, PretrainConfig)
    check_values(chosen)
    if recipe is not None and ".py:" in recipe:
        recipe = absolute_spec(recipe)
    run = RunFolder(output)
    found = run.contents()
    there = recorded_run(run, PretrainConfig, resume, recipe, chosen)
    state = None if resume in ("auto", "never") else read_checkpoint(Path(resume).expanduser())
    warnings: list[str] = []
    if there is not None:
        name, config = there.recipe, there.config
        source, other = sources(config)
        there.check_images({"images": described(source), "held_out": described(other)})
        if state is None:
            state, warnings = newest_state(run)
    elif state is not None and recipe is None:
        name = f"of {Path(resume).name}"
        config = config_of(resume, state, PretrainConfig, FINETUNED).replace(chosen)
        source, other = sources(config)
    else:
        name = recipe or "auto"
        config, source, other = resolve(name, chosen, processes)
    if state is not None and resume != "auto":
        recorded = config_of(resume, state, PretrainConfig, FINETUNED)
        check_named_checkpoint(resume, recorded, config, "--init RUN/encoder.safetensors")
    validate(config, source, processes)
    if there is None:
        check_output(run.root, config.flat())
    return Preparation(name, config, source, other, run, found, state, warnings)


def resolve(
    recipe: str, chosen: Mapping[str, Any], processes: int
) -> tuple[PretrainConfig, ImageSource, ImageSource | None]:
    """The configuration that a recipe makes of a situation, and its images."""
    device = pick_device(chosen.get("device", "auto"))
    with code_of(recipe):
        make = find_recipe(recipe)
    if "model" not in chosen:
        raise ValueError("which network? --model takes a timm name (resnet50), FILE.py:FUNCTION or MODULE:FUNCTION")
    in_chans = chosen.get("in_chans", 3)
    if in_chans < 1:
        raise ValueError(f"--in-chans is a number of channels, at least 1, not {in_chans}")
    init = chosen.get("init", "none")
    if init not in ("none", "timm") and not Path(init).is_file():
        raise ValueError(f"there is no file {init}; --init takes none, timm, or a file of weights")
    everything = open_source(chosen.get("data"))
    source, _ = split(everything, chosen.get("val_data"), chosen.get("val_share", 0.0), chosen.get("seed", 0))
    first_readable(source, in_chans)
    with code_of(chosen["model"]):
        backbone = load_backbone(chosen["model"], chosen.get("stages", ()), chosen.get("in_chans"))
    if "image_size" in chosen:  # before a recipe runs the network on it
        check_size(chosen["image_size"], backbone.resolve_patch_size(chosen.get("patch_size")))
    if init == "timm" and not (getattr(backbone.module, "pretrained_cfg", None) or {}).get("tag"):
        raise ValueError(f"timm has no weights for {chosen['model']}; use --init none or a file")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    situation = Situation(
        source=source,
        backbone=backbone,
        device=device,
        memory_bytes=free_memory(device, local),
        cores=max(1, (os.cpu_count() or 1) // local),
        processes=processes,
        chosen=chosen,
    )
    with code_of(recipe if ".py:" in recipe else chosen["model"]):
        try:
            config = make(situation)
        except OSError as error:
            if init != "timm":
                raise
            raise ValueError(
                f"timm's weights of {chosen['model']} cannot be had ({error}); without a connection give --init a file"
            ) from error
    if not isinstance(config, PretrainConfig):
        raise ValueError(f"recipe {recipe} returns a {type(config).__name__}, not a PretrainConfig")
    config = config.replace(chosen)
    return config, *sources(config)


def split(
    everything: ImageSource, val_data: str | None, val_share: float, seed: int
) -> tuple[ImageSource, ImageSource | None]:
    """Images to train on and images held out."""
    if val_data is not None and val_share:
        raise ValueError("--val-data and --val-share are two ways to say the same; use one")
    if val_data is not None:
        return everything, open_source(val_data, option="--val-data")
    return held_out(everything, val_share, seed) if val_share else (everything, None)


def sources(config: PretrainConfig) -> tuple[ImageSource, ImageSource | None]:
    """The images of a configuration: to train on, and held out."""
    return split(open_source(config.data.data), config.data.val_data, config.data.val_share, config.run.seed)


def validate(config: PretrainConfig, source: ImageSource, processes: int) -> None:
    """Find what would go wrong later.

    Raises:
        ValueError: naming the thing, the value and the remedy.
    """
    check_values(config.flat())
    data, model = config.data, config.model
    check_size(data.image_size, model.patch_size)
    visible_patches([s // p for s, p in zip(data.image_size, model.patch_size, strict=True)], model.mask_ratio)
    check_training(config, len(source), model.in_chans, processes)
