"""`sparkmim pretrain`: from what the user asks for to a finished run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..data.seeding import keyed_seed
from ..evaluation.evaluators import KnnMonitor
from ..models.masking import visible_patches
from ..models.spark import SparK
from ..training.compile import COMPUTATION
from ..training.loop import Outcome
from ..training.progress import tell
from ..training.resume import described
from ..training.run import agreed, carry_out, launch, tell_plan
from ..training.schedule import steps_of
from ..utils.devices import device_name
from .config import PretrainConfig
from .evaluators import find_monitor
from .model import build_model
from .prepare import Preparation, prepare
from .task import Pretraining

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
    say: Callable[[str], None] = tell,
) -> Outcome | None:
    """Pretrain a network, or continue to.

    Args:
        output: the run folder.
        recipe: a name of :mod:`sparkmim.recipes`, or `FILE.py:FUNCTION`; "auto" for a new run if not given.
        resume: "auto" continues the run that is in the folder, if there is one; "never" refuses if there is one; a
            checkpoint file is continued from.
        plan: measure a few steps, say how long the run will take, and write nothing.
        chosen: fields of the configuration by name, see :class:`~sparkmim.pretraining.config.PretrainConfig`; they go
            before what the recipe says.
        after_step: called with the number of steps done after each one.
        say: receives the lines for the user.

    Returns:
        How the run ended, None for a plan.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot go on.
    """
    ready = prepare(output, recipe, resume, chosen or {}, int(os.environ.get("WORLD_SIZE", 1)))
    monitor = find_monitor(ready.config)
    fabric = launch(ready.config.run)
    config = agreed(ready.config, fabric)
    ready = ready._replace(config=config)
    torch.manual_seed(keyed_seed(config.run.seed, INITIAL))
    # A run that goes on has its weights in the checkpoint and needs no file to start from.
    model = build_model(config.model if ready.state is None else replace(config.model, init="none"))
    lines = describe(ready, model, monitor, fabric)
    tell_plan(lines, fabric, say)
    if ready.state is None and config.model.execution == "packed":
        check_backbone(model, config)
    training = Pretraining(
        config, model, ready.source, ready.held_out, monitor, ready.run, fabric, ready.state, after_step
    )
    record = {
        "recipe": ready.recipe,
        "images": described(ready.source),
        "held_out": described(ready.held_out),
        **config.to_dict(),
    }
    return carry_out(training, record, lines, ready.warnings, ready.found, ready.state, plan=plan, say=say)


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


def describe(ready: Preparation, model: SparK, monitor: KnnMonitor | None, fabric: Fabric) -> dict[str, str]:
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
    millions, trained = f"{encoder / 1e6:.1f}", f"{reached / 1e6:.1f}"
    return {
        "recipe": Path(ready.recipe).name,
        "network": f"{Path(config.model.model).name}, {millions} million parameters"
        + (f", of which {trained} are trained" if trained != millions else "")
        + f"; decoder and mask embeddings {others / 1e6:.1f} million"
        + (f"; stochastic depth up to {config.model.drop_path:g}" if config.model.drop_path else "")
        + ("" if config.model.init == "none" else f"; starting from {Path(config.model.init).name}"),
        "images": f"{len(ready.source):,} ({where})"
        + (f"; {len(ready.held_out):,} held out" if ready.held_out is not None else ""),
        "views": f"{data.image_size[0]} x {data.image_size[1]} pixels, {patches} patches of "
        f"{model.patch_size[0]} x {model.patch_size[1]}, {patches - shown} hidden",
        "batch": f"{run.batch_size} images"
        + (f" ({', '.join(parts)}: {micro} at a time)" if parts else "")
        + (f"; batch norm's statistics {norm}" if fabric.world_size > 1 else ""),
        "length": f"{_epochs(schedule.epochs)} = {steps:,} steps, {_epochs(schedule.warmup_epochs)} of warm-up",
        "optimiser": f"{config.optimizer.optimizer}, learning rate up to {config.optimizer.lr:.3g}, weight decay "
        f"{config.optimizer.weight_decay:g} to {config.optimizer.weight_decay_end:g}, betas "
        f"{config.optimizer.betas[0]:g} {config.optimizer.betas[1]:g}"
        + (f", gradients clipped at {config.optimizer.clip:g}" if config.optimizer.clip else ""),
        "computation": f"{device_name(fabric.device)}, {run.precision}{COMPUTATION[run.compile]}, "
        f"{config.model.execution}, {data.workers} worker{'s' * (data.workers != 1)}",
        **({} if monitor is None else {"monitor": f"{monitor}, every {run.monitor_every:g} epochs"}),
        "steps": f"{steps}",
    }


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'s' * (number != 1)}"
