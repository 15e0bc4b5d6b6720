"""Resume a run from its folder, or from a checkpoint file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

from ..checkpoints.run_folder import UNREADABLE, BrokenCheckpoint, RunFolder, identity, read_checkpoint
from ..data.sources.base import ImageSource, fingerprint
from ..utils.devices import pick_device
from ..utils.fields import flag
from ..utils.io import parse_json, read_json
from ..utils.text import counted
from .config import Configuration, differences
from .schedule import learning_rate, weight_decay

KindT = TypeVar("KindT", bound=Configuration)

PROCESSES = "processes"
"""Key of `config.json` and of checkpoints: the processes that trained together. Older ones do not have it."""

TEACHER = "teacher_weights"
"""Key of `config.json` that identifies the teacher of a distillation."""

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
        unless_done: is raised unless the run is done: it is asked for more epochs, and nothing else.
    """

    run: RunFolder
    recipe: str
    config: KindT
    recorded: Mapping[str, Any]
    unless_done: ValueError | None = None

    def go_on_longer(self, state: Mapping[str, Any] | None) -> list[str]:
        """Return how the schedule goes on, in a text, if the run is asked for more epochs than it was begun with.

        Args:
            state: of the newest checkpoint; None if it is not that from which the run continues.

        Raises:
            ValueError: if it is asked for more, and not done.
        """
        if self.unless_done is None:
            return []
        steps = _steps_planned(self.run)
        if state is None or steps is None or state["step"] != steps:
            raise self.unless_done
        values, before = self.config.flat(), float(self.recorded["schedule"]["epochs"])
        after, schedule = values["epochs"], cast(Any, self.config).schedule
        longer, warmup = round(steps * after / before), round(steps * values["warmup_epochs"] / before)
        decays = values["weight_decay"], values["weight_decay_end"]
        ends = (steps - 1, steps), (steps, longer)
        rates = [learning_rate(step, of, warmup, values["lr"], schedule) for step, of in ends]
        found = [weight_decay(step, of, *decays) for step, of in ends]
        return [
            f"this run was done after {counted(before, 'epoch')}, and goes on to {after:g}: learning rate and weight "
            f"decay are those of a schedule of {counted(after, 'epoch')} from here on, {rates[1]:.3g} instead of "
            f"{rates[0]:.3g} and "
            f"{found[1]:.3g} instead of {found[0]:.3g}, without another warm-up; what the shorter run has left in "
            f"{self.run.root} is written anew"
        ]

    def parts(self) -> Parts:
        """Return how its steps were divided."""
        accumulate = self.recorded["run"]["accumulate"]
        return Parts(accumulate, processes_of(self.recorded, self.run.environment))

    def require_same_images(self, here: Mapping[str, str]) -> None:
        """Raise unless the images are those that the run began with, each set by its :func:`fingerprint_of`.

        Raises:
            ValueError: with what differs.
        """
        for what, description in here.items():
            there = self.recorded.get(what)
            if there != description and what == TEACHER:
                raise ValueError(
                    f"{self.run.root} was begun with another teacher ({there} there, {description} here, a digest of "
                    "its weights and its input). Give it the same one, or use another --output"
                )
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
    weights_remedy: str,
    task: str | None = None,
    describes: Callable[[Mapping[str, Any]], bool] = lambda chosen: "model" in chosen,
) -> RecordedRun[KindT] | None:
    """Return the run that a folder holds, None if it holds none, or nothing yet of a run that is described anew.

    Args:
        run: the folder.
        kind: of the run's configuration.
        resume: "never" refuses a folder that holds a run.
        recipe: that is asked for, if one is.
        chosen: fields that are asked for, by flat name.
        weights_remedy: how to start from the weights of such a run.
        task: that is asked for, None for pretraining.
        describes: returns whether fields are enough to begin a run by; a folder without a checkpoint is then begun
            anew.

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
    newest = run.list_checkpoints()[-1:]
    try:
        name = recorded["recipe"]
        config = kind.from_dict(recorded)
    except (KeyError, ValueError) as error:
        if not newest and describes(chosen):
            return None
        version = recorded["sparkmim"]
        raise ValueError(
            f"{run.config} was written by sparkmim {version} and cannot be continued with this one: {error}"
        ) from error
    settings = type(config).settings({**config.flat(), **chosen})
    unlike = differences(config.flat(), chosen, settings)
    if recipe not in (None, name):
        unlike.insert(0, f"recipe: {name} there, {recipe} asked for")
    if unlike and not newest:  # nothing is trained yet
        described = describes(chosen)
        if recipe not in (None, name) and not described:
            raise ValueError(
                f"{run.root} holds a run of recipe {name} that has no checkpoint yet. To begin it by {recipe}, give "
                "the whole command again, or use another --output"
            )
        return None if described else RecordedRun(run, name, config.replace(chosen), recorded)
    if unlike:
        more = "epochs" in chosen and chosen["epochs"] > config.flat()["epochs"]
        alone = more and all(line.startswith("epochs:") for line in unlike)
        longer = ", with learning rate and decay as the schedule of so many epochs has them there" * any(
            line.startswith("epochs:") for line in unlike
        )
        fixed = [name for name in chosen if settings[name].shapes_model and config.flat().get(name) != chosen[name]]
        continued = (
            ""
            if fixed
            else f", or continues from that step under these settings{longer} with --resume {quoted(newest[0])}"
        )
        refusal = ValueError(
            f"{run.root} holds a run of another configuration ({'; '.join(unlike)}). Give the same settings to "
            f"continue it (--output alone is enough), or use another --output: a run there begins with its weights by "
            f"{weights_remedy.replace('RUN', quoted(run.root))}{continued}"
        )
        if not alone or resume != "auto":
            raise refusal
        return RecordedRun(run, name, config.replace(chosen), recorded, refusal)
    return RecordedRun(run, name, config.replace(chosen), recorded)


def _steps_planned(run: RunFolder) -> int | None:
    """Return how many steps a run was to take, None if its folder does not say."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return int(read_json(run.plan)["steps"])
    return None


