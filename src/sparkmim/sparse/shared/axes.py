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
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import Degrees, added, degrees_of, unit, with_degrees
from ..functions import attributes_named, functions_named
from ..layout import Layout
from .pointwise import broadcast_layout, free_axes, own_layout, require_no_input

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


def _indexed_layout(execution: Execution, func: Any, x: Tensor, index: Any) -> Layout:
    layout = own_layout(execution, func, x)
    entries = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis not in [e for e in entries if not isinstance(e, Tensor)]:
        entries.append(Ellipsis)
    position = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
    entries[position : position + 1] = [slice(None)] * (x.ndim - consumed)
    places: dict[int, int] = {}
    axis = new = 0
    for entry in entries:
        if entry is None:
            new += 1
            continue
        if axis in layout.tracked_axes:
            whole = (
                isinstance(entry, slice) and entry.start in (None, 0) and entry.stop is None and entry.step in (None, 1)
            )
            strided = (
                isinstance(entry, slice)
                and axis in layout.space
                and not layout.flattened
                and entry.stop is None
                and entry.step is not None
                and x.shape[axis] % entry.step == 0
                and 0 <= (entry.start or 0) < entry.step
            )
            if not (whole or strided):
                raise unsupported(func, f"it picks out samples or positions along axis {axis} ({layout})")
            places[axis] = new
            new += 1
        elif isinstance(entry, slice):
            places[axis] = new
            new += 1
        elif type(entry) is not int:  # True is an int to Python and a mask to torch
            raise unsupported(func, "it indexes with something other than integers and slices")
        axis += 1
    return layout.moved(places[layout.batch], tuple(places[a] for a in layout.space))


@Execution.register(torch.Tensor.__getitem__)
def getitem(execution: Execution, func: Any, x: Tensor, index: Any) -> Tensor:
    if execution.layout(x) is None:
        raise unsupported(func, "its index descends from the input")
    return execution.mark(func(x, index), _indexed_layout(execution, func, x, index))


@Execution.register(torch.Tensor.__setitem__)
def setitem(execution: Execution, func: Any, x: Tensor, index: Any, value: Any) -> None:
    target = _indexed_layout(execution, func, x, index)
    if isinstance(value, Tensor):
        written = execution.mark(x.detach()[index], target)
        layout, _ = broadcast_layout(execution, func, [written, value])
        if layout != target:
            raise unsupported(func, "it writes a value whose axes mean something else")
    func(x, index, value)


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
    order = [d % input.ndim for d in _sizes(dims, kwargs, "dims")]
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


