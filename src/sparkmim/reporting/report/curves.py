"""Metrics by step: reading `metrics.jsonl`, thinning, smoothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.io import parse_metrics

Numbers = NDArray[np.float64]

MOST_POINTS = 800
"""Maximum number of points of a curve."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the complete lines of `metrics.jsonl`; none if there is no such file."""
    if not path.exists():
        return []
    lines = map(parse_metrics, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [values for values in lines if values is not None]


@dataclass(frozen=True)
class Curve:
    """A metric over the run: a row for each line that has it."""

    step: Numbers
    epoch: Numbers
    value: Numbers

    def __len__(self) -> int:
        return len(self.value)

    def at(self, rows: NDArray[np.intp]) -> Curve:
        """Select rows."""
        return Curve(self.step[rows], self.epoch[rows], self.value[rows])


def curve(lines: Sequence[Mapping[str, float]], key: str) -> Curve:
    """Return the finite values of a metric in the order of steps; the last line of a repeated step."""
    rows = {v["step"]: (v["step"], v.get("epoch", 0.0), v[key]) for v in lines if math.isfinite(v.get(key, math.nan))}
    table = np.array([rows[step] for step in sorted(rows)], dtype=np.float64).reshape(-1, 3)
    return Curve(*table.T)


def thin(values: Numbers, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Return indices of at most `most` values: first, last, and minimum and maximum of each interval."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2).astype(int)
    kept = {0, len(values) - 1}
    for low, high in pairwise(edges):
        kept |= {low + int(values[low:high].argmin()), low + int(values[low:high].argmax())}
    return np.array(sorted(kept))


def smooth_reach(count: int) -> int:
    """Return how many values on each side :func:`smooth` averages."""
    return max(2, count // 40)


def smooth(values: Numbers) -> Numbers:
    """Return a moving average; the window is shortened at the end, and shrinks symmetrically at the start."""
    index = np.arange(len(values))
    reach = np.minimum(smooth_reach(len(values)), index)
    sums = np.concatenate([[0.0], values.cumsum()])
    low, high = index - reach, np.minimum(index + reach + 1, len(values))
    means: Numbers = (sums[high] - sums[low]) / (high - low)
    return means
