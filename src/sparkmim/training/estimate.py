"""How long a run will take, from a few measured steps."""

from __future__ import annotations

import time
from itertools import islice
from statistics import median

from ..utils.text import counted, duration
from .errors import explained
from .loop import TrainingLoop
from .metrics import peak_memory_bytes

TURNS = 4
"""Micro-batches to measure; the first is not counted."""

IMAGES = 64
"""Images to read, at most."""


def estimate(loop: TrainingLoop) -> list[str]:
    """Time the reading of some images and some micro-batches. The model must not be used after it.

    Returns:
        Lines for the user: time of a step, what limits it, time of the run, peak memory.
    """
    task, trainer, config = loop.task, loop.trainer, loop.config
    left = trainer.steps - trainer.step
    if left < 1:
        return ["nothing is left to do"]
    with explained(trainer, loop.run):
        keys = [key for batch in islice(loop.positions(), config.run.accumulate) for key in batch][:IMAGES]
        start = time.monotonic()
        for key in keys:
            task.views[key]
        per_step = config.run.batch_size / trainer.fabric.world_size
        reading = (time.monotonic() - start) / len(keys) * per_step / max(1, config.data.workers)
        trainer.model.train()
        trainer.accumulate = 1  # one micro-batch after the other tells as much, sooner
        blank = task.blank_batch(task.micro_batch)
        times = []
        first = trainer.step
        for _ in range(TURNS):
            trainer.step = first  # a step after the last has no place in the schedule
            start = time.monotonic()
            result = trainer.train_step(iter([blank]))
            result.loss.item()  # waits for the device
            times.append(time.monotonic() - start)
    computing = median(times[1:]) * config.run.accumulate
    step = max(computing, reading) if config.data.workers else computing + reading
    limit = "computation" if computing >= reading else "the reading of images; more --workers may help"
    lines = [] if trainer.not_compiled is None else [f"not compiled ({trainer.not_compiled})"]
    return [
        *lines,
        f"a step computes for {computing:.3g} s and its images are read in {reading:.3g} s: "
        f"{config.run.batch_size / step:.3g} images/s, limited by {limit}",
        f"{counted(left, 'step')}: about {duration(left * step)}",
        f"peak memory {peak_memory_bytes(trainer.fabric.device) / 2**30:.2f} GiB",
    ]
