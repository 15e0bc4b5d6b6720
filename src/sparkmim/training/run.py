"""Carrying out a run that is prepared: the processes, the folder, the training."""

from __future__ import annotations

import atexit
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, TypeVar
from warnings import filterwarnings

import torch
from lightning_fabric import Fabric

from ..checkpoints.run_folder import Contents, RunFolder
from ..utils.devices import device_name, pick_device
from ..utils.distributed import gather, part
from ..utils.io import write_json
from .config import LoopConfig, TrainingConfig
from .errors import disk_failed
from .lock import claim
from .loop import Outcome, Training
from .precision import MixedPrecision

Config = TypeVar("Config", bound=TrainingConfig)


def launch(config: LoopConfig) -> Fabric:
    """Fabric on this machine, or as one of torchrun's processes."""
    device = pick_device(config.device)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:  # it is no error, and comes of 1x1 convolutions on images whose channels are the last axis
        filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        atexit.register(part)
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        plugins=[] if config.precision == "32" else [MixedPrecision(config.precision, device.type)],
    )
    fabric.launch()
    return fabric


def agreed(config: Config, fabric: Fabric) -> Config:
    """The configuration of all processes. A recipe chooses the micro-batches by free memory, which may differ between
    them: that of the least counts."""
    most = fabric.all_reduce(torch.tensor(config.run.accumulate, device=fabric.device), reduce_op="max")
    assert isinstance(most, torch.Tensor)
    return config.replace({"accumulate": int(most)})


def tell_plan(lines: Mapping[str, str], fabric: Fabric, say: Callable[[str], None]) -> None:
    """Show what is going to be done: label and text."""
    if fabric.is_global_zero:
        for label, text in lines.items():
            if label != "steps":  # which are told under length
                say(f"{label:<11}  {text}")


def carry_out(
    training: Training,
    record: Mapping[str, Any],
    lines: Mapping[str, str],
    warnings: Sequence[str],
    found: Contents,
    state: Mapping[str, Any] | None,
    *,
    plan: bool,
    say: Callable[[str], None],
) -> Outcome | None:
    """Train, or tell how long it will take.

    Args:
        training: to carry out.
        record: for the folder's `config.json`.
        lines: the plan, label to text.
        warnings: for the user.
        found: in the folder when the run was prepared.
        state: of the checkpoint to continue from.
        plan: measure a few steps, tell time and memory, and write nothing.
        say: receives the lines for the user.

    Returns:
        How the run ended, None for a plan.

    Raises:
        ValueError: if another process trains in the folder or has done so meanwhile, or it cannot be written.
        RunStopped: if the run cannot go on.
    """
    fabric, trainer = training.fabric, training.trainer
    if plan:
        measured = training.estimate()
        if fabric.is_global_zero:
            for line in measured:
                say(line)
        return None
    all_found = gather(fabric, found)  # all have looked into the folder before the first one writes to it
    with ExitStack() as until_end:
        if fabric.is_global_zero:
            try:
                until_end.enter_context(claim(training.run))
                check_unchanged(training.run, all_found)
                begin(training.run, record, lines, fabric)
                if state is not None:
                    config = json.dumps(training.config.to_dict())
                    training.run.begin_from({**state, "config": config}, training.config.run.keep_checkpoints)
            except OSError as error:
                raise disk_failed(training.run, error, "at the beginning") from error
            for warning in warnings:
                say(warning)
            if trainer.step == trainer.steps:
                say(f"all {trainer.steps} steps of this run are done; nothing is left to do")
            elif trainer.step:
                say(f"continuing after step {trainer.step} of {trainer.steps}")
        fabric.barrier()
        return training.train()


def check_unchanged(run: RunFolder, found: Sequence[Contents]) -> None:
    """Whether a folder, which is claimed now, still holds what each process found when it prepared the run.

    Raises:
        ValueError: if another run was there between.
    """
    now = run.contents()
    if any(then != now for then in found):
        raise ValueError(
            f"{run.root} was changed by another run after this one had looked into it; give the command again, to go "
            f"on from what is there now, or use another --output"
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
