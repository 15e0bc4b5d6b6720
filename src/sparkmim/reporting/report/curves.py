"""The numbers of a run by step: read from `metrics.jsonl`, thinned, smoothed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

MOST_POINTS = 800
"""Of a curve."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without those that a crash cut off; none if there is no such file."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


@dataclass(frozen=True)
class Curve:
    """One number over the run: a row per line of metrics that has it."""

    step: Numbers
    epoch: Numbers
    value: Numbers

    def __len__(self) -> int:
        return len(self.value)

    def at(self, rows: NDArray[np.intp]) -> Curve:
        """Some rows."""
        return Curve(self.step[rows], self.epoch[rows], self.value[rows])


def curve(lines: Sequence[Mapping[str, float]], key: str) -> Curve:
    """The finite values of a key, by step; of a step written twice, the later line."""
    rows = {v["step"]: (v["step"], v.get("epoch", 0.0), v[key]) for v in lines if math.isfinite(v.get(key, math.nan))}
    table = np.array([rows[step] for step in sorted(rows)], dtype=np.float64).reshape(-1, 3)
    return Curve(*table.T)


def thin(values: Numbers, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Indices of at most `most` values that keep the shape: the first, the last, each stretch's lowest and highest."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2).astype(int)
    kept = {0, len(values) - 1}
    for low, high in pairwise(edges):
        kept |= {low + int(values[low:high].argmin()), low + int(values[low:high].argmax())}
    return np.array(sorted(kept))


def smooth_reach(count: int) -> int:
    """How many values to each side :func:`smooth` averages."""
    return max(2, count // 40)


def smooth(values: Numbers) -> Numbers:
    """A moving average; at the end of what there is to the left, at the start of as much as there is to both sides."""
    index = np.arange(len(values))
    reach = np.minimum(smooth_reach(len(values)), index)
    sums = np.concatenate([[0.0], values.cumsum()])
    low, high = index - reach, np.minimum(index + reach + 1, len(values))
    means: Numbers = (sums[high] - sums[low]) / (high - low)
    return means
