"""Resume a run from its folder, or from a checkpoint file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..checkpoints.run_folder import RunFolder
from ..data.sources.base import ImageSource, fingerprint
from ..utils.fields import flag
from .config import Configuration, differences

KindT = TypeVar("KindT", bound=Configuration)

TASK = "task"
"""Key of `config.json` that says what a run is for; it is recorded for all but pretraining."""


@dataclass(frozen=True)
class RecordedRun(Generic[KindT]):
    """A run that was begun.

    Attributes:
        run: its folder.
        recipe: its name.
        config: with the choices that may change.
        recorded: all that `config.json` says.
    """

    run: RunFolder
    recipe: str
    config: KindT
    recorded: Mapping[str, Any]

    def require_same_images(self, here: Mapping[str, str]) -> None:
        """Raise unless the images are those that the run began with, each set by its :func:`fingerprint_of`.

        Raises:
            ValueError: with what differs.
        """
        for what, description in here.items():
            there = self.recorded.get(what)
            if there != description:
                raise ValueError(
                    f"{self.run.root} was trained on other images ({what}: {there} there, {description} here, by "
                    "number and a digest of their names). Give it the same folder, or use another --output"
                )


def recorded_run(
    run: RunFolder,
    kind: type[KindT],
    resume: str,
    recipe: str | None,
    chosen: Mapping[str, Any],
    task: str | None = None,
) -> RecordedRun[KindT] | None:
    """Return the run that a folder holds, None if it holds none.

    Args:
        run: the folder.
        kind: of the run's configuration.
        resume: "never" refuses a folder that holds a run.
        recipe: that is asked for, if one is.
        chosen: fields that are asked for, by flat name.
        task: that is asked for, None for pretraining.

    Raises:
        ValueError: if it is a run of another kind or version, or what is asked for differs and may not.
    """
    recorded = run.read_config()
    if recorded is None:
        return None
    if resume == "never":
        raise ValueError(f"{run.root} holds a run already, and --resume never does not touch it; use another --output")
    if recorded.get(TASK) != task:
        raise ValueError(f"{run.root} holds a run of `sparkmim {recorded.get(TASK, 'pretrain')}`; use another --output")
    try:
        name = recorded["recipe"]
        config = kind.from_dict(recorded)
    except (KeyError, ValueError) as error:
        version = recorded["sparkmim"]
        raise ValueError(
            f"{run.config} was written by sparkmim {version} and cannot be continued with this one: {error}"
        ) from error
    settings = type(config).settings({**config.flat(), **chosen})
    unlike = differences(config.flat(), chosen, settings)
    if recipe not in (None, name):
        unlike.insert(0, f"recipe: {name} there, {recipe} asked for")
    if unlike:
        raise ValueError(
            f"{run.root} holds a run of another configuration ({'; '.join(unlike)}). Give the same settings to "
            f"continue it (--output alone is enough), or use another --output"
        )
    return RecordedRun(run, name, config.replace(chosen), recorded)


def require_plugin_files(run: RunFolder, plugins: Mapping[str, Any]) -> None:
    """Raise unless the files of a recorded run's plug-ins are where they were.

    Args:
        run: the folder.
        plugins: fields that name plug-ins, by flat name, as recorded.

    Raises:
        ValueError: naming the file, and how to resume with one that has moved.
    """
    for name, spec in plugins.items():
        path, found, rest = str(spec).partition(".py:")
        if found and not Path(f"{path}.py").is_file():
            newest = [f"--resume {path}" for path in run.list_checkpoints()[-1:]]
            remedy = " ".join([*newest, f"{flag(name)} FILE.py:{rest}"])
            raise ValueError(
                f"{run.config} names {path}.py, which does not exist. Put it back, or resume in another --output with "
                f"the file that has moved: {remedy}"
            )


def config_of_checkpoint(
    path: str, state: Mapping[str, Any], kind: type[KindT], not_this_kind: str, chosen: Mapping[str, Any]
) -> KindT:
    """Return the configuration under which a checkpoint was written, with plug-ins where their files are now.

    Args:
        path: of the checkpoint.
        state: its content.
        kind: of the configuration that is wanted.
        not_this_kind: what it is if its run was of another kind, and what can be done with that.
        chosen: fields that are asked for, by flat name; a plug-in of a file that has moved is the same one.

    Raises:
        ValueError: if it was, or the configuration does not fit this version.
    """
    recorded = json.loads(state["config"])
    required = kind.required_groups()
    known = {field.name for field in kind.describe() if field.group == "model"}
    alike = recorded.get("model", {}).keys() <= known  # some tasks have the groups of a pretraining
    if not (alike and required <= recorded.keys() <= required | kind.optional_groups()):
        raise ValueError(f"{path} is {not_this_kind}")
    for name, there in kind.plugins_of(recorded).items():
        here = chosen.get(name, there)
        if ".py:" in str(there) and ".py:" in here and there.rpartition(":")[2] == here.rpartition(":")[2]:
            group = next(group for group, values in recorded.items() if name in values)
            recorded[group][name] = here
    return kind.from_dict(recorded)


def newest_state(run: RunFolder) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest checkpoint that can be read, None if there is none yet, and warnings for the user."""
    newest = run.newest_checkpoint()
    if newest is None:
        return None, []
    state, path = newest
    broken = [other.name for other in run.list_checkpoints() if other.name > path.name]
    warning = f"{', '.join(broken)} cannot be read; continuing from the older {path.name}"
    return state, [warning] * bool(broken)


def fingerprint_of(source: ImageSource | None) -> str:
    """Return the number of some images and a digest of their names."""
    return "none" if source is None else f"{len(source)} ({fingerprint(source)})"
