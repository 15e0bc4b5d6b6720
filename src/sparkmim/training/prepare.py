"""Resolve and validate a training of any kind before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.run_folder import RunFolder
from ..data.sources.address import absolute_address
from ..data.storage.cache import limit_cache
from ..utils.fields import flag, normalize, require_type, show, validate
from ..utils.specs import absolute_spec, is_function
from ..utils.text import counted, verb
from .config import ConfigField, Configuration, TrainingConfig, differences, require_known
from .recorded import recorded_value
from .resume import (
    Parts,
    config_of_checkpoint,
    missing_file,
    named_state,
    network_of,
    newest_state,
    parts_of_checkpoint,
    recorded_run,
    require_code_files,
    same_parts,
)
from .task import ConfigT, DataT, Preparation, TrainingKind


def prepare(
    kind: TrainingKind[ConfigT, DataT],
    output: str | Path,
    recipe: str | None,
    resume: str,
    chosen: Mapping[str, Any],
    processes: int,
) -> Preparation[ConfigT, DataT]:
    """Resolve what a run is to do, and validate that it can be done.

    The state that a run begins from:

    1. `resume` names a file: that checkpoint; in a new folder under its configuration, but for `chosen` fields, unless
       there is a `recipe`.
    2. The folder holds a run with checkpoints: its newest one that can be read.
    3. The folder holds a run without: the beginning, under the recorded configuration.
    4. Otherwise: the beginning, from the weights that the configuration names.

    Args:
        kind: of training.
        output: the run folder.
        recipe: a name, or `FILE.py:FUNCTION`; the kind's default for a new run if None.
        resume: "auto", "never", or a checkpoint file.
        chosen: fields that the user has set, by flat name.
        processes: that train together.

    Raises:
        ValueError: naming what is wrong and what to do.
    """
    run = RunFolder(output)
    found = run.contents()
    there = run.read_config() or {}
    plugins = kind.config_type.plugins_of(there)
    if found.checkpoints or not kind.describes_a_run(chosen):
        require_code_files(run, {**network_of(there), **plugins})
    else:  # what the folder records is begun anew
        plugins = {name: spec for name, spec in plugins.items() if missing_file(spec) is None}
    named = {**plugins, **chosen}
    chosen = kind.complete(normalize_fields(chosen, kind.config_type.describe(named)), there)
    validate(chosen, kind.config_type.settings(named))
    kind.validate_values(chosen)
    limit_cache(chosen.get("cache_gb", recorded_value(there, "data", "cache_gb", (int, float))))
    if recipe is not None and ".py:" in recipe:
        recipe = absolute_spec(recipe)
    recorded = recorded_run(
        run, kind.config_type, resume, recipe, chosen, kind.weights_remedy, kind.recorded_as, kind.describes_a_run
    )
    state, goes_back = None, False
    unreadable: list[Path] = []
    warnings: list[str] = []
    if resume not in ("auto", "never"):
        state, goes_back, warnings = named_state(resume, run)
    before: Parts | None = None
    if recorded is not None:
        name, config = recorded.recipe, recorded.config
        data = kind.read_data(config)
        if state is None:
            state, unreadable, warnings = newest_state(run)
            warnings = [*warnings, *recorded.go_on_longer(state)]
        if state is not None:
            recorded.require_same_images(kind.fingerprints(data))
            before = recorded.parts()
    elif state is not None and recipe is None:
        name = f"of {Path(resume).name}"
        config = config_of_checkpoint(resume, state, kind.config_type, kind.not_this_kind, chosen)
        before = parts_of_checkpoint(resume, state, config)
        config = config.replace(chosen)
        data = kind.read_data(config)
    else:
        name = recipe or kind.default_recipe
        config, data = kind.resolve(name, chosen, processes)
        values = config.flat()
        config = config.replace(normalize_fields(values, kind.config_type.describe(values)))
    kind.require_effects(chosen, config)
    if before is not None:
        config, said = same_parts(config, before, chosen, processes)
        warnings = [*warnings, *said]
    if state is not None and resume != "auto":
        recorded_there = config_of_checkpoint(resume, state, kind.config_type, kind.not_this_kind, chosen)
        require_same_model(resume, recorded_there, config, kind.weights_remedy)
    validate(config.flat(), type(config).settings(config.flat()))
    kind.validate_values(config.flat())
    ready = Preparation(
        recipe=name,
        config=config,
        data=data,
        run=run,
        found=found,
        state=state,
        resume=resume,
        goes_back=goes_back,
        unreadable=unreadable,
        warnings=warnings,
    )
    kind.validate(ready, processes)
    if recorded is None:
        require_output_outside_images(run.root, config)
    return ready


def normalize_fields(chosen: Mapping[str, Any], fields: Iterable[ConfigField]) -> dict[str, Any]:
    """Return choices in the form in which a configuration records them: tuples, sizes per axis, absolute paths.

    Args:
        chosen: values by flat name.
        fields: all fields.

    Raises:
        ValueError: for an unknown name, a value of another type, or a size below 1.
    """
    described = {field.flat: field for field in fields}
    require_known(chosen, described)
    for name, value in chosen.items():
        require_type(name, value, described[name].type, described[name].setting)
    normalized = {name: normalize(name, value, described[name].setting) for name, value in chosen.items()}
    addresses = {
        name for name in normalized if described[name].setting.kind == "images" and normalized[name] is not None
    }
    return normalized | {name: absolute_address(normalized[name]) for name in addresses}


def require_same_model(path: str, recorded: Configuration, config: Configuration, weights_remedy: str) -> None:
    """Raise unless the checkpoint that `resume` names has the parameters of a configuration's model and optimizer.

    Args:
        path: of the checkpoint.
        recorded: the configuration under which it was written.
        config: of the run that is to continue from it.
        weights_remedy: how to start from the weights of its run alone.

    Raises:
        ValueError: with the settings that differ.
    """
    wanted = config.flat()
    settings = type(config).settings(wanted)
    moved = {"model"} if is_function(wanted["model"]) else set()  # a file may have moved
    shaping = {name: wanted[name] for name, field in settings.items() if field.shapes_model and name not in moved}
    unlike = differences(recorded.flat(), shaping, settings)
    if unlike:
        raise ValueError(
            f"{path} is the checkpoint of another model or optimizer ({'; '.join(unlike)}). Leave these settings to "
            f"it, or start from the weights of its run: {weights_remedy}"
        )


def require_effect(chosen: Mapping[str, Any], effects: Mapping[str, tuple[bool, str]]) -> None:
    """Raise for a setting of the user's that would change nothing.

    Args:
        chosen: fields that the user has set, by flat name.
        effects: for a field, whether it has an effect, and what it takes to have one.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    for name, (effective, remedy) in effects.items():
        if chosen.get(name) is not None and not effective:
            raise ValueError(f"{flag(name)} {show(chosen[name])} has no effect {remedy}")


