"""Find the stages of a network that does not name them: the last map of each resolution on the way down.

What a network computes is recorded with the autograd graph behind each map. At each resolution the map is taken that
everything deeper is computed from, as late as possible: a sum that `forward` computes rather than one of its terms. Of
a network that goes up again (a U-Net, a feature pyramid, a detector) the maps before that are taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

from .ascent import (
    Ascent,
    find_ascent,
    outside_hourglasses,
    without_decoders,
    without_heads,
    without_necks,
    without_pyramid_pooling,
)
from .dataflow import Dataflow, Node, leaves_of
from .steps import Step, proportional
from .trace import Event, Size, Trace


class Findings(NamedTuple):
    """What a pair of passes tells.

    Attributes:
        stages: names of the maps, highest resolution first.
        strides: of these.
        smallest: fewest positions along an axis of the deepest map.
        unaligned: name of a convolution or pooling whose map is not the image's size divided by a stride, or None.
        last_fits: whether the last map of all that grow with the image is the image's size divided by a stride.
        rises: whether the network goes up again, as a U-Net does: its last such map is finer than its deepest stage.
    """

    stages: list[str]
    strides: list[Size]
    smallest: int
    unaligned: str | None
    last_fits: bool
    rises: bool = False


def find_stages(
    trace: Trace, larger: Trace, image: int, size: Size, full: bool = False, left_out: Collection[str] = ()
) -> Findings:
    """Choose the stages of a network from two passes.

    Args:
        trace: of an image of `size`.
        larger: of one twice as large.
        image: id of the leaf that is the image.
        size: of the smaller image.
        full: also a map of stride 1.
        left_out: names of maps that are not chosen.
    """
    if left_out:
        trace = trace._replace(events=[event for event in trace.events if event.name not in left_out])
    steps, unaligned, last_fits, pooled = proportional(trace, larger, size)
    chosen = [step for step in _choose(trace, steps, image, pooled) if full or step.pixels > 1]
    smallest = min((s // t for step in chosen[-1:] for s, t in zip(size, step.stride, strict=True)), default=0)
    rises = bool(chosen) and steps[-1].pixels < chosen[-1].pixels
    strides = [step.stride for step in chosen]
    return Findings([step.event.name for step in chosen], strides, smallest, unaligned, last_fits, rises)


def _choose(trace: Trace, steps: list[Step], image: int, pooled: set[Node]) -> list[Step]:
    """Return one step of each resolution, highest first."""
    steps = outside_hourglasses(steps)
    flow = Dataflow([step.event.node for step in steps], image)
    trained = flow.trained() | {None}  # a map that is computed without gradients has no node
    outer = _outside_downsampling([step for step in steps if step.event.node in trained])
    if not outer:
        return []
    ascent = find_ascent(flow, steps, outer)
    parallel, outer = ascent.parallel, ascent.before
    if ascent.goes_up:
        outer = without_pyramid_pooling(flow, without_decoders(outer, steps, ascent.risen), pooled)
    end = _end(flow, outer, steps, ascent)
    if parallel:
        outer = without_heads(flow, outer, end)
    trunk = set() if parallel else flow.on_every_way(end.event.node)
    chosen = []
    finer = {s.stride for s in outer if s.pixels < end.pixels and all(map(int.__le__, s.stride, end.stride))}
    halfway = _between(steps, [step for step in outer if step.event.node in trunk], end)
    for stride in sorted(finer, key=lambda stride: (math.prod(stride), stride)):
        here = [step for step in outer if step.stride == stride and (parallel or step.time < end.time)]
        on_trunk = [step for step in here if step.event.node in trunk]
        here = on_trunk or [step for step in here if not halfway.intersection(step.event.within)]
        chosen += _named(_up_to_last_module(flow, here, here[-1]), trace) if here else []
    if chosen and _is_pooled_away(flow, chosen[-1], end):
        return _chain(chosen)
    node = end.event.node
    deep = [s for s in outer if s.stride == end.stride and (s.time <= end.time or s.event.node is node is not None)]
    deep = _up_to_last_module(flow, deep, end)
    return _chain(chosen + (_named(deep, trace, deep[-1]) or [end]))


def _chain(chosen: list[Step]) -> list[Step]:
    """Return the steps whose strides divide those of all deeper ones, as a decoder needs.

    A network of two ways through an image may go down by one axis first on one of them, by another on the other.
    """
    kept: list[Step] = []
    for step in reversed(chosen):
        if not kept or all(deep % fine == 0 for deep, fine in zip(kept[-1].stride, step.stride, strict=True)):
            kept.append(step)
    return kept[::-1]


def _is_pooled_away(flow: Dataflow, before: Step, end: Step) -> bool:
    """Return whether the last map is a classifier's pooling: by more than 2, and nothing is trained after `before`."""
    factors = [e // b for b, e in zip(before.stride, end.stride, strict=True)]
    return min(factors) > 2 and _follows(flow, end, before)


def _follows(flow: Dataflow, step: Step, before: Step) -> bool:
    """Return whether a step is computed from another one alone, by no parameter."""
    node, source = step.event.node, before.event.node
    return leaves_of([node]) <= leaves_of([source]) and (node is None or flow.follows_from(node, source))


def _up_to_last_module(flow: Dataflow, steps: list[Step], last: Step) -> list[Step]:
    """Return the steps up to the output of the last module, if `last` is computed from that alone."""
    module = next((s for s in reversed(steps) if s.event.kind == "output" and s.event.module), None)
    if module is None or not _follows(flow, last, module):
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


def _end(flow: Dataflow, outer: list[Step], steps: list[Step], ascent: Ascent) -> Step:
    """Return the last map of the deepest resolution, but for a classifier's or a decoder's."""
    if ascent.goes_up:
        outer = without_necks(flow, outer, _top(outer, steps), ascent.risen)
    goes_down = ascent.rise is None
    pixels = _deepest_of_all(outer) if goes_down else max(step.pixels for step in outer)
    here = [step for step in outer if step.pixels == pixels]
    widest, least = 0, 2 if ascent.goes_up else 8  # classes are few; a decoder is narrower than the encoder's end
    end = here[-1]
    narrow: set[Node] = set()
    for step in _top(here, steps):
        if step.event.kind == "input":
            continue
        if ascent.goes_up and narrow & flow.on_every_way(step.event.node):
            break  # an autoencoder's decoder, behind its bottleneck
        widest = max(widest, step.event.channels)
        if least * step.event.channels > widest:
            end = step
        else:
            narrow.add(step.event.node)
    return end


def _top(some: list[Step], steps: list[Step]) -> list[Step]:
    """Return the steps that are not within a module which returns a map of their resolution itself."""
    whole = {(s.event.module, s.pixels) for s in steps if s.event.kind == "output" and s.event.module}
    return [step for step in some if not any((name, step.pixels) in whole for name in step.event.within)]


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
