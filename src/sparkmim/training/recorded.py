"""A run's recorded configuration, validated before anything is made of it: a folder may come from anybody."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.metadata import MOST_CHANNELS, MOST_PIXELS, largest_side
from ..checkpoints.run_folder import RunFolder, read_checkpoint
from ..data.sources.address import SEPARATOR, is_fetched
from ..models.factory import is_registered
from ..utils.fields import flag, require_type, show, validate
from ..utils.io import parse_json, require_honest_archive, require_utf8
from ..utils.specs import absolute_spec
from ..utils.text import printable
from ..utils.trust import Untrusted, names_code, require_trust
from .config import ConfigField, Configuration

MOST: Mapping[str, int] = {
    "workers": max(64, 4 * (os.cpu_count() or 1)),
    "max_pixels": MOST_PIXELS,
    "in_chans": MOST_CHANNELS,
    "decoder_width": 2**14,
    "batch_size": 2**20,
    "pictures": 10_000,
    "cache_gb": 1_000,
    "repeats": 1_000,
    "epochs": 10**9,
}
"""Largest values that a file may set by itself; a user may choose any."""


LOOSE: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "sparkmim": (lambda value: isinstance(value, str), "a version"),
    "recipe": (lambda value: isinstance(value, str), "a name"),
    "task": (lambda value: isinstance(value, str), "the name of a command"),
    "processes": (lambda value: type(value) is int and 1 <= value <= 2**20, "a number of processes"),
    "images": (lambda value: isinstance(value, str), "a description"),
}
"""What a configuration records beside its groups."""


ARGUMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "output": (lambda value: isinstance(value, (str, Path)) and str(value) != "", "a folder"),
    "recipe": (lambda value: value is None or isinstance(value, str), "a name or FILE.py:FUNCTION"),
    "resume": (lambda value: isinstance(value, (str, Path)), "auto, never, or a checkpoint file"),
    "plan": (lambda value: isinstance(value, bool), "True or False"),
    "chosen": (lambda value: value is None or isinstance(value, Mapping), "fields by name"),
    "after_step": (lambda value: value is None or callable(value), "a function of the number of steps done"),
    "trust": (lambda value: isinstance(value, bool), "True or False"),
}
"""What each argument of a public function that trains must be."""


def require_arguments(**given: Any) -> None:
    """Validate the arguments of a public function that trains, before any work.

    Raises:
        ValueError: naming the argument, what it takes, and what it is.
    """
    for name, value in given.items():
        valid, expected = ARGUMENTS[name]
        if not valid(value):
            raise ValueError(f"{name} takes {expected}, not {reprlib.repr(value)}")


def require_sound_run(
    kind: type[Configuration], output: str | Path, resume: str, chosen: Mapping[str, Any], *, trust: bool
) -> None:
    """Validate what the run in a folder, or the checkpoint that is to be resumed, records; see
    :func:`require_sound_record`.

    Args:
        kind: of the configuration that is wanted.
        output: the run folder, perhaps new.
        resume: "auto", "never", or a checkpoint file.
        chosen: fields that the user has set, by flat name.
        trust: run the code that is recorded.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    run = RunFolder(output)
    require_utf8(run.root, "--output")
    recorded = run.read_config()
    if recorded is not None:
        require_sound_record(kind, recorded, run.config, chosen, trust=trust)
        _require_images_here(kind, recorded, run.config, chosen, trust=trust)
    if resume not in ("auto", "never"):
        path = Path(resume).expanduser()
        if recorded is None or path.exists():  # the folder may have trained on from it since
            found = config_in(path)
            require_sound_record(kind, found, path, chosen, trust=trust)
            _require_images_here(kind, found, path, chosen, trust=trust)


