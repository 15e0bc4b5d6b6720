"""What the user sees while a run lasts: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from tqdm import tqdm

from ..utils.logging import is_rank_zero, log
from ..utils.text import duration

METRIC_LABELS = {"val_loss": ("held-out loss", ".4f"), "val_top1": ("top-1", ".1%"), "knn_top1": ("k-NN", ".1%")}
"""Label and format of the metrics of evaluators that the user sees; others are shown by their names."""

NOT_SHOWN = ("step", "epoch", "val_mean_per_class", "knn_mean_per_class")

LINE_SECONDS = 5.0
"""Seconds between two lines at least, where there is no terminal."""

BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} passed, {remaining} left{postfix}"


class Progress:
    """Show how far a run is, through the logger and, on a terminal, by a bar.

    Nothing is shown where nobody listens to the logger: the command line does, a library's user may.

    Args:
        steps: of the run.
        done: of them.
        loss: moving average so far, of a resumed run.
        measured: what evaluators have measured so far.
    """

    def __init__(
        self, steps: int, done: int, *, loss: float | None = None, measured: Mapping[str, float] | None = None
    ) -> None:
        self.steps, self.done, self.started_at = steps, done, done
        self.start = time.monotonic()
        self.last_line = -math.inf
        self.loss = loss
        self.speed: list[str] = []
        self.measured = dict(measured or {})
        self.epoch = 0.0
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = (
            tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05, bar_format=BAR)
            if terminal and is_rank_zero() and log.isEnabledFor(logging.INFO)
            else None
        )

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        if self.bar is not None:
            with suppress(OSError):  # a terminal that was closed; the run continues
                self.bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """Show a line of metrics."""
        if "loss" in values:
            self.loss = values["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * values["loss"]
            self.speed = [f"{values['images_per_second']:.3g} images/s"]
        else:
            self.measured |= values
        loss = [] if self.loss is None else [f"loss {self.loss:.4f}"]
        text = ", ".join([*loss, *format_metrics(self.measured), *self.speed])
        if self.bar is not None:
            with suppress(OSError):
                self.bar.set_postfix_str(text)
        elif "loss" in values:
            self.epoch = values["epoch"]
            if time.monotonic() - self.last_line >= LINE_SECONDS and self.done < self.steps:
                self._print(text)

    def _print(self, text: str) -> None:
        self.last_line = time.monotonic()
        left = (self.last_line - self.start) / max(1, self.done - self.started_at) * (self.steps - self.done)
        log.info(f"step {self.done}/{self.steps}, epoch {self.epoch:.2f}: {text}, {duration(left)} left")

    def close(self) -> None:
        """Leave the bar as it is, or print the line of the last step, with what was measured after it."""
        if self.bar is None and self.speed and self.done == self.steps:
            loss = [] if self.loss is None else [f"loss {self.loss:.4f}"]
            self._print(", ".join([*loss, *format_metrics(self.measured), *self.speed]))
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()


def format_metrics(measured: Mapping[str, float]) -> list[str]:
    """Return the metrics of evaluators as text, label and number."""
    known = [f"{label} {measured[name]:{form}}" for name, (label, form) in METRIC_LABELS.items() if name in measured]
    others = [name for name in measured if name not in METRIC_LABELS and name not in NOT_SHOWN]
    return known + [f"{name.removeprefix('val_').replace('_', ' ')} {measured[name]:.4g}" for name in others]
