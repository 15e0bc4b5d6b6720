"""Functions that move, pick out or merge positions of whole maps: hidden ones are outside, as for a convolution.

Within a patch that is the same for every execution, and the shared rules say how. Where what becomes one position holds
several patches (strided slices, space to depth, cells cut by a reshape), hidden positions are first replaced by what
the function sees outside: zeros, or what does not count in a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..functions import functions_named
from ..layout import Layout
from ..reduction import REDUCTIONS, Reduction, bound_arguments
from ..registry import rule_for
from ..shared.masks import is_mask_of_input
from .cut import CutLayout
from .moments import NEUTRAL
from .whole_maps import WholeMaps


def _shared(execution: WholeMaps, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the rule that every execution shares."""
    rule = rule_for(func, ["Execution"])
    if rule is None:
        raise unsupported(func, "it has no rule")
    return rule(execution, func, *args, **kwargs)


def _mixes(execution: WholeMaps, old: Sequence[int], new: Sequence[int]) -> list[bool]:
    """Return, for each axis of the image, whether cells of a map of `old` positions hold several patches each.

    Args:
        old: positions of the map along each axis.
        new: cells along each axis.
    """
    grid = execution.grid_shape[1:]
    return [n < o and n % g != 0 for o, n, g in zip(old, new, grid, strict=True)]


def _outside(execution: WholeMaps, x: Tensor, layout: Layout) -> Tensor:
    """Return a map with zeros at hidden positions, marked; one that is cut has cells as positions then."""
    plain = layout.of_cells() if isinstance(layout, CutLayout) else layout
    return execution.mark(torch.where(execution.mask_along(x, layout), x, 0.0), plain)


def _copied(execution: WholeMaps, source: Tensor, out: Any) -> Any:
    """Return maps made of a copy of `source` that may be views of it in the ordinary network, harmless where hidden."""
    if isinstance(out, (tuple, list)):
        return tuple(_copied(execution, source, part) for part in out)
    layout = execution.layout(out)
    assert layout is not None
    settled = execution.settled(out, layout)
    execution.memory.doubt(source, settled)
    return settled


def _extents(x: Tensor, layout: Layout | None) -> list[int]:
    return [] if layout is None else list(layout.flattened) or [x.shape[axis] for axis in layout.space]


# --- reshapes -------------------------------------------------------------------------------------------------------


