"""What the user sees while a run lasts: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from ..utils.text import duration

TOLD = (("val_loss", "held-out loss", ".4f"), ("val_top1", "top-1", ".1%"), ("knn_top1", "k-NN", ".1%"))
"""What evaluations measure and the user sees while a run lasts: name, label and format."""


LINE_SECONDS = 5.0
"""Where there is no terminal, seconds between two lines at least."""


class Progress:
    """What the user sees while it runs: a bar on a terminal, plain lines elsewhere.

    A run goes on in silence when its terminal is closed, or what reads its lines (`| tee`) has ended.

    Args:
        steps: of the run.
        done: of them.
        shown: whether to show anything.
        loss: moving average so far, of a run that goes on.
        measured: what evaluations have measured so far.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        *,
        shown: bool,
        loss: float | None = None,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        self.steps, self.done, self.started_at = steps, done, done
        self.shown = shown
        self.start = time.monotonic()
        self.last_line = -math.inf
        self.loss = loss
        self.speed: list[str] = []
        self.measured = dict(measured or {})
        self.bar = (
            tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05, bar_format=BAR)
            if shown and sys.stderr.isatty()
            else None
        )

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        with self._heard():
            if self.bar is not None:
                self.bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """A line of numbers was written."""
        if "loss" in values:
            self.loss = values["loss"] if self.loss is None else 0.9 * self.loss + 0.1 * values["loss"]
            self.speed = [f"{values['images_per_second']:.3g} images/s"]
        else:
            self.measured |= values
        loss = [] if self.loss is None else [f"loss {self.loss:.4f}"]
        text = ", ".join([*loss, *told(self.measured), *self.speed])
        if self.bar is not None:
            with self._heard():
                self.bar.set_postfix_str(text)
        elif "loss" in values and (time.monotonic() - self.last_line >= LINE_SECONDS or self.done == self.steps):
            self.last_line = time.monotonic()
            left = (self.last_line - self.start) / max(1, self.done - self.started_at) * (self.steps - self.done)
            self.say(f"step {self.done}/{self.steps}, epoch {values['epoch']:.2f}: {text}, {duration(left)} left")

    def say(self, text: str) -> None:
        """A message between the lines."""
        with self._heard():
            if self.bar is not None:
                self.bar.write(text)
            elif self.shown:
                print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        with self._heard():
            if self.bar is not None:
                self.bar.close()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            fall_silent(sys.stdout)
            if self.bar is not None:
                fall_silent(sys.stderr)
            self.bar, self.shown = None, False


def told(measured: Mapping[str, float]) -> list[str]:
    """What evaluations have measured, in words."""
    return [f"{label} {measured[name]:{form}}" for name, label, form in TOLD if name in measured]


def tell(text: str) -> None:
    """Print a line, if anybody reads."""
    try:
        print(text, flush=True)
    except OSError:
        fall_silent(sys.stdout)


def fall_silent(stream: TextIO) -> None:
    """Let nobody miss what is printed from here on: its reader has ended, and Python would complain at its own end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} passed, {remaining} left{postfix}"