@Execution.register(*functions_named("flatten"))
def flatten(execution: Execution, func: Any, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    layout = own_layout(execution, func, input)
    start, end = start_dim % input.ndim, end_dim % input.ndim
    if start == end:
        return input
    merged = tuple(range(start, end + 1))
    if merged == layout.space:
        batch = layout.batch - (layout.batch > end) * (end - start)
        return execution.mark(input.flatten(start, end), layout.flat(batch, start, tuple(input.shape[start : end + 1])))
    if any(axis in merged for axis in layout.tracked_axes):
        raise unsupported(func, f"it merges samples or positions with other axes ({layout})")
    return execution.mark(input.flatten(start, end), without_axes(layout, range(start, end)))


@Execution.register(*functions_named("unflatten"))
def unflatten(execution: Execution, func: Any, input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    layout = own_layout(execution, func, input)
    (axis,) = free_axes(func, layout, input.ndim, dim)
    out = layout
    for _ in range(len(sizes) - 1):
        out = _with_new_axis(out, axis + 1)
    return execution.mark(input.unflatten(axis, tuple(sizes)), out)


@Execution.register(*functions_named("reshape view"))
def reshape(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if (shape and isinstance(shape[0], torch.dtype)) or "dtype" in kwargs:
        raise unsupported(func, "it reinterprets the bytes of a map")
    new = _without_unknown(_sizes(shape, kwargs, "size" if "size" in kwargs else "shape"), layout, input)
    if math.prod(new) != input.numel():
        raise unsupported(
            func, f"a patch here is {tuple(input.shape)}, which does not fill {tuple(new)}; use a larger patch size"
        )
    return execution.mark(input.reshape(new), _reshaped(func, layout, list(input.shape), new))


@Execution.register(*functions_named("view_as reshape_as"))
def reshape_as(execution: Execution, func: Any, input: Tensor, other: Tensor) -> Tensor:
    return reshape(execution, func, input, list(other.shape))


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> list[int]:
    """Return a list of numbers given as one argument, as several, or by name."""
    if name in kwargs:
        args = (kwargs[name],)
    return list(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)


def _without_unknown(shape: Sequence[int], layout: Layout, x: Tensor) -> list[int]:
    """Resolve the -1 of `shape`, if any: how large it is, and how it scales with the map."""
    known = math.prod([int(s) for s in shape if s != -1])
    degrees: Degrees = ()
    if not torch.compiler.is_compiling():
        for axis in layout.space:
            degrees = added(degrees, layout.degrees(axis))
        for size in shape:
            degrees = added(degrees, degrees_of(size), -1)
    return [with_degrees(x.numel() // max(known, 1), degrees) if s == -1 else s for s in shape]


def _reshaped(func: Any, layout: Layout, old: list[int], new: list[int]) -> Layout:
    """Return where samples and space are after a reshape; raise unless they stay axes, and space all axes or one.

    The tracked axes cut the shape into segments of free axes. A reshape keeps their meaning if the new shape has the
    same tracked extents in the same order, with as many elements between them. Where no axis lay between two of them,
    or behind the last, none may come, even of extent 1: space of extent 1 would leave open which axis is which, and
    what is accepted must not depend on the size of a patch. (Before the first spatial axis one may.)

    Two things more are possible with sizes that are known to scale with the map
    (:class:`~sparkmim.sparse.extent.Extent`). A spatial axis may be cut into cells: one axis counts the cells, a free
    one behind it the positions in a cell. And all spatial axes, where they are neighbors, may become one, or that one
    become them again.
    """
    whole = [_Tracked(axis, axis + 1, [old[axis]], [layout.degrees(axis)]) for axis in layout.tracked_axes]
    readings = [sorted(whole)]
    dims = len(layout.flattened)
    if dims:
        (axis,) = layout.space
        apart = _Tracked(axis, axis + 1, list(layout.flattened), [unit(i, dims) for i in range(dims)])
        readings.append(sorted([whole[0], apart]))
    elif len(layout.space) > 1 and layout.space == tuple(range(layout.space[0], layout.space[-1] + 1)):
        extents = [old[a] for a in layout.space]
        together = _Tracked(layout.space[0], layout.space[-1] + 1, [math.prod(extents)], [(1,) * len(extents)])
        readings.append(sorted([whole[0], together]))
    found = [(reading, places) for reading in readings for places in _places(reading, layout, old, new)]
    if len(found) != 1:
        raise unsupported(
            func,
            f"reshaping {tuple(old)} ({layout}) to {tuple(new)} does not keep samples and space as axes of their own",
        )
    reading, places = found[0]
    moved = dict(zip([tracked.start for tracked in reading], places, strict=True))
    batch = moved[layout.batch][0]
    if reading is readings[0]:
        return layout.moved(batch, tuple(moved[a][0] for a in layout.space))
    space = moved[layout.space[0]]
    if dims:
        return Layout(layout.origin, batch, space, layout.padding)
    return layout.flat(batch, space[0], tuple(old[a] for a in layout.space))


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
        return math.prod(axes) == math.prod(segment) * cells and not any(degrees_of(a) for a in axes)

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
                inner = Fraction(here.extents[0], max(int(new[axis]), 1))  # positions a cell, or cells a position
                if 1 in inner.as_integer_ratio():
                    found += [((axis,), *rest) for rest in search(index + 1, axis + 1, inner)]
        return found

    return search(0, 0, Fraction(1))


def _is_extent(size: int, extent: int, degrees: Degrees) -> bool:
    """Return whether a size is that of a tracked axis: one known to scale with the map must scale alike."""
    return size == extent and (degrees_of(size) or degrees) == degrees


@Execution.register(*functions_named("expand expand_as"))
def expand(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """Repeat along free axes, and a value per image along all of space."""
    if (shape and isinstance(shape[0], Tensor)) or "other" in kwargs:
        other: Tensor = kwargs["other"] if "other" in kwargs else shape[0]
        layout, ndim = broadcast_layout(execution, func, [input, other])
        if ndim != other.ndim:
            raise unsupported(func, "it does not fit the tensor it is expanded to")
        return execution.mark(input.expand(other.shape), layout)
    layout = own_layout(execution, func, input)
    sizes = _sizes(shape, kwargs, "size")
    shift = len(sizes) - input.ndim
    out = input.expand(sizes)
    if any(out.shape[a + shift] != input.shape[a] for a in layout.tracked_axes):
        raise unsupported(func, "it repeats samples or positions")
    if layout.is_map:
        return execution.mark(out, layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space)))
    return execution.mark(out, _with_space(func, input, layout, sizes))


def _with_space(func: Any, x: Tensor, layout: Layout, sizes: Sequence[int]) -> Layout:
    """Return the layout of a value per image that is repeated along axes whose sizes are the extents of a map."""
    shift = len(sizes) - x.ndim
    degrees = {axis: degrees_of(size) for axis, size in enumerate(sizes) if degrees_of(size)}
    dims = len(next(iter(degrees.values()), ()))
    space = tuple(axis for d in range(dims) for axis, own in degrees.items() if own == unit(d, dims))
    if not dims or set(space) != set(degrees) or len(space) != dims:
        raise unsupported(
            func, "it repeats a value per image along axes that are not known to be those of a map; use expand_as"
        )
    if any(axis >= shift and x.shape[axis - shift] != 1 for axis in space):
        raise unsupported(func, "it takes an axis of a value per image for one of space")
    return Layout(layout.origin, layout.batch + shift, space)


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
