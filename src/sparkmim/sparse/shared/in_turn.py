"""Reductions of spatial axes in turn: `x.mean(3).mean(2)` is the mean over both.

What is reduced along one spatial axis has no meaning by itself, since rows and columns run through hidden patches. It
waits, as the map that it was made of, until the same reduction of the other spatial axes follows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..layout import Layout, Unfinished
from ..reduction import Reduction
from ..totals import note_total
from ..versions import version_of

_IN_TURN = ("mean", "sum", "nansum", "amax", "amin", "logsumexp", "norm", "vector_norm")
"""Reductions for which one axis after the other is all of them at once."""


class InTurn(NamedTuple):
    """A map that has been reduced along some of its spatial axes.

    Attributes:
        reduce: the reduction.
        source: the map.
        layout: of the map.
        axes: of the map that are reduced already.
        kept: for each axis of the reduced tensor, the axis of the map that it is.
        version: of the map when it was reduced: it must not change before the reduction is finished.
    """

    reduce: Reduction
    source: Tensor
    layout: Layout
    axes: tuple[int, ...]
    kept: tuple[int, ...]
    version: int


def begun(execution: Execution, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
    """Reduce some of the spatial axes of a map; the result waits for the others.

    Raises:
        UnsupportedOperation: for a reduction that is not the same in turn as at once.
    """
    order = reduce.arguments.get("p", reduce.arguments.get("ord", 2))
    if reduce.name not in _IN_TURN or not isinstance(order, (int, float)) or order == 0:
        raise unsupported(
            reduce.function,
            "it reduces one spatial axis and not the others, and rows and columns run through hidden patches; reduce "
            "all spatial axes at once",
        )
    return _waiting(execution, reduce, x, layout, axes, tuple(range(x.ndim)), reduce.keep)


def continued(execution: Execution, reduce: Reduction, unfinished: Unfinished, axes: tuple[int, ...]) -> Any:
    """Reduce further axes of what waits; once they hold all of space, the map it was made of is reduced."""
    before: InTurn = unfinished.waits
    first, source, layout, kept = before.reduce, before.source, before.layout, before.kept
    if (first.name, first.arguments) != (reduce.name, reduce.arguments):
        raise unsupported(unfinished.function, unfinished.why)
    if version_of(source) != before.version:
        raise unsupported(reduce.function, "the map was written to between its reduction along one axis and the others")
    axes = tuple(kept[axis] for axis in axes)
    if layout.batch in axes:
        raise unsupported(reduce.function, "it mixes images")
    everything = tuple(sorted({*before.axes, *axes}))
    if not set(layout.space) <= set(everything):
        return _waiting(execution, first, source, layout, everything, kept, reduce.keep, axes)
    kept = kept if reduce.keep else tuple(axis for axis in kept if axis not in axes)
    out: Tensor = execution.reduce_space(first._replace(keep=True), source, layout, everything)
    gone = [axis for axis in range(source.ndim) if axis not in kept]
    out = out.squeeze(gone) if gone else out
    note_total(execution, first.name, source, out)
    return execution.mark(out, layout.per_image(kept.index(layout.batch)))


def _waiting(
    execution: Execution,
    reduce: Reduction,
    x: Tensor,
    layout: Layout,
    everything: tuple[int, ...],
    kept: tuple[int, ...],
    keep: bool,
    axes: tuple[int, ...] | None = None,
) -> Tensor:
    """Return a tensor of the shape that a map has when it is reduced along some spatial axes, marked as unfinished.

    Args:
        everything: axes of the map that are reduced.
        kept: those that the tensor reduced now has.
        keep: whether it keeps the axes reduced now.
        axes: those reduced now, by default `everything`.
    """
    axes = everything if axes is None else axes
    kept = kept if keep else tuple(axis for axis in kept if axis not in axes)
    with torch.no_grad():
        out: Tensor = reduce._replace(keep=True)(x, everything)
    gone = [axis for axis in range(x.ndim) if axis not in kept]
    out = out.squeeze(gone) if gone else out
    name = reduce.name
    why = (
        f"it reduces one spatial axis and not the others, and rows and columns run through hidden patches; only the "
        f"same reduction of the others can follow ({name} along 3, then along 2), or all at once ({name} along (2, 3))"
    )
    # Where torch counts no versions, a copy of the map waits, which cannot be written to meanwhile.
    source = x.clone() if torch.compiler.is_compiling() or x.is_inference() else x
    waits = InTurn(reduce, source, layout, everything, kept, version_of(source))
    unfinished = Unfinished(reduce.function, why, waits)
    space = tuple(kept.index(axis) for axis in layout.space if axis in kept and axis not in everything)
    return execution.mark(out, Layout(layout.origin, kept.index(layout.batch), space, unfinished=unfinished))
