"""Run a training of any kind: prepare it, build its task, train in its folder."""

from __future__ import annotations

import atexit
import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from warnings import filterwarnings

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from ..checkpoints.run_folder import Contents, RunFolder
from ..data.seeding import keyed_seed
from ..utils.devices import choose_algorithms, device_name, pick_device
from ..utils.distributed import (
    WAIT,
    by_first_process,
    destroy_process_group,
    gather,
    largest,
    local_processes,
    processes_here,
)
from ..utils.fields import WORDS, flag
from ..utils.io import write_json
from ..utils.logging import log
from ..utils.text import counted
from .alike import facts_of, require_alike
from .config import LoopConfig, TrainingConfig
from .errors import disk_failed
from .estimate import estimate
from .lock import lock
from .loop import Outcome, TrainingLoop
from .precision import MixedPrecision
from .prepare import prepare
from .resume import PROCESSES, TASK
from .signals import StoppedEarly, StopRequest, name_of, number_of
from .step import require_enough_values
from .task import ConfigT, DataT, Preparation, TrainingKind
from .trackers import require_tracker

TrainingConfigT = TypeVar("TrainingConfigT", bound=TrainingConfig)


def train(
    kind: TrainingKind[ConfigT, DataT],
    output: str | Path,
    *,
    recipe: str | None,
    resume: str,
    plan: bool,
    chosen: Mapping[str, Any],
    after_step: Callable[[int], None] | None,
) -> Outcome | None:
    """Train a model, or resume a run.

    Args:
        kind: of training.
        output: the run folder.
        recipe: a name, or `FILE.py:FUNCTION`; the kind's default for a new run if None.
        resume: "auto" continues the run in the folder, if there is one; "never" refuses if there is one; a checkpoint
            file is continued from.
        plan: measure a few steps, log how long the run will take, and write nothing.
        chosen: fields of the configuration by flat name; they take precedence over the recipe.
        after_step: called with the number of steps done after each one.

    Returns:
        How the run ended, None for a plan.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot continue.
    """
    stop = StopRequest()
    if plan:  # there is nothing to save
        _plan_or_train(kind, output, recipe, resume, plan, chosen, after_step, stop)
        return None
    with stop:
        try:
            stop.at_once = processes_here() == 1  # until there is something to save; several leave together
            return _plan_or_train(kind, output, recipe, resume, plan, chosen, after_step, stop)
        except StoppedEarly as early:
            return Outcome(0, 0, None, {}, str(early))


def _plan_or_train(
    kind: TrainingKind[ConfigT, DataT],
    output: str | Path,
    recipe: str | None,
    resume: str,
    plan: bool,
    chosen: Mapping[str, Any],
    after_step: Callable[[int], None] | None,
    stop: StopRequest,
) -> Outcome | None:
    """Carry out :func:`train` while `stop` listens."""
    processes = processes_here()
    ready = prepare(kind, output, recipe, resume, chosen, processes)
    require_tracker(ready.config.run.log)
    stop.limit(None if plan else ready.config.run.time_limit)
    fabric = launch(ready.config.run)
    leave_together(stop, fabric)
    images = kind.fingerprints(ready.data)
    require_alike(fabric, facts_of(ready, {**images, **kind.watched()}, processes))
    ready = replace(ready, config=agree(ready.config, fabric))
    torch.manual_seed(keyed_seed(ready.config.run.seed, kind.weights_stream))
    task = kind.build(ready, fabric)
    lines = kind.describe(ready, task)
    for label, text in lines.items():
        if label != "steps":  # which the length tells
            log.info(f"{label:<11}  {text}")
    if ready.found.config is not None:
        named = named_by_the_run(ready, chosen)
        if named:
            log.info(f"{'from':<11}  {ready.run.config}: {named}")
    kind.check(ready, task)
    loop = TrainingLoop(task, ready.state, after_step, stop)
    require_enough_values(loop.trainer)
    if plan:
        for line in estimate(loop):
            log.info(line)
        return None
    recorded = {} if kind.recorded_as is None else {TASK: kind.recorded_as}
    record = {
        **recorded,
        "recipe": ready.recipe,
        PROCESSES: fabric.world_size,
        **images,
        **ready.config.to_dict(),
    }
    return _train_in_folder(loop, ready, record, lines)


def leave_together(stop: StopRequest, fabric: Fabric) -> None:
    """Stop in all processes if one was asked to while it prepared: the others would wait for it.

    Raises:
        StoppedEarly: in all processes, with the signal's name.
    """
    (asked,) = largest(fabric, [number_of(stop.signal)])
    if asked:
        if fabric.world_size > 1:
            stop.hold()
        raise StoppedEarly(name_of(asked))


