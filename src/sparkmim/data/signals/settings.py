"""How signals are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...utils.fields import Valid, setting

Amplitude = Literal["signal", "set"]
Layout = Literal["auto", "channels-first", "channels-last"]


@dataclass(frozen=True, kw_only=True)
class SignalSettings:
    """How signals are read."""

    rate: float | None = setting(
        None, Valid(lambda v: v is None or 0 < v < math.inf, "is a number of samples a second (Hz), above 0")
    )
    """Samples a second (Hz) to which signals are resampled; if not given they stay as they are, and all must have the
    same."""

    amplitude: Amplitude = "signal"
    """How values are normalized: signal standardizes each channel of each signal by itself; set standardizes each
    channel by mean and deviation of all signals, which keeps the differences between them."""

    layout: Layout = "auto"
    """Axes of arrays: channels-first (C, samples), channels-last (samples, C), or auto: as --in-chans tells, or by the
    axis that is at least four times as long."""

    time_column: str | None = None
    """Heading of the column of .csv files that holds the time; if not given, the one called time, t, seconds or the
    like, if there is one."""
