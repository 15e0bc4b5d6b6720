"""Axes with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Numbers
from .text import number, scientific


@dataclass(frozen=True)
class Axis:
    """Map values to positions along a chart's side, 0 to 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: Numbers) -> Numbers:
        """Return positions, 0 at the low end and 1 at the high end."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        places: Numbers = ((np.log10(values) if self.log else values) - low) / (high - low)
        return places

    def label(self, tick: float) -> str:
        """Format a tick so that no two are alike: all with as many decimals as their step needs, tiny ones as powers.

        Those of a logarithmic axis are formatted as numbers.
        """
        if self.log:
            return number(tick)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        order = math.floor(math.log10(step) + 1e-9)
        decimals = max(0, -order)
        decimals += not math.isclose(round(step, decimals), step, rel_tol=1e-3)
        largest = max(map(abs, self.ticks))
        if step >= 1e-3 or largest >= 1e-2:
            return f"{tick:,.{decimals}f}"
        return scientific(tick, max(4, math.floor(math.log10(largest)) - order + 2))


def axis(values: Numbers, *, parts: int = 4, zero: bool = False, whole: bool = False, tight: bool = False) -> Axis:
    """Build an axis with round ticks, logarithmic if the largest value exceeds 20 times the median.

    Args:
        values: values to show.
        parts: approximate number of intervals between ticks.
        zero: start at zero.
        whole: put ticks at whole numbers only.
        tight: end at the highest value instead of a tick.
    """
    low, high = float(values.min()), float(values.max())
    if not tight and low > 0 and high > 20 * float(np.median(values)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = range(first, last + 1, math.ceil((last - first) / 5))
        return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in powers), log=True)
    low = min(low, 0.0) if zero else low
    if high <= low:
        low, high = (
            (low, low + (abs(low) or 1.0)) if zero else (low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2)
        )
    rough = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = 3 - math.floor(math.log10(step))
    ticks = tuple(round(i * step, decimals) for i in range(first, last + 1))
    return Axis(ticks[0], high, tuple(t for t in ticks if t <= high)) if tight else Axis(ticks[0], ticks[-1], ticks)
