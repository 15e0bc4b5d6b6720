"""Find the stages of a network that does not name them: the last map of each resolution on the way down.

What a network computes is recorded with the autograd graph behind each map. At each resolution the map is taken that
everything deeper is computed from, as late as possible: a sum that `forward` computes rather than one of its terms. Of
a network that goes up again (a U-Net, a feature pyramid, a detector) the maps before that are taken.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from .dataflow import Dataflow, Node, leaves_of
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


class Findings(NamedTuple):
    """What a pair of passes tells.

    Attributes:
        stages: names of the maps, highest resolution first.
        strides: of these.
        smallest: fewest positions along an axis of the deepest map.
        unaligned: whether a convolution or pooling gives a map that is not the image's size divided by a stride.
        last_fits: whether the last map of all that grow with the image is the image's size divided by a stride.
        rises: whether the network goes up again, as a U-Net does: its last such map is finer than its deepest stage.
    """

    stages: list[str]
    strides: list[Size]
    smallest: int
    unaligned: bool
    last_fits: bool
    rises: bool = False


def find_stages(trace: Trace, larger: Trace, image: int, size: Size, full: bool = False) -> Findings:
    """Choose the stages of a network from two passes.

    Args:
        trace: of an image of `size`.
        larger: of one twice as large.
        image: id of the leaf that is the image.
        size: of the smaller image.
        full: also a map of stride 1.
    """
    steps, unaligned, last_fits = proportional(trace, larger, size)
    chosen = [step for step in _choose(trace, steps, image) if full or step.pixels > 1]
    smallest = min((s // t for step in chosen[-1:] for s, t in zip(size, step.stride, strict=True)), default=0)
    rises = bool(chosen) and steps[-1].pixels < chosen[-1].pixels
    strides = [step.stride for step in chosen]
    return Findings([step.event.name for step in chosen], strides, smallest, unaligned, last_fits, rises)


def proportional(trace: Trace, larger: Trace, size: Size) -> tuple[list[Step], bool, bool]:
    """Return the maps whose size is the image's divided by a stride, and see :class:`Findings`."""
    sizes: dict[tuple[str, int], Size] = {}
    seen: dict[str, int] = {}
    for event in larger.events:
        sizes[event.name, seen.setdefault(event.name, 0)] = event.size
        seen[event.name] += 1
    seen.clear()
    steps: list[Step] = []
    fitting = {size}
    unaligned, last_fits = False, True
    for time, event in enumerate(trace.events):
        number = seen.setdefault(event.name, 0)
        seen[event.name] += 1
        other = sizes.get((event.name, number))
        if other is None or any(b <= a or a < 1 for a, b in zip(event.size, other, strict=True)):
            continue
        last_fits = all(n % s == 0 and o == 2 * s for n, s, o in zip(size, event.size, other, strict=True))
        if last_fits:
            fitting.add(event.size)
            steps.append(Step(event, tuple(n // s for n, s in zip(size, event.size, strict=True)), time))
        elif event.function in WINDOWED and event.given in fitting:
            unaligned = unaligned or _is_unaligned(event.given, event.size, other)
    return steps, unaligned, last_fits


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


def _choose(trace: Trace, steps: list[Step], image: int) -> list[Step]:
    """Return one step of each resolution, highest first."""
    outer = _outside_downsampling(steps)
    if not outer:
        return []
    flow = Dataflow([step.event.node for step in steps], image)
    deepest = flow.largest({step.event.node: step.pixels for step in sorted(steps, key=lambda step: step.pixels)})
    risen = {step.event.node for step in steps if deepest.get(step.event.node, 0) > step.pixels}
    rise = min((step.time for step in steps if step.event.node in risen), default=None)
    before = [step for step in outer if rise is None or step.time < rise]
    parallel = rise is not None and _is_parallel(
        flow, steps, outer, before, rise, flow.largest(dict.fromkeys(risen, 1))
    )
    outer = outer if parallel else before
    end = _end(outer, steps, goes_up=rise is not None and not parallel, parallel=parallel)
    trunk = set() if parallel else flow.on_every_way(end.event.node)
    chosen = []
    finer = {s.stride for s in outer if s.pixels < end.pixels and all(map(int.__le__, s.stride, end.stride))}
    halfway = _between(steps, [step for step in outer if step.event.node in trunk], end)
    for stride in sorted(finer, key=math.prod):
        here = [step for step in outer if step.stride == stride and (parallel or step.time < end.time)]
        on_trunk = [step for step in here if step.event.node in trunk]
        here = on_trunk or [step for step in here if not halfway.intersection(step.event.within)]
        chosen += _named(_up_to_last_module(here, here[-1]), trace) if here else []
    if chosen and _is_pooled_away(chosen[-1], end):
        return chosen
    node = end.event.node
    deep = [s for s in outer if s.stride == end.stride and (s.time <= end.time or s.event.node is node is not None)]
    deep = _up_to_last_module(deep, end)
    return chosen + (_named(deep, trace, deep[-1]) or [end])


def _is_pooled_away(before: Step, end: Step) -> bool:
    """Return whether the last map is a classifier's pooling: by more than 2, and nothing is trained after `before`."""
    factors = [e // b for b, e in zip(before.stride, end.stride, strict=True)]
    return min(factors) > 2 and leaves_of([end.event.node]) <= leaves_of([before.event.node])


def _up_to_last_module(steps: list[Step], last: Step) -> list[Step]:
    """Return the steps up to the output of the last module, if nothing that is trained comes between it and `last`."""
    module = next((s for s in reversed(steps) if s.event.kind == "output" and s.event.module), None)
    if module is None or not leaves_of([last.event.node]) <= leaves_of([module.event.node]):
        return steps
    node = module.event.node
    return [step for step in steps if step.time <= module.time or step.event.node is node is not None]


def _outside_downsampling(steps: list[Step]) -> list[Step]:
    """Return the steps that are not within a module that leads from their resolution to the next.

    They belong to the downsampling: the expansion of a strided bottleneck, for example.
    """
    sizes = sorted({step.event.size for step in steps}, key=math.prod, reverse=True)
    following = dict(pairwise(sizes))
    leading = {
        (step.event.module, step.event.given)
        for step in steps
        if step.event.kind == "output"
        and step.event.module
        and following.get(step.event.given or ()) == step.event.size
    }
    return [s for s in steps if not any((name, s.event.size) in leading for name in s.event.within)]


def _between(steps: list[Step], trunk: list[Step], end: Step) -> set[str]:
    """Return the modules that lead from a resolution of the trunk to the next.

    A resolution that is met nowhere else belongs to them: that of a strided convolution along some axes, say, which one
    along the others follows.
    """
    image = tuple(s * t for s, t in zip(end.event.size, end.stride, strict=True))
    sizes = sorted({image, end.event.size, *(step.event.size for step in trunk)}, key=math.prod, reverse=True)
    following = dict(pairwise(sizes))
    outputs = [step.event for step in steps if step.event.kind == "output" and step.event.module]
    return {event.module for event in outputs if following.get(event.given or ()) == event.size}


def _is_parallel(
    flow: Dataflow, steps: list[Step], outer: list[Step], before: list[Step], rise: int, tainted: dict[Node, int]
) -> bool:
    """Return whether maps that went up belong to the encoder, as in HRNet, which keeps several resolutions.

    They do if something deeper than all maps before is computed from them, or if the deepest map goes on beside them.

    Args:
        flow: the graph behind all steps.
        steps: all of them.
        outer: those that may be stages.
        before: of these, the ones before the first map that went up.
        rise: when that was.
        tainted: 1 for what is computed from a map that went up.
    """
    reach = max((step.pixels for step in before), default=0)
    if any(step.pixels > reach for step in steps if step.time > rise and tainted.get(step.event.node)):
        return True
    first = {step.event.node for step in before if step.pixels == reach}
    beside = [s for s in outer if s.time > rise and s.pixels == reach and not tainted.get(s.event.node)]
    return any(not first & flow.on_every_way(step.event.node) for step in beside[-1:])


def _end(outer: list[Step], steps: list[Step], goes_up: bool, parallel: bool) -> Step:
    """Return the last map of the deepest resolution, but for a classifier's."""
    if parallel:  # what goes down and up again within a block is no resolution of the network
        blocks = {step.event.module for step in steps if step.event.kind == "output" and step.event.module}
        outside = [step for step in outer if not blocks.intersection(step.event.within)] or outer
        pixels = max(step.pixels for step in outside)
    else:
        pixels = max(step.pixels for step in outer) if goes_up else _deepest_of_all(outer)
    here = [step for step in outer if step.pixels == pixels]
    whole = {s.event.module for s in steps if s.event.kind == "output" and s.pixels == pixels and s.event.module}
    top = [
        step
        for step in here
        if step.event.kind != "input"
        and not any(name in whole for name in step.event.within)  # which returns such a map itself
    ]
    widest, least = 0, 2 if goes_up else 8  # classes are few; the neck of a decoder is narrower than the encoder's end
    end = here[-1]
    for step in top:
        widest = max(widest, step.event.channels)
        if least * step.event.channels > widest:
            end = step
    return end


def _deepest_of_all(outer: list[Step]) -> int:
    """Return the pixels of a position of the last map, or of deeper ones that it does not depend on."""
    last = outer[-1]
    reached = leaves_of([last.event.node])
    beyond = {step.pixels: step for step in outer if step.pixels > last.pixels}
    return max([last.pixels, *(p for p, step in beyond.items() if leaves_of([step.event.node]) - reached)])


def _named(steps: list[Step], trace: Trace, end: Step | None = None) -> list[Step]:
    """Return the step that names the latest map best, or that of `end`, of those that a tap can tell apart."""
    readable = [step for step in steps if _is_readable(step.event, trace)]
    for step in [*([] if end is None else [end]), *reversed(readable)]:
        same = [other for other in readable if other is step or other.event.node is step.event.node is not None]
        if same:
            return [max(same, key=lambda step: _preference(step, trace))]
    return []


def _is_readable(event: Event, trace: Trace) -> bool:
    return not event.unchanged if event.kind == "output" else trace.calls[event.module] == 1


def _preference(step: Step, trace: Trace) -> tuple[int, int]:
    """Return what is larger for better names: an output, of the outermost module; then an input, then the others."""
    event = step.event
    if event.kind == "output" and trace.calls[event.module] == 1:
        return (5 if event.module else 4, step.time)
    return ({"input": 3, "part": 2, "output": 1, "function": 0}[event.kind], -step.time)
