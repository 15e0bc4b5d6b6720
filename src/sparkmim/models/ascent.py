"""Tell the encoder of a network that goes up again from what follows it.

A U-Net, a feature pyramid or a detector goes down and up. Three kinds look alike and are not: blocks that go down and
up inside (U2-Net's, SCNet's, attention over a reduced map), which belong to the encoder; networks that keep several
resolutions side by side (HRNet), whose maps that went up belong to it too; and nested U-Nets (U-Net++), which go up
long before they are down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from .dataflow import Dataflow, Node, behind
from .steps import Step


class Ascent(NamedTuple):
    """Where a network goes up.

    Attributes:
        rise: when it first does; None if it does not.
        before: the steps on the way down.
        parallel: whether maps that went up belong to the encoder, as in HRNet.
        risen: nodes of the maps that went up.
    """

    rise: int | None
    before: list[Step]
    parallel: bool
    risen: set[Node]

    @property
    def goes_up(self) -> bool:
        """Whether what goes up is no part of the encoder."""
        return self.rise is not None and not self.parallel


def find_ascent(flow: Dataflow, steps: list[Step], outer: list[Step]) -> Ascent:
    """Find out where a network goes up.

    Args:
        flow: the graph behind all steps.
        steps: all of them.
        outer: those that may be stages.
    """
    deepest = flow.largest({step.event.node: step.pixels for step in sorted(steps, key=lambda step: step.pixels)})
    risen = {step.event.node for step in steps if deepest.get(step.event.node, 0) > step.pixels}
    if not risen:
        return Ascent(None, outer, False, risen)
    rise = min(step.time for step in steps if step.event.node in risen)
    tainted = flow.largest(dict.fromkeys(risen, 1))
    before = [step for step in outer if step.time < rise]
    if _is_parallel(flow, steps, outer, before, rise, tainted):
        nested = _before_nested(outer, before, risen, tainted)
        if nested is None:
            return Ascent(rise, outer, True, risen)
        before = nested
    return Ascent(rise, before, False, risen)


def _before_nested(
    outer: list[Step], before: list[Step], risen: set[Node], tainted: dict[Node, int]
) -> list[Step] | None:
    """Return the way down of a nested U-Net (U-Net++), which goes on after the first map that went up; None of others.

    It does not depend on maps that went up, goes up itself, and is deeper than whatever depends on those.
    """
    sources = behind(risen)
    down = [step for step in outer if not tainted.get(step.event.node) and step.event.node in sources]
    reach = max((step.pixels for step in down), default=0)
    if reach <= max((step.pixels for step in before), default=0):
        return None
    if any(step.pixels >= reach for step in outer if tainted.get(step.event.node)):
        return None
    last = max(step.time for step in down if step.pixels == reach)
    return [step for step in outer if step.time <= last and not tainted.get(step.event.node)]


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


def outside_hourglasses(steps: list[Step]) -> list[Step]:
    """Return the steps that are not within blocks which go down and up again inside.

    Such blocks stand at several resolutions of a network that goes down by itself at least as far as they do. (A whole
    U-Net within a wrapper is no block, nor is one of its levels, written as a module within another.)
    """
    inside = _resolutions_inside(steps)
    blocks: set[str] = set()
    found = set(inside)
    while found:
        blocks = {name for name in found if not any(name in inside[other].within for other in found - {name})}
        if len({inside[name].pixels for name in blocks}) > 1:
            break
        found -= blocks
    if not found:
        return steps
    rest = [step for step in steps if not blocks.intersection(step.event.within)]
    most = max(len(inside[name].deeper) for name in blocks)
    return rest if len({step.pixels for step in rest}) > most else steps


class _Hourglass(NamedTuple):
    """A module that returns a map no finer than its input, and has deeper ones inside; and the modules within it."""

    pixels: int
    deeper: set[int]
    within: set[str]


def _resolutions_inside(steps: Iterable[Step]) -> dict[str, _Hourglass]:
    """Return the modules that go down and up again inside, by name."""
    outputs: dict[str, int] = {}
    held: dict[str, set[int]] = {}
    modules: dict[str, set[str]] = {}
    for step in steps:
        event = step.event
        for name in event.within:
            held.setdefault(name, set()).add(step.pixels)
            modules.setdefault(name, set()).add(event.module)
        given = 0 if event.given is None else math.prod(event.given)
        if event.kind == "output" and event.module and given >= math.prod(event.size):
            outputs[event.module] = max(step.pixels, outputs.get(event.module, 0))
    found = {}
    for name, pixels in outputs.items():
        deeper = {p for p in held.get(name, ()) if p > pixels}
        if deeper:
            found[name] = _Hourglass(pixels, deeper, modules[name] - {name})
    return found


def without_heads(flow: Dataflow, outer: list[Step], end: Step) -> list[Step]:
    """Return the steps of a network of several resolutions that are not computed from its last maps of deeper ones.

    Those are a head's, which joins all maps, unless they are of the part of the network that the deepest map is of.

    Args:
        flow: the graph behind all steps.
        outer: the steps that may be stages.
        end: the last map of the deepest resolution.
    """
    inner = [step for step in outer if step.event.module or step.event.kind == "function"]
    everywhere = set.intersection(*[{step.event.module, *step.event.within} for step in inner])
    parts = set(end.event.within) - everywhere
    kept: list[Step] = []
    last = {end.event.node: 1}
    for pixels in sorted({step.pixels for step in outer}, reverse=True):
        after = flow.largest(last)
        here = [
            step
            for step in outer
            if step.pixels == pixels
            and (
                pixels >= end.pixels
                or not after.get(step.event.node)
                or parts.intersection((step.event.module, *step.event.within))
            )
        ]
        if here and pixels < end.pixels:
            last[here[-1].event.node] = 1
        kept += here
    return sorted(kept, key=lambda step: step.time)


def without_pyramid_pooling(flow: Dataflow, outer: list[Step], pooled: set[Node]) -> list[Step]:
    """Return the steps without those behind a pyramid pooling (PSPNet's), where others have maps of all resolutions.

    Such a head pools the whole map to a few positions, of which patches hold no whole number.

    Args:
        flow: the graph behind all steps.
        outer: the steps that may be stages.
        pooled: nodes of the maps of several positions that do not grow with the image.
    """
    behind_pooling = flow.largest(dict.fromkeys(flow.from_source(pooled), 1))
    kept = [step for step in outer if not behind_pooling.get(step.event.node)]
    return kept if _resolutions(kept) == {step.pixels for step in outer} else outer


def without_decoders(outer: list[Step], steps: list[Step], risen: set[Node]) -> list[Step]:
    """Return the steps without those of modules that go up themselves, where others have maps of all resolutions.

    Such a module is a decoder, which may begin with layers at the deepest resolution (the attention of MA-Net).

    Args:
        outer: the steps on the way down.
        steps: all of them.
        risen: nodes of the maps that went up.
    """
    resolutions = {step.pixels for step in outer}
    for name in dict.fromkeys(name for step in steps if step.event.node in risen for name in _modules_of(step)):
        kept = [step for step in outer if name not in _modules_of(step)]
        if _resolutions(kept) == resolutions:
            outer = kept
    return outer


def _resolutions(steps: list[Step]) -> set[int]:
    """Return the pixels of the positions of maps that the network computes."""
    return {step.pixels for step in steps if step.event.kind != "input"}


def _modules_of(step: Step) -> list[str]:
    """Return the modules that were running when a map was made, the whole network left out."""
    return [name for name in (*step.event.within, step.event.module) if name]


def without_necks(flow: Dataflow, outer: list[Step], top: list[Step], risen: set[Node]) -> list[Step]:
    """Return the steps without the deepest resolutions that a feature pyramid adds to the encoder (EfficientDet's).

    These have at most half of the encoder's channels, and the network also goes up without them.

    Args:
        flow: the graph behind all steps.
        outer: the steps on the way down.
        top: of these, what is not within a module that returns a map of its resolution.
        risen: nodes of the maps that went up.
    """
    while True:
        deepest = max(step.pixels for step in outer)
        here = [step for step in top if step.pixels == deepest and step.event.kind != "input"]
        trunk = flow.on_every_way(here[-1].event.node) if here else set()
        finer = [step for step in top if step.pixels < deepest and step.event.node in trunk]
        if not finer:
            return outer
        last = {step.pixels: step for step in finer}
        widest = max(last.values(), key=lambda step: step.event.channels)
        if 2 * max(step.event.channels for step in here) > widest.event.channels:
            return outer
        nodes = {step.event.node for step in here}
        if all(nodes & flow.on_every_way(node) for node in risen if widest.event.node in behind([node])):
            return outer  # an autoencoder that narrows
        outer = [step for step in outer if step.pixels < deepest]
