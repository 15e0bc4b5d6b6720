"""Change the sampling rate of a signal, of the part alone that is wanted."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from .reading import Recording, same_rate

HALF = 10
"""Periods of the slower rate on each side that the filter weighs: scipy.signal.resample_poly's."""

LARGEST = 1000
"""Largest denominator of the higher rate over the lower one; the ratio is exact for those that are in use."""


def ratio_of(rate: float, wanted: float) -> Fraction:
    """Return the samples wanted for one that is there."""
    if same_rate(rate, wanted):
        return Fraction(1)
    ratio = Fraction(max(rate, wanted) / min(rate, wanted)).limit_denominator(LARGEST)
    return ratio if wanted > rate else 1 / ratio


def length_at(samples: int, ratio: Fraction) -> int:
    """Return the number of samples that some become."""
    return -(-samples * ratio.numerator // ratio.denominator)


def read_at(recording: Recording, ratio: Fraction, start: int, stop: int) -> np.ndarray:
    """Read a part of a recording at another rate.

    What is needed around it is read too, so that the parts of a signal are those of the whole signal resampled. Beyond
    its ends a signal keeps its first and last values.

    Args:
        recording: the signal.
        ratio: see :func:`ratio_of`.
        start: first sample, at the rate that is wanted.
        stop: the one behind the last.

    Returns:
        `(C, stop - start)`, float32.

    Raises:
        UnreadableImage: if it cannot be read.
        ValueError: if SciPy is missing.
    """
    if ratio == 1:
        return recording.read(start, stop)
    up, down = ratio.numerator, ratio.denominator
    margin = HALF * max(up, down) // up + 2
    first = (start * down // up - margin) // down * down  # which lies at a sample that is wanted
    last = -(-stop * down // up) + margin
    inside = recording.read(max(0, first), min(recording.samples, last))
    padded = np.pad(inside, ((0, 0), (max(0, -first), max(0, last - recording.samples))), mode="edge")
    resampled = _signal().resample_poly(padded, up, down, axis=1, window=_filter(up, down))
    begin = start - first * up // down
    part: np.ndarray = resampled[:, begin : begin + stop - start]
    return np.ascontiguousarray(part, dtype=np.float32)


@lru_cache(maxsize=16)
def _filter(up: int, down: int) -> np.ndarray:
    most = max(up, down)
    taps: np.ndarray = _signal().firwin(2 * HALF * most + 1, 1.0 / most, window=("kaiser", 5.0)).astype(np.float32)
    return taps


def _signal() -> Any:
    try:
        return import_module("scipy.signal")
    except ImportError as error:
        raise ValueError(f'resampling (--rate) needs SciPy ({error}): pip install "sparkmim[signals]"') from error
