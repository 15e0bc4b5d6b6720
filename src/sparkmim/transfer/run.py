"""`sparkmim finetune`: from what the user asks for to a finished run."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..data.seeding import keyed_seed
from ..models.factory import code_of
from ..training.compile import COMPUTATION
from ..training.config import show
from ..training.loop import Outcome
from ..training.progress import tell
from ..training.resume import TASK as TASK_KEY
from ..training.run import agreed, carry_out, launch, tell_plan
from ..training.schedule import steps_of
from ..utils.devices import device_name
from .classifier import Classifier, build_classifier, check_image_size, load_weights
from .config import FinetuneConfig
from .layer_decay import layer_groups
from .prepare import TASK, Preparation, prepare
from .task import Finetuning

INITIAL = 8
"""Key of the randomness of the classifier's initial weights."""


def finetune(
    output: str | Path,
    *,
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    chosen: Mapping[str, Any] | None = None,
    after_step: Callable[[int], None] | None = None,
    say: Callable[[str], None] = tell,
) -> Outcome | None:
    """Train a classifier on labelled images from an encoder on, or continue to.

    Args:
        output: the run folder.
        recipe: a name of :mod:`sparkmim.transfer.recipes`, or `FILE.py:FUNCTION`; "small-data" for a new run
            if not given.
        resume: "auto" continues the run that is in the folder, if there is one; "never" refuses if there is one; a
            checkpoint file is continued from.
        plan: measure a few steps, say how long the run will take, and write nothing.
        chosen: fields of the configuration by name, see :class:`~sparkmim.transfer.config.FinetuneConfig`; they go
            before what the recipe says.
        after_step: called with the number of steps done after each one.
        say: receives the lines for the user.

    Returns:
        How the run ended, None for a plan. Its scores are in the folder's `results.json`.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot go on.
    """
    ready = prepare(output, recipe, resume, chosen or {}, int(os.environ.get("WORLD_SIZE", 1)))
    fabric = launch(ready.config.run)
    config, sets = agreed(ready.config, fabric), ready.sets
    ready = ready._replace(config=config)
    torch.manual_seed(keyed_seed(config.run.seed, INITIAL))
    with code_of(config.model.model):
        classifier = build_classifier(config.model, len(sets.train.classes))
    if ready.state is None and ready.encoder is not None:
        load_weights(classifier, ready.encoder)
    check_batch(classifier, config, fabric.world_size)
    lines = describe(ready, classifier, fabric)
    tell_plan(lines, fabric, say)
    training = Finetuning(config, classifier, *sets, ready.run, fabric, ready.state, after_step)
    record = {TASK_KEY: TASK, "recipe": ready.recipe, **sets.described(), **config.to_dict()}
    return carry_out(training, record, lines, ready.warnings, ready.found, ready.state, plan=plan, say=say)


def check_batch(classifier: Classifier, config: FinetuneConfig, processes: int) -> None:
    """Whether images are large enough, and batch norm has something to normalise over.

    Raises:
        ValueError: if the network does not take them; or if an image is trained on alone, and a map of it has a single
            position.
    """
    size = config.data.image_size
    check_image_size(classifier.module, config.model, size)
    if config.run.batch_size > config.run.accumulate * processes:
        return
    try:
        copy.deepcopy(classifier.module).train()(torch.zeros(1, config.model.in_chans, *size))
    except ValueError as error:
        raise ValueError(
            f"one image of --image-size {show(size)} at a time leaves batch norm one value for each channel ({error}); "
            "use a larger --batch-size, fewer --accumulate, or a larger --image-size"
        ) from error


def describe(ready: Preparation, classifier: Classifier, fabric: Fabric) -> dict[str, str]:
    """The plan: label to text."""
    config, sets = ready.config, ready.sets
    data, augment, optimizer, schedule, run = (
        config.data,
        config.augment,
        config.optimizer,
        config.schedule,
        config.run,
    )
    steps = steps_of(schedule.epochs, len(sets.train), run.batch_size)
    counts = sets.train.counts()
    others = [f"{len(s):,} to {use}" for s, use in ((sets.val, "validate with"), (sets.test, "score at the end")) if s]
    extras = [
        *([augment.policy] * (augment.policy != "none")),
        *([f"erasing {augment.erasing:g}"] * bool(augment.erasing)),
        *([f"mixup {augment.mixup:g}"] * bool(augment.mixup)),
        *([f"cutmix {augment.cutmix:g}"] * bool(augment.cutmix)),
        *([f"{augment.repeats} views of each image"] * (augment.repeats > 1)),
        f"{config.objective.loss}, smoothing {config.objective.smoothing:g}",
    ]
    start = {"none": "random weights", "timm": "timm's weights"}.get(config.model.encoder)
    parameters = sum(p.numel() for p in classifier.module.parameters())
    groups = 1 + max(layer_groups(classifier).values())
    return {
        "recipe": Path(ready.recipe).name,
        "network": f"{Path(config.model.model).name}, {parameters / 1e6:.1f} million parameters, from "
        f"{start or Path(config.model.encoder).name}",
        "images": f"{len(sets.train):,} of {len(counts)} classes, {min(counts)} to {max(counts)} of each"
        + (f" ({data.label_share:.0%} of the labels)" if data.label_share < 1 else "")
        + "".join(f"; {text}" for text in others)
        + (f" (fold {data.fold} of {data.folds})" if data.folds else ""),
        "views": f"{data.image_size[0]} x {data.image_size[1]} pixels, {', '.join(extras)}",
        "length": f"{schedule.epochs:g} epochs = {steps:,} steps of {run.batch_size} images, "
        f"{schedule.warmup_epochs:g} epochs of warm-up"
        + (f"; a step takes the images in {run.accumulate} parts" if run.accumulate > 1 else ""),
        "optimiser": f"{optimizer.optimizer}, learning rate up to {optimizer.lr:.3g}, layer decay "
        f"{optimizer.layer_decay:g} over {groups} groups, weight decay {optimizer.weight_decay:g}, average of weights "
        + (f"{optimizer.ema:g}" if optimizer.ema else "none"),
        "computation": f"{device_name(fabric.device)}, {run.precision}{COMPUTATION[run.compile]}, "
        f"{data.workers} worker{'s' * (data.workers != 1)}",
        "steps": f"{steps}",
    }
