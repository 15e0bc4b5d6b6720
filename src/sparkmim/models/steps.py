"""The maps of a pass whose sizes are the image's, divided by a stride."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .dataflow import Node
from .trace import Event, Size, Trace

WINDOWED = ("conv1d", "conv2d", "conv3d", *(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)))
"""Functions that change the size of a map, which :class:`~sparkmim.models.alignment.Alignment` can pad."""


class Step(NamedTuple):
    """A map whose size is the image's, divided by a stride."""

    event: Event
    stride: Size
    time: int

    @property
    def pixels(self) -> int:
        """Pixels of the image in one position."""
        return math.prod(self.stride)


class Steps(NamedTuple):
    """What a pair of passes tells of a network's sizes.

    Attributes:
        steps: the maps whose size is the image's divided by a stride.
        unaligned: name of the first convolution or pooling, in the notation of `stages`, whose map is not, and is not
            cut to such a size afterwards; None if there is none.
        last_fits: whether the last map of all that grow with the image is one of the steps.
        pooled: nodes of the maps of several positions whose size is the same for both images.
    """

    steps: list[Step]
    unaligned: str | None
    last_fits: bool
    pooled: set[Node]


def proportional(trace: Trace, larger: Trace, size: Size) -> Steps:
    """Return the maps whose size is the image's divided by a stride.

    Args:
        trace: of an image of `size`.
        larger: of one twice as large.
        size: of the smaller image.
    """
    steps: list[Step] = []
    fitting = {size}
    unaligned: str | None = None
    cut: dict[str, Size] = {}  # calls whose result is not aligned, until it is cut; the size that it should have
    last_fits = True
    pooled: set[Node] = set()
    for time, (event, other) in enumerate(_pairs(trace, larger)):
        if other == event.size and math.prod(other) > 1:
            pooled.add(event.node)
        if other is None or any(b <= a or a < 1 for a, b in zip(event.size, other, strict=True)):
            continue
        last_fits = all(n % s == 0 and o == 2 * s for n, s, o in zip(size, event.size, other, strict=True))
        if last_fits:
            fitting.add(event.size)
            steps.append(Step(event, tuple(n // s for n, s in zip(size, event.size, strict=True)), time))
            unaligned = unaligned or next((name for name, wanted in cut.items() if wanted != event.size), None)
            cut.clear()
        elif event.function in WINDOWED and event.given in fitting and _is_unaligned(event.given, event.size, other):
            cut[event.name] = tuple(b - a for a, b in zip(event.size, other, strict=True))
    return Steps(steps, unaligned or next(iter(cut), None), last_fits, pooled)


def gains(trace: Trace, larger: Trace, extent: int) -> list[tuple[int, int]]:
    """Return the extent of an image and what it adds to that of each map, if as many pixels are added.

    Args:
        trace: of an image of `extent` along each axis.
        larger: of one twice as large.
        extent: of the smaller image.
    """
    pairs = [(event.size, other) for event, other in _pairs(trace, larger) if other is not None]
    return [(extent, b - a) for size, other in pairs for a, b in zip(size, other, strict=True)]


def _pairs(trace: Trace, larger: Trace) -> Iterator[tuple[Event, Size | None]]:
    """Yield each event with the size of the same one in the other pass."""
    sizes: dict[tuple[str, int], Size] = {}
    seen: Counter[str] = Counter()
    for event in larger.events:
        sizes[event.name, seen[event.name]] = event.size
        seen[event.name] += 1
    seen.clear()
    for event in trace.events:
        yield event, sizes.get((event.name, seen[event.name]))
        seen[event.name] += 1


def _is_unaligned(given: Size, small: Size, large: Size) -> bool:
    """Return whether a window's stride divides the map that it was given, but not the size of what it returned.

    Args:
        given: size of the map.
        small: of the result.
        large: of the result for a map twice as large.
    """
    stays = False
    for g, a, b in zip(given, small, large, strict=True):
        grown = b - a  # what g more positions give, which is g / stride for an image that is large enough
        if grown < 8 or g % grown or g % (g // grown):
            return False
        stays = stays or a != grown
    return stays
