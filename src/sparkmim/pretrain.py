"""`sparkmim pretrain`: from what the user asks for to a finished run."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from .atomic import write_json
from .build import build_model
from .data import keyed_seed
from .device import device_name, pick_device
from .masking import visible_patches
from .prepare import Preparation, described, prepare
from .spark import SparK
from .train import Outcome, PretrainConfig, Pretraining
from .train.failures import disk_failed
from .train.precision import MixedPrecision
from .train.schedule import steps_of

INITIAL = 5
"""Key of the randomness of the initial weights."""


def pretrain(
    output: str | Path,
    *,
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    chosen: Mapping[str, Any] | None = None,
    after_step: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome | None:
    """Pretrain a network, or continue to.

    Args:
        output: the run folder.
        recipe: a name of :mod:`sparkmim.recipes`, or `FILE.py:FUNCTION`; "auto" for a new run if not given.
        resume: "auto" continues the run that is in the folder, if there is one; "never" refuses if there is one; a
            checkpoint file is continued from.
        plan: measure a few steps, say how long the run will take, and write nothing.
        chosen: fields of the configuration by name, see :class:`~sparkmim.train.PretrainConfig`; they go before what
            the recipe says.
        after_step: called with the number of steps done after each one.
        say: receives the lines for the user.

    Returns:
        How the run ended, None for a plan.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot go on.
    """
    ready = prepare(output, recipe, resume, chosen or {}, int(os.environ.get("WORLD_SIZE", 1)))
    config = ready.config
    fabric = launch(config, pick_device(config.run.device))
    torch.manual_seed(keyed_seed(config.run.seed, INITIAL))
    # A run that goes on has its weights in the checkpoint and needs no file to start from.
    model = build_model(config.model if ready.state is None else replace(config.model, init="none"))
    lines = describe(ready, model, fabric)
    if fabric.is_global_zero:
        for label, text in lines.items():
            if label != "steps":  # which are told under length
                say(f"{label:<11}  {text}")
    if ready.state is None and config.model.execution == "packed":
        check_backbone(model, config)
    training = Pretraining(config, model, ready.source, ready.held_out, ready.run, fabric, ready.state, after_step)
    if plan:
        measured = training.estimate()
        if fabric.is_global_zero:
            for line in measured:
                say(line)
        return None
    fabric.barrier()  # all have looked into the folder before the first one writes to it
    if fabric.is_global_zero:
        try:
            begin(ready, lines, fabric)
        except OSError as error:
            raise disk_failed(ready.run, error, "at the beginning") from error
        trainer = training.trainer
        for warning in ready.warnings:
            say(warning)
        if trainer.step == trainer.steps:
            say(f"all {trainer.steps} steps of this run are done; nothing is left to do")
        elif trainer.step:
            say(f"continuing after step {trainer.step} of {trainer.steps}")
    fabric.barrier()
    return training.train()


def launch(config: PretrainConfig, device: torch.device) -> Fabric:
    """Fabric on this machine, or as one of torchrun's processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    precision = config.run.precision
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        plugins=[] if precision == "32" else [MixedPrecision(precision, device.type)],
    )
    fabric.launch()
    return fabric


def check_backbone(model: SparK, config: PretrainConfig) -> None:
    """Whether the network works on visible patches: a wrong number would not be noticed later.

    Raises:
        ValueError: if it does not, with what failed.
    """
    report = model.backbone.check(config.model.patch_size, modes=["train"])
    if not report.passed:
        raise ValueError(
            f"{config.model.model} does not work on visible patches:\n{report}\n"
            f"`sparkmim check` shows the same; --execution zero-out trains any network, without what makes SparK good"
        )


def describe(ready: Preparation, model: SparK, fabric: Fabric) -> dict[str, str]:
    """The plan: label to text."""
    config = ready.config
    data, run, schedule = config.data, config.run, config.schedule
    steps = steps_of(schedule.epochs, len(ready.source), run.batch_size)
    grid = model.grid_shape(data.image_size)
    patches, shown = math.prod(grid), visible_patches(grid, config.model.mask_ratio)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    reached = encoder - sum(model.encoder.get_parameter(name).numel() for name in model.unreached)
    others = sum(p.numel() for p in model.parameters()) - encoder
    micro = run.batch_size // (run.accumulate * fabric.world_size)
    parts = [f"{run.accumulate} x accumulated"] * (run.accumulate > 1) + [f"{fabric.world_size} processes"] * (
        fabric.world_size > 1
    )
    where = Path(data.data).name if data.data else "built-in photographs"
    norm = "synchronised" if fabric.world_size > 1 and fabric.device.type == "cuda" else "of each process"
    return {
        "recipe": Path(ready.recipe).name,
        "network": f"{Path(config.model.model).name}, {encoder / 1e6:.1f} million parameters"
        + (f", of which {reached / 1e6:.1f} are trained" if reached < encoder else "")
        + f"; decoder and mask embeddings {others / 1e6:.1f} million"
        + ("" if config.model.init == "none" else f"; starting from {Path(config.model.init).name}"),
        "images": f"{len(ready.source):,} ({where})"
        + (f"; {len(ready.held_out):,} held out" if ready.held_out is not None else ""),
        "views": f"{data.image_size[0]} x {data.image_size[1]} pixels, {patches} patches of "
        f"{model.patch_size[0]} x {model.patch_size[1]}, {patches - shown} hidden",
        "batch": f"{run.batch_size} images"
        + (f" ({', '.join(parts)}: {micro} at a time)" if parts else "")
        + (f"; batch norm's statistics {norm}" if fabric.world_size > 1 else ""),
        "length": f"{schedule.epochs:g} epochs = {steps:,} steps, {schedule.warmup_epochs:g} epochs of warm-up",
        "optimiser": f"{config.optimizer.optimizer}, learning rate up to {config.optimizer.lr:.3g}, weight decay "
        f"{config.optimizer.weight_decay:g} to {config.optimizer.weight_decay_end:g}, betas "
        f"{config.optimizer.betas[0]:g} {config.optimizer.betas[1]:g}",
        "computation": f"{device_name(fabric.device)}, {run.precision}{', compiled' if run.compile else ''}, "
        f"{config.model.execution}, {data.workers} worker{'s' * (data.workers != 1)}",
        "steps": f"{steps}",
    }


def begin(ready: Preparation, lines: Mapping[str, str], fabric: Fabric) -> None:
    """Make the run folder, or clean up the one that is there."""
    run = ready.run
    run.root.mkdir(parents=True, exist_ok=True)
    run.clean()
    record = {
        "sparkmim": version("sparkmim"),
        "recipe": ready.recipe,
        "images": described(ready.source),
        "held_out": described(ready.held_out),
        **ready.config.to_dict(),
    }
    environment = {
        "device": device_name(fabric.device),
        "processes": str(fabric.world_size),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in ("sparkmim", "torch", "torchvision", "timm", "lightning-fabric", "pillow")},
    }
    write_json(run.config, record)  # first: with it the folder is a run, and can be continued
    write_json(run.plan, dict(lines))
    write_json(run.environment, environment)
