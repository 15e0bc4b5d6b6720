"""Functions that join, split, move, add and remove axes. Samples and space must each stay an axis of their own; where a
function would merge, cut or reorder them it is refused. Never decided by the size of an axis, but for reshapes, whose
arguments are sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import running_module_ids, unsupported
from ..execution import Execution
from ..extent import Degrees, Extent, area, degrees_of, of_whole_map, unit, value_of
from ..functions import attributes_named, functions_named
from ..layout import Layout, Unfinished
from ..registry import understands_sizes
from .calls import call
from .masks import is_mask_of_input, write_where
from .merged import merged
from .overhang import cropped_by_index, is_overhang, slices_of_space
from .pointwise import (
    broadcast_layout,
    free_axes,
    operand,
    own_layout,
    require_no_input,
    shape_of_whole,
    with_values_per_image,
)
from .scales import extents_here

# --- joining and splitting ------------------------------------------------------------------------------------------


@Execution.register(*functions_named("cat concat concatenate"))
def cat(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    layout, ndim = _common_layout(execution, func, tensors)
    (axis,) = free_axes(func, layout, ndim, kwargs.get("axis", dim))
    return execution.mark(torch.cat(tuple(tensors), axis), layout)


@Execution.register(torch.stack)
def stack(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    layout, ndim = _common_layout(execution, func, tensors)
    axis = kwargs.get("axis", dim) % (ndim + 1)
    return execution.mark(torch.stack(tuple(tensors), axis), _with_new_axis(layout, axis))


def _common_layout(execution: Execution, func: Any, tensors: Sequence[Tensor]) -> tuple[Layout, int]:
    layout, ndim = broadcast_layout(execution, func, tensors)
    if any(execution.layout(t) != layout for t in tensors):
        raise unsupported(func, "it joins tensors whose axes mean different things")
    return layout, ndim


@Execution.register(*functions_named("chunk split tensor_split split_with_sizes"))
def split(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    free_axes(func, layout, input.ndim, kwargs.get("dim", args[1] if len(args) > 1 else 0))
    return tuple(execution.mark(part, layout) for part in func(input, *args, **kwargs))


@Execution.register(*functions_named("unbind"))
def unbind(execution: Execution, func: Any, input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, input)
    (axis,) = free_axes(func, layout, input.ndim, dim)
    out = without_axes(layout, (axis,))
    return tuple(execution.mark(part, out) for part in func(input, dim))


@Execution.register(*functions_named("narrow select index_select"))
def part_of_axis(execution: Execution, func: Any, input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    (axis,) = free_axes(func, layout, input.ndim, dim)
    out: Tensor = func(input, dim, *args, **kwargs)
    return execution.mark(out, layout if out.ndim == input.ndim else without_axes(layout, (axis,)))


def _indexed(execution: Execution, func: Any, x: Tensor, index: Any) -> tuple[Layout, Any]:
    """Return the layout of a part of `x`, and the index of that part in the tensor at hand."""
    layout = own_layout(execution, func, x)
    index = of_whole_map(index)
    entries = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis not in [e for e in entries if not isinstance(e, Tensor)]:
        entries.append(Ellipsis)
    position = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
    entries[position : position + 1] = [slice(None)] * (x.ndim - consumed)
    places: dict[int, int] = {}
    axis = new = 0
    for position, entry in enumerate(entries):
        if entry is None:
            new += 1
            continue
        if axis in layout.tracked_axes:
            whole = isinstance(entry, slice) and _reaches_end(execution, layout, axis, x, entry)
            step = (entry.step or 1) if whole else 0
            begins_here = whole and entry.start in (None, 0)
            strided = (
                whole
                and axis in layout.space
                and not layout.flattened
                and x.shape[axis] % step == 0
                and 0 <= (entry.start or 0) < step
            )
            whole = begins_here and step == 1
            if not (whole or strided):
                raise unsupported(func, f"it picks out samples or positions along axis {axis} ({layout})")
            entries[position] = slice(entry.start, None, entry.step)
            places[axis] = new
            new += 1
        elif isinstance(entry, slice):
            places[axis] = new
            new += 1
        elif type(entry) is not int:  # True is an int to Python and a mask to torch
            count = _axes_of_index(execution, func, entry, entries)
            new += count
        axis += 1
    return layout.moved(places[layout.batch], tuple(places[a] for a in layout.space)), tuple(entries)


def _axes_of_index(execution: Execution, func: Any, entry: Any, entries: Sequence[Any]) -> int:
    """Return how many axes an index of places along a free axis makes of it; raise for what is no such index."""
    if not isinstance(entry, (Tensor, list)):
        raise unsupported(func, "it indexes with something other than integers, slices, lists and tensors")
    if execution.any_layout([entry]):
        raise unsupported(func, "its index descends from the input; use gather, or torch.where for a mask")
    index = torch.as_tensor(entry)
    lists = [other for other in entries if isinstance(other, (Tensor, list)) or type(other) is int]
    if len(lists) > 1 or (index.dtype == torch.bool and index.ndim != 1):
        raise unsupported(func, "it indexes several axes at once by numbers and lists; index one after the other")
    return index.ndim


def _reaches_end(execution: Execution, layout: Layout, axis: int, x: Tensor, entry: slice) -> bool:
    """Return whether a slice with a step forwards goes on to the end of the whole map, or beyond it."""
    end = entry.stop is None or entry.stop >= execution.extent_of_whole(layout, axis, x.shape[axis])
    return end and (entry.step is None or entry.step > 0)


@understands_sizes(torch.Tensor.__getitem__)
@Execution.register(torch.Tensor.__getitem__)
def getitem(execution: Execution, func: Any, x: Tensor, index: Any) -> Tensor:
    if is_overhang(execution, x):
        return cropped_by_index(execution, x, index)
    if execution.layout(x) is None:
        raise unsupported(func, "its index descends from the input")
    if is_mask_of_input(execution, index):
        raise unsupported(
            func,
            "it lists the values that a mask shows, and how many there are depends on what is visible; use "
            "torch.where(mask, a, b)",
        )
    sides = _cropped_sides(execution, x, index)
    if sides is not None:
        out: Tensor = call(execution, F.pad, x, sides)
        cropped = execution.require_map(func, out)
        assert cropped.padding is not None
        why = "it picks out samples or positions, and only a convolution or pooling can follow that"
        by = Unfinished(func, why, within=running_module_ids())
        return execution.mark(out, cropped.padded(cropped.padding._replace(cropped=by)))
    layout, place = _indexed(execution, func, x, index)
    return execution.mark(func(x, place), layout)


def _cropped_sides(execution: Execution, x: Tensor, index: Any) -> list[int] | None:
    """Return what an index that only crops the edges of a map takes off them, as negative padding; None for others.

    As in `pad(x)[:, :, 1:, 1:]`. What is at its place then is decided by the convolution or pooling that follows.
    """
    layout = execution.layout(x)
    if layout is None or not layout.is_channels_first(x.ndim) or layout.flattened:
        return None
    slices = slices_of_space(layout, x.ndim, index)
    if slices is None:
        return None
    sides: list[int] = []
    for own in reversed(range(len(layout.space))):
        axis, entry = layout.space[own], slices[own]
        size = execution.extent_of_whole(layout, axis, x.shape[axis])
        if layout.padding is not None:
            size += layout.padding.before[own] + layout.padding.after[own]
        if execution.has_plain_sizes() and ((entry.stop or 0) > 0 or (entry.start or 0) < 0):
            return None  # compiled, the size is that of patches
        start, stop, _ = entry.indices(size)
        if stop <= start:
            return None
        sides += [-start, stop - size]
    return sides if any(sides) else None


@understands_sizes(torch.Tensor.__setitem__)
@Execution.register(torch.Tensor.__setitem__)
def setitem(execution: Execution, func: Any, x: Tensor, index: Any, value: Any) -> None:
    if is_mask_of_input(execution, index):
        write_where(execution, func, x, index, value)
        return
    target, place = _indexed(execution, func, x, index)
    if isinstance(value, Tensor):
        written = execution.mark(x.detach()[place], target)
        layout, _ = broadcast_layout(execution, func, [written, value])
        if layout != target:
            raise unsupported(func, "it writes a value whose axes mean something else")
    func(x, place, operand(execution, func, value))


# --- axes moved, added, removed, split and joined -------------------------------------------------------------------


def _with_new_axis(layout: Layout, axis: int) -> Layout:
    shifted = [a + (a >= axis) for a in layout.tracked_axes]
    return layout.moved(shifted[0], tuple(shifted[1:]))


def without_axes(layout: Layout, axes: Sequence[int]) -> Layout:
    shifted = [a - sum(gone < a for gone in axes) for a in layout.tracked_axes]
    return layout.moved(shifted[0], tuple(shifted[1:]))


def _permuted(layout: Layout, order: Sequence[int]) -> Layout:
    return layout.moved(order.index(layout.batch), tuple(order.index(a) for a in layout.space))


@Execution.register(*functions_named("permute"))
def permute(execution: Execution, func: Any, input: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    order = [d % input.ndim for d in numbers_of(dims, kwargs, "dims")]
    return execution.mark(input.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("transpose swapaxes swapdims"))
def transpose(execution: Execution, func: Any, input: Tensor, dim0: int, dim1: int) -> Tensor:
    layout = own_layout(execution, func, input)
    order = list(range(input.ndim))
    a, b = dim0 % input.ndim, dim1 % input.ndim
    order[a], order[b] = b, a
    return execution.mark(input.permute(order), _permuted(layout, order))


@Execution.register(*attributes_named("mT"))
def matrix_transpose(execution: Execution, func: Any, input: Tensor) -> Tensor:
    return transpose(execution, func, input, -2, -1)


@Execution.register(*functions_named("movedim moveaxis"))
def movedim(execution: Execution, func: Any, input: Tensor, source: Any, destination: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    sources = [s % input.ndim for s in ([source] if isinstance(source, int) else source)]
    destinations = [d % input.ndim for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter([axis for axis in range(input.ndim) if axis not in sources])
    order = [sources[destinations.index(a)] if a in destinations else next(rest) for a in range(input.ndim)]
    return execution.mark(input.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("unsqueeze"))
def unsqueeze(execution: Execution, func: Any, input: Tensor, dim: int) -> Tensor:
    layout = own_layout(execution, func, input)
    return execution.mark(input.unsqueeze(dim), _with_new_axis(layout, dim % (input.ndim + 1)))


@Execution.register(*functions_named("squeeze"))
def squeeze(execution: Execution, func: Any, input: Tensor, dim: Any = None) -> Tensor:
    layout = own_layout(execution, func, input)
    if dim is None:
        raise unsupported(func, "which axes it removes depends on the size of a patch; name the axis")
    gone = [axis for axis in free_axes(func, layout, input.ndim, dim) if input.shape[axis] == 1]
    return execution.mark(input.squeeze(dim), without_axes(layout, gone))


_IN_PLACE: dict[Any, Any] = {
    torch.Tensor.unsqueeze_: torch.Tensor.unsqueeze,
    torch.Tensor.squeeze_: torch.Tensor.squeeze,
    torch.Tensor.transpose_: torch.Tensor.transpose,
    torch.Tensor.swapaxes_: torch.Tensor.transpose,
    torch.Tensor.swapdims_: torch.Tensor.transpose,
}
"""Functions that rearrange the axes of a tensor itself, and what returns a view of it with these axes."""


@Execution.register(*_IN_PLACE)
def rearrange(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rearrange the axes of a tensor in place: it is then what the view would be."""
    view = execution.answer(_IN_PLACE[func], (input, *args), kwargs)
    func(input, *args, **kwargs)
    execution.memory.note(input, execution.memory.noted(view))
    layout = execution.layout(view)
    assert layout is not None
    return execution.mark(input, layout)