def require_output_outside_images(output: Path, config: Configuration) -> None:
    """Raise if a run's own pictures would be taken for images when it is resumed.

    Raises:
        ValueError: naming the folder of images.
    """
    for field in type(config).describe(config.flat()):
        folder = config.flat()[field.flat] if field.setting.kind == "images" else None
        if folder is None or "://" in folder or not output.resolve().is_relative_to(Path(folder).resolve()):
            continue
        below = output.resolve().relative_to(Path(folder).resolve())
        if not any(part.startswith(".") for part in below.parts):  # hidden folders are skipped
            raise ValueError(
                f"--output {output} is in the folder of {flag(field.flat)} {folder}, and the run's pictures would be "
                "taken for its images; use an --output elsewhere"
            )


def validate_training(config: TrainingConfig, images: int, in_chans: int, processes: int) -> None:
    """Raise for what would go wrong later in a training of any kind.

    Raises:
        ValueError: naming the thing, the value and the remedy.
    """
    run, data = config.run, config.data
    if run.batch_size > images:
        raise ValueError(f"--batch-size {run.batch_size} is larger than the {images} images; use at most {images}")
    parts = run.accumulate * processes
    if parts > images:
        raise ValueError(
            f"{counted(images, 'image')} {verb(images, 'are')} too few for "
            f"{counted(processes, 'process', 'processes')} times --accumulate "
            f"{run.accumulate}; use fewer"
        )
    if run.batch_size % parts:
        among = (
            f"{processes} processes times --accumulate {run.accumulate}" if processes > 1 else f"--accumulate {parts}"
        )
        raise ValueError(
            f"--batch-size {run.batch_size} is not divisible by {among}; use "
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