def named_by_the_run(ready: Preparation[Any, Any], chosen: Mapping[str, Any]) -> str:
    """Return images and weights that a run's folder names and this command does not, as flags with whole paths.

    Whoever resumes a folder from elsewhere is to see what is read.
    """
    values = ready.config.flat()
    settings = type(ready.config).settings(values)
    kinds = ("images",) if ready.state is not None else ("images", "weights")
    return " ".join(
        f"{flag(name)} {shlex.quote(str(value))}"
        for name, value in values.items()
        if settings[name].kind in kinds and name not in chosen and value is not None and value not in WORDS
    )


def _train_in_folder(
    loop: TrainingLoop, ready: Preparation[Any, Any], record: Mapping[str, Any], lines: Mapping[str, str]
) -> Outcome:
    """Lock the run folder, write its configuration, and train.

    Raises:
        ValueError: if another process trains in the folder or has done so since it was prepared, or it cannot be
            written.
        RunStopped: if the run cannot continue.
        OtherProcessStopped: if the first process raised one of these.
    """
    fabric, trainer = loop.fabric, loop.trainer
    all_found = gather(fabric, ready.found)  # all have looked into the folder before the first one writes to it
    with ExitStack() as until_end:

        def open_folder() -> None:
            try:
                until_end.enter_context(lock(loop.run))
                require_unchanged(loop.run, all_found)
                begin(loop.run, record, lines, fabric)
                loop.run.set_aside(ready.unreadable)
                if ready.state is not None and ready.goes_back:
                    config = json.dumps(loop.config.to_dict())
                    begun = {**ready.state, "config": config, PROCESSES: fabric.world_size}
                    loop.run.save_checkpoint(begun, trainer.step, loop.config.run.keep_checkpoints)
            except OSError as error:
                raise disk_failed(loop.run, error, "at the beginning") from error
            for warning in ready.warnings:
                log.warning(warning)
            if trainer.step == trainer.steps:
                log.info(f"this run is done ({counted(trainer.steps, 'step')}); nothing is left to do")
            elif trainer.step:
                log.info(f"continuing after step {trainer.step} of {trainer.steps}")

        def keep_folder() -> bool:
            """Fill the folder again if it was moved or removed meanwhile: a checkpoint without it cannot be resumed."""
            if loop.run.config.exists():
                return False
            log.warning(f"{loop.run.root} was moved or emptied while this run trained in it; continuing there anew")
            until_end.enter_context(lock(loop.run))
            begin(loop.run, record, lines, fabric)
            return True

        loop.keep_folder = keep_folder
        by_first_process(fabric, open_folder)
        if ready.state is not None:
            ready.state.clear()  # the model and the optimizer have it
        return loop.train()


def launch(config: LoopConfig) -> Fabric:
    """Launch Fabric on this machine, or as one of torchrun's processes."""
    device = pick_device(config.device)
    choose_algorithms(device, measure=config.cudnn_benchmark)
    processes = processes_here()
    local = local_processes()
    if processes > 1:  # harmless: it comes of 1x1 convolutions on images whose channels are the last axis
        filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        atexit.register(destroy_process_group)
    # Named, or Fabric takes the variables of a job of SLURM, LSF or Kubeflow for a description of this run.
    environment = TorchElasticEnvironment() if processes > 1 else LightningEnvironment()
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=processes // local,
        strategy=DDPStrategy(timeout=WAIT) if processes > 1 else "auto",
        plugins=[environment, *([] if config.precision == "32" else [MixedPrecision(config.precision, device.type)])],
    )
    fabric.launch()
    return fabric


def agree(config: TrainingConfigT, fabric: Fabric) -> TrainingConfigT:
    """Return the configuration of all processes.

    A recipe chooses the micro-batches by free memory, which may differ between processes: the one with the least memory
    decides.
    """
    most = fabric.all_reduce(torch.tensor(config.run.accumulate, device=fabric.device), reduce_op="max")
    assert isinstance(most, torch.Tensor)
    return config.replace({"accumulate": int(most)})


def require_unchanged(run: RunFolder, found: Sequence[Contents]) -> None:
    """Raise unless a folder, which is locked now, still holds what each process found when it prepared the run.

    Raises:
        ValueError: if another run was there meanwhile.
    """
    now = run.contents()
    if any(then != now for then in found):
        raise ValueError(
            f"{run.root} was changed by another run after this one had looked into it; give the command again, to "
            f"continue from what is there now, or use another --output"
        )


def begin(run: RunFolder, record: Mapping[str, Any], lines: Mapping[str, str], fabric: Fabric) -> None:
    """Fill the run folder, or clean up what is there."""
    run.clean()
    environment = {
        "device": device_name(fabric.device),
        "processes": str(fabric.world_size),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in ("sparkmim", "torch", "torchvision", "timm", "lightning-fabric", "pillow")},
    }
    # First the configuration: with it the folder is a run, and can be continued.
    write_json(run.config, {"sparkmim": version("sparkmim"), **record})
    write_json(run.plan, dict(lines))
    write_json(run.environment, environment)
