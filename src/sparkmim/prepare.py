"""What a pretraining is to do, and whether it can: everything that can be found wrong is found here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .build import code_of, is_function, load_backbone
from .continuing import config_of, described, newest_state, recorded_run
from .data import ImageSource, builtin_photographs, find_images, held_out
from .data.statistics import first_readable
from .device import pick_device
from .masking import visible_patches
from .recipes import Situation, find_recipe
from .train import PretrainConfig, RunFolder, read_checkpoint
from .train.config import Configuration, TrainingConfig, differences, known_fields, show
from .train.memory import free_memory
from .train.ranges import check_values
from .train.run_folder import Contents

PARAMETERS = frozenset(
    {"model", "stages", "in_chans", "decoder_width", "decoder_block", "densify_norm", "hierarchy", "shared_mask_token"}
    | {"optimizer"}
)
"""Settings that decide which parameters a model has, and what is remembered of them."""

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
            made[name] = str(Path(made[name]).expanduser().absolute())
    for name in ("init", "encoder"):
        if made.get(name, "none") not in ("none", "timm"):
            made[name] = str(Path(made[name]).expanduser().absolute())
    if ".py:" in made.get("model", ""):
        made["model"] = absolute_spec(made["model"])
    return made


def absolute_spec(spec: str) -> str:
    """`FILE.py:FUNCTION` with the whole path of the file, so that it is found from any folder."""
    path, _, function = spec.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{function}"


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
    everything = load_images(chosen.get("data"))
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
        return everything, find_images(val_data, "--val-data")
    return held_out(everything, val_share, seed) if val_share else (everything, None)


def sources(config: PretrainConfig) -> tuple[ImageSource, ImageSource | None]:
    """The images of a configuration: to train on, and held out."""
    return split(load_images(config.data.data), config.data.val_data, config.data.val_share, config.run.seed)


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