def config_in(path: Path) -> Any:
    """Return the configuration that a checkpoint records, without reading its tensors where that can be avoided.

    Raises:
        ValueError: if the file is not a checkpoint.
    """
    require_honest_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        text = state["config"]
    except Exception:  # of the older format, or no checkpoint: this says which
        text = read_checkpoint(path)["config"]
    try:
        return parse_json(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of sparkmim: its configuration is not JSON ({error})") from error


def require_sound_record(
    kind: type[Configuration],
    recorded: Any,
    path: Path,
    chosen: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
) -> None:
    """Validate a recorded configuration: types, ranges, sizes that a machine can bear, and the code that it names.

    Fields that are missing or unknown are for :meth:`Configuration.from_dict` to refuse.

    Args:
        kind: of the configuration.
        recorded: as `config.json` has it.
        path: of the file.
        chosen: fields that the user has set, by flat name: code of the same files and modules is trusted.
        trust: run the code that is recorded.

    Raises:
        ValueError: naming the file, the field and the value (:class:`~sparkmim.utils.trust.Untrusted` for code).
    """
    chosen = chosen or {}
    if not isinstance(recorded, dict):
        raise ValueError(f"{path} was not written by sparkmim: it holds a {type(recorded).__name__}")
    for name, (valid, expected) in LOOSE.items():
        if name in recorded and not valid(recorded[name]):
            raise ValueError(f"{path} cannot be used: its {name} is {reprlib.repr(recorded[name])}, not {expected}")
    named = [code for value in chosen.values() if (code := _code_of(value)) is not None]
    groups = {name: group for name, group in recorded.items() if isinstance(group, dict)}
    fields = list(kind.describe())  # without the settings of plug-ins, which are not imported yet
    for field in fields:
        if field.setting.kind in ("code", "teacher", "images"):
            for group in groups.values():  # wherever it stands: plug-ins are looked up by name alone
                _require_known_code(field, group.get(field.name), path, chosen.get(field.flat), named, trust=trust)
    if groups.get("model", {}).keys() <= {field.name for field in fields if field.group == "model"}:
        for field in fields:
            group = groups.get(field.group, {})
            if field.name in group and not (field.setting.resumable and field.flat in chosen):
                _require_sound_value(field, group[field.name], path)


def _require_known_code(
    field: ConfigField, value: Any, path: Path, own: Any, named: Sequence[str], *, trust: bool
) -> None:
    """Raise for code that a field records, unless the user's own choice for the field takes its place."""
    spec = None if value is None else _code_of(value)
    if spec is None or (field.name == "model" and (own is not None or is_registered(spec))):
        return
    home = spec.rpartition(":")[0]
    if home.endswith(".py") and not Path(home).exists():
        return  # nothing can run, and what is said then is how to go on with a file that has moved
    if own is not None and path.suffix == ".pt" and spec.rpartition(":")[2] == str(own).rpartition(":")[2]:
        return  # of a checkpoint, a plug-in whose file has moved; see config_of_checkpoint
    role = "network" if field.name == "model" else field.name.replace("_", " ")
    require_trust(spec, role, path, trust=trust, named=named, remedy=f"{flag(field.flat)} {value}")


def _require_images_here(
    kind: type[Configuration], recorded: Mapping[str, Any], path: Path, chosen: Mapping[str, Any], *, trust: bool
) -> None:
    """Raise for images that a run would fetch when it is resumed, unless the user names them or trusts the file.

    Raises:
        Untrusted: with the address, and what to add to the command.
    """
    groups = [group for group in recorded.values() if isinstance(group, dict)]
    for field in kind.describe():
        if trust or field.setting.kind != "images" or chosen.get(field.flat) is not None:
            continue
        for address in (group.get(field.name) for group in groups):
            if isinstance(address, str) and is_fetched(address):
                raise Untrusted(
                    f"{path} names the images {printable(address)!r}, and they would be fetched on the file's word "
                    f"alone. If you trust where the file is from, add --trust (in Python trust=True), or name them "
                    f"yourself: {flag(field.flat)} {printable(address)}"
                )


def recorded_value(recorded: Mapping[str, Any], group: str, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a value of a recorded configuration that has not been validated; None unless it is of a kind."""
    values = recorded.get(group)
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, kind) and not isinstance(found, bool) else None


def names_unknown_code(kind: type[Configuration], output: Path, *, resumed: bool = False) -> bool:
    """Return whether the run in a folder can only be used with `--trust`, or by naming its code again.

    Args:
        kind: of its configuration.
        output: the folder.
        resumed: it is to be resumed, for which its images are read.
    """
    run = RunFolder(output)
    recorded = run.read_config() or {}
    try:
        require_sound_record(kind, recorded, run.config)
        if resumed:
            _require_images_here(kind, recorded, run.config, {}, trust=False)
    except Untrusted:
        return True
    return False


def _code_of(value: Any) -> str | None:
    """Return the code that a value names: a network or plug-in, or the class before `://` of an address."""
    spec = str(value).partition(SEPARATOR)[0]
    return absolute_spec(spec) if names_code(spec) else None


def _require_sound_value(field: ConfigField, value: Any, path: Path) -> None:
    value = tuple(value) if isinstance(value, list) else value
    try:
        require_type(field.name, value, field.type, replace(field.setting, per_axis=False))  # numbers are not expanded
        validate({field.name: value}, {field.name: field.setting})
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    most = largest_side(value) if field.name == "image_size" else MOST.get(field.name)
    if most is None or value is None:
        return
    if any(part > most for part in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(
            f"{path} asks for {flag(field.flat)} {show(value)}, and a file may ask for {most:,} at most by itself"
            + (f"; choose with {flag(field.flat)}" if field.setting.resumable else "")
        )
