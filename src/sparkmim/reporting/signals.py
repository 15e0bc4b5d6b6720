"""Signals as lines: all of it, what is visible, and the reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from .vanishing.canvas import INK, Canvas, Color

WIDTH, CHANNEL, MARGIN = 480, 76, 8
"""Pixels of a picture, of a channel in it, and around the lines."""

MOST_CHANNELS = 3
"""Channels that are drawn, the first ones."""

HIDDEN: Color = (232, 232, 228)
"""Color of hidden patches."""

PALE: Color = (172, 172, 166)
"""Color of what was at hidden patches."""

PREDICTED: Color = (214, 92, 20)

OVER = 0.6
"""By how much of a channel's range a prediction is followed beyond it."""


def signal_tiles(
    signal: Float[np.ndarray, "channel sample"],
    prediction: Float[np.ndarray, "channel sample"],
    visible: Bool[np.ndarray, "patch"],
) -> list[Image.Image]:
    """Draw a signal, its visible patches, and its reconstruction: a line for each channel, three at most.

    The ranges are those of the signal. Hidden patches are shaded; predicted ones are drawn in color over a pale line of
    what was there.

    Args:
        signal: the original.
        prediction: the original with hidden patches as predicted.
        visible: True = visible.
    """
    size = signal.shape[1] // len(visible)
    hidden = [(start, stop) for start, stop, shown in runs(visible, size) if not shown]
    shown = [(start, stop) for start, stop, shown in runs(visible, size) if shown]
    whole = [(0, signal.shape[1])]
    return [
        _draw(signal, [], [(signal, whole, INK)]),
        _draw(signal, hidden, [(signal, shown, INK)]),
        _draw(signal, hidden, [(signal, hidden, PALE), (signal, shown, INK), (prediction, hidden, PREDICTED)]),
    ]


def runs(visible: Bool[np.ndarray, "patch"], size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield first and last sample, and whether they are visible, of patches in a row that are alike."""
    edges = [0, *(np.flatnonzero(np.diff(visible.astype(np.int8))) + 1).tolist(), len(visible)]
    for start, stop in pairwise(edges):
        yield start * size, stop * size, bool(visible[start])


Lines = tuple[np.ndarray, Sequence[tuple[int, int]], Color]


def _draw(signal: np.ndarray, shaded: Sequence[tuple[int, int]], lines: Sequence[Lines]) -> Image.Image:
    """Draw pieces of lines, in the ranges of a signal's channels, over shaded stretches."""
    channels = min(MOST_CHANNELS, len(signal))
    canvas = Canvas(WIDTH, channels * CHANNEL + MARGIN)
    step = (WIDTH - 2 * MARGIN) / max(1, signal.shape[1] - 1)

    def x(sample: float) -> float:
        return MARGIN + step * sample

    for start, stop in shaded:
        left, right = x(start), x(min(stop, signal.shape[1] - 1))
        canvas.area([(left, 0), (right, 0), (right, canvas.height), (left, canvas.height)], HIDDEN)
    for channel in range(channels):
        known = signal[channel][np.isfinite(signal[channel])]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        span = high - low or 1.0
        top = channel * CHANNEL + MARGIN
        for values, pieces, color in lines:
            clipped = np.clip(values[channel], low - OVER * span, high + OVER * span)
            for start, stop in pieces:
                points = [
                    (x(place), top + (high - value) / span * (CHANNEL - MARGIN))
                    for place, value in thinned(clipped, start, min(stop + 1, len(clipped)))
                ]
                if len(points) > 1:
                    canvas.line(points, color, 1.2)
    return canvas.finish()


def thinned(values: np.ndarray, start: int, stop: int) -> list[tuple[int, float]]:
    """Return places and values of a piece of a line; of more than a few for each pixel the smallest and largest."""
    places = np.arange(start, stop)
    most = 2 * max(1, round(WIDTH * (stop - start) / len(values)))
    if len(places) > 2 * most:
        parts = np.array_split(places, most // 2)
        ends = {int(part[end(values[part])]) for part in parts for end in (np.argmin, np.argmax)}
        places = np.array(sorted(ends))
    return [(int(place), float(values[place])) for place in places if np.isfinite(values[place])]
