"""Show what signals are like: a table and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...reporting.text_tables import aligned, spread
from ...reporting.volumes import INTENSITY, SIZE, SPACING, Histogram, counted, draw_histograms
from ...utils.logging import log
from ...utils.text import printable
from ..decoding.encoded import UnreadableImage
from ..statistics import spread_indices
from .reading import open_recording
from .settings import SignalSettings
from .source import examine

DRAWN = 6
"""Channels whose deviations are drawn, the first ones."""


class Measured(NamedTuple):
    """What is measured of some signals.

    Attributes:
        of: signals there are.
        samples: of each that can be read.
        rates: samples a second of each, None where its file does not say.
        means: of each channel of each signal.
        stds: likewise.
    """

    of: int
    samples: list[int]
    rates: list[float | None]
    means: list[np.ndarray]
    stds: list[np.ndarray]

    @property
    def channels(self) -> list[int]:
        """Return the number of channels of each."""
        return [len(mean) for mean in self.means]


def measure_signals(root: Path, names: Sequence[str], settings: SignalSettings, limit: int) -> Measured:
    """Read up to a number of signals, spread over a set; those that cannot be read are logged.

    Raises:
        ValueError: if none can be read, with the first reason.
    """
    found = Measured(len(names), [], [], [], [])
    errors = []
    for index in spread_indices(limit, len(names)):
        try:
            recording = open_recording(root / names[index], None, settings.layout, settings.time_column)
            facts = examine(recording)
            if facts.reason is not None:
                raise UnreadableImage(facts.reason)
        except UnreadableImage as error:
            errors.append(f"{printable(names[index])}: {error}")
            log.warning(f"skipped {errors[-1]}")
            continue
        found.samples.append(recording.samples)
        found.rates.append(recording.rate)
        found.means.append(facts.mean[:, 0])
        found.stds.append(facts.std[:, 0])
    if not found.samples:
        raise ValueError(f"none of {len(errors)} signals tried can be read; {errors[0]}")
    return found


def signals_table(found: Measured) -> str:
    """Return a table of lengths and rates, and of mean and deviation of each channel by signal."""
    rates = np.array([rate for rate in found.rates if rate is not None])
    seconds = np.array([n / rate for n, rate in zip(found.samples, found.rates, strict=True) if rate is not None])
    channels = np.array(found.channels)
    rows = [
        ("samples", spread(np.array(found.samples))),
        ("samples a second", spread(rates) if len(rates) else "not given"),
        *([("seconds", spread(seconds))] if len(seconds) else []),
    ]
    lines = [
        f"{len(found.samples)} of {found.of} signals of {spread(channels)} channels; median, and smallest to largest",
        *aligned(rows),
    ]
    if len(set(found.channels)) == 1:
        means, stds = np.array(found.means), np.array(found.stds)
        values = [("by signal", "mean", "deviation")]
        values += [(f"channel {c}", spread(means[:, c]), spread(stds[:, c])) for c in range(means.shape[1])]
        lines += ["", *aligned(values)]
    return "\n".join(lines)


def signals_picture(found: Measured) -> Image.Image:
    """Draw histograms of lengths, rates, and the deviations of the first channels."""
    panels: list[Histogram] = [counted("Samples", np.array(found.samples), SIZE)]
    rates = np.array([rate for rate in found.rates if rate is not None])
    if len(rates):
        panels.append(counted("Samples a second", rates, SPACING))
    if len(set(found.channels)) == 1:
        stds = np.array(found.stds)[:, :DRAWN]
        panels += [counted(f"Deviation, channel {c}", stds[:, c], INTENSITY) for c in range(stds.shape[1])]
    return draw_histograms(f"{len(found.samples)} signals", panels)