@WholeMaps.register(*functions_named("reshape view view_as reshape_as flatten unflatten"))
def reshape(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Cut a map into cells, join them again, or move the positions of a cell to channels."""
    layout = execution.layout(input)
    if isinstance(layout, CutLayout):
        sizes = layout.sizes(_extents(input, layout))
        plain = execution.mark(input.view_as(input), layout.of_cells())
        out: Tensor = _shared(execution, func, plain, *args, **kwargs)
        if execution.unfinished(out) is not None:
            return _shared(execution, func, _outside(execution, input, layout), *args, **kwargs)  # type: ignore[no-any-return]
        if _extents(out, execution.layout(out)) == list(sizes):
            return out
        out = _shared(execution, func, _outside(execution, input, layout), *args, **kwargs)
        return _copied(execution, input, out)
    out = _shared(execution, func, input, *args, **kwargs)
    if execution.unfinished(out) is not None:
        return out
    new = execution.layout(out)
    if layout is None or new is None or not layout.is_map or new.flattened or layout.flattened:
        return out
    mixed = _mixes(execution, _extents(input, layout), _extents(out, new))
    if not any(mixed):
        return out
    cut = _cut(input, layout, out, new, mixed)
    if cut is not None:
        return execution.mark(out, cut)
    return _copied(execution, input, _shared(execution, func, _outside(execution, input, layout), *args, **kwargs))


def _cut(x: Tensor, layout: Layout, out: Tensor, new: Layout, mixed: list[bool]) -> CutLayout | None:
    """Return the layout of `x` cut into cells; None if the positions of a cell are not one axis behind its own."""
    space: list[int] = []
    for old_axis, axis, is_mixed in zip(layout.space, new.space, mixed, strict=True):
        space.append(axis)
        if is_mixed:
            within = x.shape[old_axis] // out.shape[axis]
            if axis + 1 >= out.ndim or axis + 1 in new.tracked_axes or out.shape[axis + 1] != within:
                return None
            space.append(axis + 1)
    return CutLayout(new.origin, new.batch, tuple(space), tuple(1 + m for m in mixed), new.padding)


# --- parts of a map -------------------------------------------------------------------------------------------------


@WholeMaps.register(torch.Tensor.__getitem__)
def getitem(execution: WholeMaps, func: Any, x: Tensor, index: Any) -> Tensor:
    """Pick out every n-th position, where one that is hidden counts as zero."""
    if execution.unfinished(x) is not None:
        return _shared(execution, func, x, index)  # type: ignore[no-any-return]
    layout = execution.layout(x)
    if isinstance(layout, CutLayout):
        try:
            out: Tensor = _shared(execution, func, x, index)
        except RuntimeError:  # it picks out positions of cells
            return _copied(execution, x, _shared(execution, func, _outside(execution, x, layout), index))
        return out
    out = _shared(execution, func, x, index)
    new = execution.layout(out)
    if layout is None or new is None or not layout.is_map or layout.flattened:
        return out
    if not any(_mixes(execution, _extents(x, layout), _extents(out, new))):
        return out
    return _copied(execution, x, _shared(execution, func, _outside(execution, x, layout), index))


@WholeMaps.register(torch.Tensor.__setitem__)
def setitem(execution: WholeMaps, func: Any, x: Tensor, index: Any, value: Any) -> None:
    layout = None if is_mask_of_input(execution, index) else execution.layout(x)
    if layout is not None and layout.is_map and not layout.flattened:
        picked = x.detach()[index]
        moved = execution.layout(
            _shared(execution, torch.Tensor.__getitem__, execution.mark(x.detach(), layout), index)
        )
        if _extents(picked, moved) != _extents(x, layout) and not _in_patches(execution, x, layout, picked, moved):
            raise unsupported(func, "it writes to some positions of cells that hold several patches")
    _shared(execution, func, x, index, value)


def _in_patches(execution: WholeMaps, x: Tensor, layout: Layout, picked: Tensor, moved: Layout | None) -> bool:
    return not any(_mixes(execution, _extents(x, layout), _extents(picked, moved)))


@WholeMaps.register(*functions_named("select unbind"))
def select(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Pick out a position of each cell of a map that is cut, where one that is hidden counts as zero."""
    layout = execution.layout(input)
    axis = (kwargs["dim"] if "dim" in kwargs else args[0] if args else 0) % input.ndim
    if not isinstance(layout, CutLayout) or axis not in layout.within:
        return _shared(execution, func, input, *args, **kwargs)
    return _copied(execution, input, _shared(execution, func, _outside(execution, input, layout), *args, **kwargs))


@WholeMaps.register(*functions_named("pixel_unshuffle"))
def pixel_unshuffle(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Move positions to channels, where hidden ones are zero."""
    layout = execution.layout(input)
    out: Tensor = _shared(execution, func, input, *args, **kwargs)
    if layout is None or not any(_mixes(execution, _extents(input, layout), _extents(out, execution.layout(out)))):
        return out
    out = _shared(execution, func, _outside(execution, input, layout), *args, **kwargs)
    return execution.settled(out, layout)


@WholeMaps.register(*functions_named("pixel_shuffle"))
def pixel_shuffle(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Move channels to positions, of which more are hidden where a position held several patches."""
    out: Tensor = _shared(execution, func, input, *args, **kwargs)
    return execution.settled(out, execution.require_map(func, out))


# --- reductions of cells --------------------------------------------------------------------------------------------


@WholeMaps.register(*REDUCTIONS)
def reduction(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Reduce the positions of each cell of a map that is cut, as pooling would."""
    layout = None if execution.unfinished(input) is not None else execution.layout(input)
    if not isinstance(layout, CutLayout):
        return _shared(execution, func, input, *args, **kwargs)
    arguments = bound_arguments(func, args, kwargs)
    dims = arguments.pop("dim", None)
    axes = () if dims is None else tuple(d % input.ndim for d in ((dims,) if isinstance(dims, int) else dims))
    reduced = set(axes) & set(layout.space)
    if reduced != set(layout.within):
        return _shared(execution, func, input, *args, **kwargs)
    reduce = Reduction(func, bool(arguments.pop("keepdim", False)), arguments)
    fill = 0.0 if reduce.name == "mean" else NEUTRAL.get(reduce.name)
    if fill is None or math.isnan(fill) or not _is_positive(arguments.get("p", arguments.get("ord", 2))):
        raise unsupported(func, f"{reduce.name} of cells that hold several patches has no rule")
    out = reduce(torch.where(execution.mask_along(input, layout), input, fill), axes)
    plain = layout.of_cells()
    if not reduce.keep:
        plain = plain.moved(*_without(plain, axes))
    return execution.settled(out, plain)


def _is_positive(order: Any) -> bool:
    return isinstance(order, (int, float)) and order > 0


def _without(layout: Layout, axes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    batch, *space = (axis - sum(gone < axis for gone in axes) for axis in layout.tracked_axes)
    return batch, tuple(space)


# --- noise ----------------------------------------------------------------------------------------------------------


@WholeMaps.register(*functions_named("dropout rrelu rand_like randn_like bernoulli empty_like"))
def noise(execution: WholeMaps, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Draw noise for each position, and then have hidden ones hold what visible ones do."""
    out: Tensor = _shared(execution, func, input, *args, **kwargs)
    layout = execution.layout(out)
    if out is input or layout is None or not layout.is_map:
        return out
    return execution.settled(out, layout)
