"""Learning rate and weight decay of every step. Source: the official `lr_wd_annealing`, and nnU-Net's schedule."""

from __future__ import annotations

import math

from ..checkpoints.state import MOST_STEPS
from .config import ScheduleConfig

POWER = 0.9
"""Of the polynomial decay, in nnU-Net's `PolyLRScheduler`."""


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Return the number of steps that show `epochs` times `images` images, at least one.

    Raises:
        ValueError: if they are more than can be counted.
    """
    steps = epochs * images / batch_size
    if steps > MOST_STEPS:
        raise ValueError(
            f"{epochs:g} epochs of {images:,} images make {steps:g} steps, more than can be counted; use fewer"
        )
    return max(1, round(steps))


def learning_rate(step: int, steps: int, warmup: int, peak: float, config: ScheduleConfig) -> float:
    """Return the learning rate of a step, 0 being the first."""
    if step < warmup:
        return peak * (config.lr_start + (1 - config.lr_start) * step / warmup)
    if config.lr_decay == "polynomial":
        return peak * (config.lr_end + (1 - config.lr_end) * (1 - (step - warmup) / max(1, steps - warmup)) ** POWER)
    return peak * _cosine(1.0, config.lr_end, (step - warmup) / max(1, steps - 1 - warmup))


def weight_decay(step: int, steps: int, start: float, end: float) -> float:
    """Return the weight decay of a step, 0 being the first."""
    return _cosine(start, end, step / max(1, steps - 1))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