def processes_of(recorded: Mapping[str, Any], environment: Path) -> int:
    """Return how many processes trained together.

    Args:
        recorded: content of `config.json`, or of a checkpoint.
        environment: `environment.json` of the run, which says it for older ones.
    """
    if PROCESSES in recorded:
        return int(recorded[PROCESSES])
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return int(read_json(environment)[PROCESSES])
    return 1


def parts_of_checkpoint(path: str, state: Mapping[str, Any], config: Configuration) -> Parts:
    """Return how the steps of a checkpoint's run were divided.

    Args:
        path: of the checkpoint, in its run's folder where older ones record the processes.
        state: its content.
        config: under which it was written.
    """
    folder = RunFolder(Path(path).expanduser().absolute().parent.parent)
    return Parts(config.flat()["accumulate"], processes_of(state, folder.environment))


def same_parts(config: KindT, before: Parts, chosen: Mapping[str, Any], processes: int) -> tuple[KindT, list[str]]:
    """Return the configuration that computes each step in the same parts as before, if so many processes can.

    Args:
        config: of the run that is resumed.
        before: how its steps were computed.
        chosen: fields that are asked for; `accumulate` among them decides.
        processes: that train together now.

    Returns:
        It, and a warning if the parts differ.

    Raises:
        ValueError: if the processes cannot share the images of a step.
    """
    run: Any = config.run  # type: ignore[attr-defined]
    batch, parts = run.batch_size, before.accumulate * before.processes
    accumulate = run.accumulate
    fitting = [n for n in range(1, batch // processes + 1) if batch % (n * processes) == 0]
    if not fitting:
        numbers = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise ValueError(
            f"{counted(processes, 'process', 'processes')} cannot share the {batch} images of each step of this run; "
            f"use one of {numbers}"
        )
    if "accumulate" not in chosen:
        accumulate = next((n for n in fitting if n * processes >= parts), fitting[-1])
    elif accumulate not in fitting:
        raise ValueError(
            f"--accumulate {accumulate} times {processes} process{'es' * (processes > 1)} does not divide the {batch} "
            f"images of each step of this run; use one of {', '.join(map(str, fitting))}"
        )
    now = Parts(accumulate, processes)
    config = config.replace({"accumulate": accumulate})
    synchronized = pick_device(run.device).type == "cuda"
    there, here = (p.describe(batch, synchronized) for p in (before, now))
    if there == here:
        return config, []
    return config, [
        f"from here on steps are computed in other parts ({here} now, {there} before): batch norm and random layers, "
        "if the network has any, compute other numbers than in an uninterrupted run"
    ]


class Parts(NamedTuple):
    """How the images of a step are divided: among processes, each of which takes them in several turns."""

    accumulate: int
    processes: int

    def describe(self, batch_size: int, synchronized: bool) -> str:
        """Return the number of parts in words, and how many images batch norm sees together.

        Args:
            batch_size: images of a step.
            synchronized: batch norm computes its statistics over all processes.
        """
        parts = self.accumulate * self.processes
        together = batch_size // (self.accumulate if synchronized else parts)
        return f"{parts} of {batch_size // parts}, batch norm over {together}"


def quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def network_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field that names the network in what `config.json` recorded, empty if there is none."""
    model = recorded.get("model")
    return {"model": model["model"]} if isinstance(model, dict) and "model" in model else {}


def missing_file(spec: Any) -> str | None:
    """Return the file of `FILE.py:NAME`, or of an address of such a class, if it does not exist."""
    path, found, _ = str(spec).partition(".py:")
    return f"{path}.py" if found and not Path(f"{path}.py").is_file() else None


def require_code_files(run: RunFolder, named: Mapping[str, Any]) -> None:
    """Raise unless the files of a recorded run's network and plug-ins are where they were.

    Args:
        run: the folder.
        named: fields that name code, by flat name, as recorded.

    Raises:
        ValueError: naming the file, and how to resume with one that has moved.
    """
    for name, spec in named.items():
        path = missing_file(spec)
        if path is not None:
            newest = [f"--resume {quoted(path)}" for path in run.list_checkpoints()[-1:]]
            remedy = " ".join([*newest, f"{flag(name)} FILE.py:{str(spec).partition('.py:')[2]}"])
            raise ValueError(
                f"{run.config} names {path}, which does not exist. Put it back, or resume in another --output with "
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
    try:
        recorded = parse_json(state["config"])
    except ValueError as error:
        raise ValueError(f"{path} is a damaged checkpoint: its configuration cannot be read ({error})") from error
    if not isinstance(recorded, dict):
        raise ValueError(f"{path} is {not_this_kind}")
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


def newest_state(run: RunFolder) -> tuple[dict[str, Any] | None, list[Path], list[str]]:
    """Return the newest checkpoint that can be read, None if there is none yet, those that cannot, and warnings."""
    newest = run.newest_checkpoint()
    if newest is None:
        return None, [], []
    warnings = [
        f"{path.name} cannot be read ({error}); continuing from the older {newest.path.name}, and keeping it as "
        f"{path.name}{UNREADABLE}"
        for path, error in newest.unreadable.items()
    ]
    return newest.state, list(newest.unreadable), warnings


def named_state(path: str, run: RunFolder) -> tuple[dict[str, Any], bool, list[str]]:
    """Return the checkpoint that the user has named, or what the folder has trained from it since.

    The same command, given again by a scheduler, would else go back each time and never come to its end.

    Returns:
        The state, whether the folder goes back to it, and warnings.
    """
    file = Path(path).expanduser().absolute()
    try:
        newest = run.newest_checkpoint()
    except BrokenCheckpoint:  # the file takes their place
        newest = None
    trained = None if newest is None else newest.state
    gone = not file.exists() and trained is not None and trained.get("origin_file") == str(file)
    if not gone:  # else the folder has kept newer ones only
        state = read_checkpoint(file)
        state |= {"origin": identity(state), "origin_file": str(file)}
    if newest is not None and (gone or newest.state.get("origin") == state["origin"]):
        said = (
            f"{run.root} was resumed from {path} before; continuing with its newest checkpoint {newest.path.name}. To "
            "go back once more, use another --output"
        )
        return newest.state, False, [said]
    return state, True, []


def fingerprint_of(source: ImageSource | None) -> str:
    """Return the number of some images and a digest of their names."""
    return "none" if source is None else f"{len(source)} ({fingerprint(source)})"
