"""What the value of a field must be, whatever the others are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .compile import COMPUTATION
from .config import show

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mask_ratio": (lambda v: 0 < v < 1, "is the share of patches to hide, between 0 and 1"),
    "drop_path": (lambda v: 0 <= v < 1, "is a rate from 0 to below 1"),
    "decoder_width": (lambda v: v >= 1, "is a number of channels, at least 1"),
    "std": (lambda v: all(0 < part < math.inf for part in v), "must be above 0 in each channel"),
    "mean": (lambda v: all(map(math.isfinite, v)), "must be finite"),
    "max_broken": (lambda v: 0 <= v <= 1, "is a share of the images, from 0 to 1"),
    "workers": (lambda v: v >= 0, "is a number of processes, at least 0"),
    "lr": (lambda v: 0 < v < math.inf, "must be above 0"),
    "betas": (lambda v: len(v) == 2 and all(0 <= part < 1 for part in v), "are two rates from 0 to below 1"),
    "eps": (lambda v: v >= 0, "must be at least 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "must be at least 0"),
    "weight_decay_end": (lambda v: 0 <= v < math.inf, "must be at least 0"),
    "clip": (lambda v: v >= 0, "is the largest norm of gradients, above 0, or 0 not to clip them"),
    "epochs": (lambda v: 0 < v < math.inf, "must be above 0"),
    "warmup_epochs": (lambda v: v >= 0, "must be at least 0"),
    "lr_start": (lambda v: 0 <= v <= 1, "is a share of the peak, from 0 to 1"),
    "lr_end": (lambda v: 0 <= v <= 1, "is a share of the peak, from 0 to 1"),
    "batch_size": (lambda v: v >= 1, "is a number of images, at least 1"),
    "accumulate": (lambda v: v >= 1, "is a number of micro-batches, at least 1"),
    "compile": (lambda v: isinstance(v, bool) or v in COMPUTATION, f"is {' or '.join(COMPUTATION)}"),
    "seed": (lambda v: v >= 0, "must be at least 0"),
    "log_every": (lambda v: v >= 1, "is a number of steps, at least 1"),
    "val_every": (lambda v: 0 < v < math.inf, "is a number of epochs, above 0"),
    "monitor_every": (lambda v: 0 < v < math.inf, "is a number of epochs, above 0"),
    "checkpoint_minutes": (lambda v: v >= 0, "must be at least 0"),
    "keep_checkpoints": (lambda v: v >= 1, "must be at least 1"),
    "pictures": (lambda v: v >= 0, "must be at least 0"),
}
"""For each field a test, and how to say it."""


def check_values(values: Mapping[str, Any]) -> None:
    """Whether each value by itself makes sense.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    for name, (holds, wanted) in RANGES.items():
        if name in values and not holds(values[name]):
            raise ValueError(f"--{name.replace('_', '-')} {wanted}, not {show(values[name])}")