@Execution.register(*functions_named("flatten"))
def flatten(execution: Execution, func: Any, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    layout = own_layout(execution, func, input)
    start, end = start_dim % input.ndim, end_dim % input.ndim
    if start == end:
        return input
    together = tuple(range(start, end + 1))
    if together == layout.space:
        batch = layout.batch - (layout.batch > end) * (end - start)
        return execution.mark(input.flatten(start, end), layout.flat(batch, start, tuple(input.shape[start : end + 1])))
    if any(axis in together for axis in layout.tracked_axes):
        shape = shape_of_whole(execution, input)
        return _reshape(execution, func, input, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])
    return execution.mark(input.flatten(start, end), without_axes(layout, range(start, end)))


_UNFLATTEN = functions_named("unflatten")


@understands_sizes(*_UNFLATTEN)
@Execution.register(*_UNFLATTEN)
def unflatten(execution: Execution, func: Any, input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    layout = own_layout(execution, func, input)
    axis = dim % input.ndim
    if axis in layout.tracked_axes:
        shape = shape_of_whole(execution, input)
        return _reshape(execution, func, input, [*shape[:axis], *sizes, *shape[axis + 1 :]])
    out = layout
    for _ in range(len(sizes) - 1):
        out = _with_new_axis(out, axis + 1)
    return execution.mark(input.unflatten(axis, tuple(of_whole_map(sizes))), out)


_RESHAPE = functions_named("reshape view")


@understands_sizes(*_RESHAPE)
@Execution.register(*_RESHAPE)
def reshape(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    own_layout(execution, func, input)
    if (shape and isinstance(shape[0], torch.dtype)) or "dtype" in kwargs:
        raise unsupported(func, "it reinterprets the bytes of a map")
    return _reshape(execution, func, input, numbers_of(shape, kwargs, "size" if "size" in kwargs else "shape"))


@Execution.register(*functions_named("view_as reshape_as"))
def reshape_as(execution: Execution, func: Any, input: Tensor, other: Tensor) -> Tensor:
    return _reshape(execution, func, input, shape_of_whole(execution, other))


def _reshape(execution: Execution, func: Any, input: Tensor, shape: Sequence[Any]) -> Tensor:
    """Reshape a tensor to a shape of the whole map."""
    layout = own_layout(execution, func, input)
    new = _without_unknown(execution, shape, input)
    found = _reshaped(execution, input, layout, new)
    if isinstance(found, str):
        waiting = merged(execution, func, input, shape_of_whole(execution, input), new, found)
        if waiting is None:
            raise unsupported(func, found)
        return waiting
    out, extents = found
    if any(extent % 1 for extent in extents):
        if any(extent % 1 and Fraction(extent).numerator != 1 for extent in extents):
            raise unsupported(
                func,
                f"reshaping {tuple(shape_of_whole(execution, input))} to {tuple(new)} makes cells that straddle "
                "patches; use a larger patch size",
            )
        return execution.reshaped_coarser(func, input, new)
    local = [int(extent) for extent in extents]
    if math.prod(local) != input.numel():
        raise unsupported(
            func, f"a patch here is {tuple(input.shape)}, which does not fill {tuple(local)}; use a larger patch size"
        )
    return execution.mark(input.reshape(local), out)


def numbers_of(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> list[int]:
    """Return a list of numbers given as one argument, as several, or by name."""
    if name in kwargs:
        args = (kwargs[name],)
    return list(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)


def _without_unknown(execution: Execution, shape: Sequence[Any], x: Tensor) -> list[Any]:
    """Resolve the -1 of a shape, if any, as on the whole map."""
    unknown = [axis for axis, size in enumerate(shape) if size == -1]
    if not unknown:
        return list(shape)
    known = math.prod([size for size in shape if size != -1])
    whole = math.prod(shape_of_whole(execution, x))
    size = whole // known if known and whole % known == 0 else -1
    return [size if axis in unknown else given for axis, given in enumerate(shape)]


def _reshaped(execution: Execution, x: Tensor, layout: Layout, new: list[Any]) -> tuple[Layout, list[Any]] | str:
    """Return where samples and space are after a reshape, and its shape here; or why they are not axes of their own.

    The tracked axes cut the shape into segments of free axes. A reshape keeps their meaning if the new shape has the
    same tracked extents in the same order, with as many elements between them. Where no axis lay between two of them,
    or behind the last, none may come, even of extent 1: space of extent 1 would leave open which axis is which.
    (Before the first spatial axis one may.)

    Two things more are possible with sizes that are known to scale with the map
    (:class:`~sparkmim.sparse.extent.Extent`). A spatial axis may be cut into cells: one axis counts the cells, a free
    one behind it the positions in a cell. And all spatial axes, where they are neighbors, may become one, or that one
    become them again.
    """
    old = [value_of(size) for size in shape_of_whole(execution, x)]
    whole = [_Tracked(axis, axis + 1, [old[axis]], [layout.degrees(axis)]) for axis in layout.tracked_axes]
    readings = [sorted(whole)]
    dims = len(layout.flattened)
    if dims:
        (axis,) = layout.space
        extents = _extents_of_flattened(execution, layout)
        apart = _Tracked(axis, axis + 1, extents, [unit(i) for i in range(dims)])
        readings.append(sorted([whole[0], apart]))
    elif len(layout.space) > 1 and layout.space == tuple(range(layout.space[0], layout.space[-1] + 1)):
        extents = [old[a] for a in layout.space]
        together = _Tracked(layout.space[0], layout.space[-1] + 1, [math.prod(extents)], [area(len(extents))])
        readings.append(sorted([whole[0], together]))
    found = [(reading, places) for reading in readings for places in _places(reading, layout, old, new)]
    if len(found) != 1:
        cut = any(type(size) is Extent and not size.degrees for size in new)
        too_small = f" (a patch here is {tuple(x.shape)}; a larger patch size may do)" if cut else ""
        return (
            f"reshaping {tuple(old)} ({layout}) to {tuple(new)} does not keep samples and space as axes of their own"
            f"{too_small}, and only functions of single values, reductions of whole axes, linear layers, norms and a "
            "reshape back can follow"
        )
    reading, places = found[0]
    moved = dict(zip([tracked.start for tracked in reading], places, strict=True))
    batch = moved[layout.batch][0]
    local = [value_of(size) for size in new]
    local[batch] = x.shape[layout.batch]
    if reading is readings[0]:
        for axis in layout.space:
            (place,) = moved[axis]
            cells = degrees_of(new[place]) == layout.degrees(axis) and new[place] != old[axis]
            local[place] = Fraction(x.shape[axis] * value_of(new[place]), old[axis]) if cells else x.shape[axis]
        return layout.moved(batch, tuple(moved[a][0] for a in layout.space)), local
    space = moved[layout.space[0]]
    if dims:
        for place, extent in zip(space, layout.flattened, strict=True):
            local[place] = extent
        return Layout(layout.origin, batch, space, layout.padding), local
    here = tuple(x.shape[a] for a in layout.space)
    local[space[0]] = math.prod(here)
    return layout.flat(batch, space[0], here), local


def _extents_of_flattened(execution: Execution, layout: Layout) -> list[int]:
    """Return the extents on the whole map of the spatial axes that have become one."""
    apart = Layout(layout.origin, -1, tuple(range(len(layout.flattened))))
    return [execution.extent_of_whole(apart, axis, extent) for axis, extent in enumerate(layout.flattened)]


class _Tracked(NamedTuple):
    """Axes `start` to `end` of a shape that hold samples or space, and what they are to be in the new shape."""

    start: int
    end: int
    extents: list[int]
    degrees: list[Degrees]


def _places(
    tracked: Sequence[_Tracked], layout: Layout, old: list[int], new: list[int]
) -> list[tuple[tuple[int, ...], ...]]:
    """Find all ways of placing tracked axes in a new shape: for each of `tracked` its axes there."""
    bounds = [(0, 0), *[(t.start, t.end) for t in tracked], (len(old), len(old))]
    segments = [old[a[1] : b[0]] for a, b in pairwise(bounds)]

    def fits(axes: list[int], segment: list[int], cells: Fraction, behind_batch: bool) -> bool:
        if not segment and axes and not behind_batch and cells == 1:
            return False
        return (
            not any(degrees_of(a) for a in axes)
            and math.prod([value_of(a) for a in axes]) == math.prod(segment) * cells
        )

    def search(index: int, start: int, cells: Fraction) -> list[tuple[tuple[int, ...], ...]]:
        behind_batch = index > 0 and tracked[index - 1].start == layout.batch
        if index == len(tracked):
            return [()] if fits(new[start:], segments[index], cells, layout.batch == tracked[-1].start) else []
        here, found = tracked[index], []
        stays = here.end - here.start == len(here.extents)
        for axis in range(start, len(new) - len(here.extents) + 1):
            taken = range(axis, axis + len(here.extents))
            if not fits(new[start:axis], segments[index], cells, behind_batch and bool(here.degrees[0])):
                continue
            if all(_is_extent(new[a], e, d) for a, e, d in zip(taken, here.extents, here.degrees, strict=True)):
                if stays or all(degrees_of(new[a]) for a in taken):
                    found += [(tuple(taken), *rest) for rest in search(index + 1, taken.stop, Fraction(1))]
            elif stays and degrees_of(new[axis]) == here.degrees[0] != () and not layout.flattened:
                inner = Fraction(here.extents[0], max(value_of(new[axis]), 1))  # positions a cell, or cells a position
                if 1 in inner.as_integer_ratio():
                    found += [((axis,), *rest) for rest in search(index + 1, axis + 1, inner)]
        return found

    return search(0, 0, Fraction(1))


def _is_extent(size: Any, extent: int, degrees: Degrees) -> bool:
    """Return whether a size is that of a tracked axis: one known to scale with the map must scale alike."""
    return size == extent and (degrees_of(size) or degrees) == degrees


_EXPAND = functions_named("expand expand_as broadcast_to")


@understands_sizes(*_EXPAND)
@Execution.register(*_EXPAND)
def expand(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """Repeat along free axes, and a value per image along all of space."""
    if (shape and isinstance(shape[0], Tensor)) or "other" in kwargs:
        other: Tensor = kwargs["other"] if "other" in kwargs else shape[0]
        input, other = with_values_per_image(execution, (input, other))
        layout, ndim = broadcast_layout(execution, func, [input, other])
        if ndim != other.ndim:
            raise unsupported(func, "it does not fit the tensor it is expanded to")
        return execution.mark(input.expand(other.shape), layout)
    layout = own_layout(execution, func, input)
    sizes = numbers_of(shape, kwargs, next(iter(kwargs), "size"))
    shift = len(sizes) - input.ndim
    whole = shape_of_whole(execution, input)
    for axis in layout.tracked_axes:
        if sizes[axis + shift] not in (-1, whole[axis]):
            raise unsupported(func, "it repeats samples or positions")
        sizes[axis + shift] = -1
    if layout.is_map:
        out = layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space))
        return execution.mark(input.expand(of_whole_map(sizes)), out)
    out = _with_space(func, input, layout, sizes)
    found = extents_here(execution, sizes, out.space)
    if found is None:
        raise unsupported(func, f"patches are not cut along a map of {tuple(of_whole_map(sizes))}")
    owner, local = found
    if owner is not execution:
        raise unsupported(func, "positions of the map hold several patches; use expand_as")
    return execution.mark(input.expand(local), out)


def _with_space(func: Any, x: Tensor, layout: Layout, sizes: Sequence[Any]) -> Layout:
    """Return the layout of a value per image that is repeated along axes whose sizes are the extents of a map."""
    shift = len(sizes) - x.ndim
    space = space_of(sizes)
    if space is None:
        raise unsupported(
            func, "it repeats a value per image along axes that are not known to be those of a map; use expand_as"
        )
    if any(axis >= shift and x.shape[axis - shift] != 1 for axis in space):
        raise unsupported(func, "it takes an axis of a value per image for one of space")
    return Layout(layout.origin, layout.batch + shift, space)


def space_of(sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """Return which sizes of a shape are the extents of a map, in the order of its axes; None unless each is there once.

    A shape without any has the space `()`.
    """
    degrees = {axis: degrees_of(size) for axis, size in enumerate(sizes) if degrees_of(size)}
    dims = max((len(own) for own in degrees.values()), default=0)
    space = tuple(axis for d in range(dims) for axis, own in degrees.items() if own == unit(d))
    return space if set(space) == set(degrees) and len(space) == dims else None


_PIXELS = functions_named("pixel_unshuffle pixel_shuffle")


@Execution.register(*_PIXELS)
def pixel_shuffle(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Move channels to space and back, within a patch."""
    layout = own_layout(execution, func, input)
    if len(execution.require_map(func, input).space) != 2:
        raise unsupported(func, f"it moves channels to two axes of space and the map has {len(layout.space)}")
    factor = args[0] if args else next(iter(kwargs.values()))
    if _PIXELS[func] == "pixel_unshuffle" and any(extent % factor for extent in input.shape[2:]):
        raise unsupported(func, f"patches of {tuple(input.shape[2:])} pixels cannot be cut by {factor}")
    return execution.mark(func(input, factor), layout)
