"""Functions that join, split, move, add and remove axes. Samples and space must each stay an axis of their own; where a
function would merge, cut or reorder them it is refused. Never decided by the size of an axis, but for reshapes, whose
arguments are sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..execution import Execution, unsupported
from ..layout import Layout
from .functions import functions_named
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
    if any(start <= axis <= end for axis in layout.tracked_axes):
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
    new = _without_unknown(_sizes(shape, kwargs, "size" if "size" in kwargs else "shape"), input.numel())
    return execution.mark(input.reshape(new), _reshaped(func, layout, list(input.shape), new))


@Execution.register(*functions_named("view_as reshape_as"))
def reshape_as(execution: Execution, func: Any, input: Tensor, other: Tensor) -> Tensor:
    return reshape(execution, func, input, list(other.shape))


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> list[int]:
    """A list of numbers given as one argument, as several, or by name."""
    if name in kwargs:
        args = (kwargs[name],)
    return list(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)


def _without_unknown(shape: Sequence[int], numel: int) -> list[int]:
    """`shape` with its -1, if any, worked out."""
    known = math.prod([s for s in shape if s != -1])
    return [numel // known if s == -1 else int(s) for s in shape]


def _reshaped(func: Any, layout: Layout, old: list[int], new: list[int]) -> Layout:
    """Where samples and space are after a reshape; raises unless each of them stays an axis of its own.

    The tracked axes cut the shape into segments of free axes. A reshape keeps their meaning if the new shape has the
    same tracked extents in the same order, with as many elements between them. Where no axis lay between two of them,
    or behind the last, none may come, even of extent 1: space of extent 1 would leave open which axis is which, and
    what is accepted must not depend on the size of a patch. (Before the first spatial axis one may.)
    """
    ordered = sorted(layout.tracked_axes)
    segments = [old[a + 1 : b] for a, b in pairwise([-1, *ordered, len(old)])]

    def fits(axes: list[int], segment: list[int], behind_batch: bool) -> bool:
        if not segment and axes and not behind_batch:
            return False
        return math.prod(axes) == math.prod(segment)

    def places(index: int, start: int) -> list[tuple[int, ...]]:
        behind_batch = index > 0 and ordered[index - 1] == layout.batch and index < len(ordered)
        if index == len(ordered):
            return [()] if fits(new[start:], segments[index], layout.batch == ordered[-1]) else []
        found = []
        for axis in range(start, len(new)):
            if new[axis] == old[ordered[index]] and fits(new[start:axis], segments[index], behind_batch):
                found += [(axis, *rest) for rest in places(index + 1, axis + 1)]
        return found

    candidates = places(0, 0)
    if len(candidates) != 1:
        raise unsupported(
            func,
            f"reshaping {tuple(old)} ({layout}) to {tuple(new)} does not keep samples and space as axes of their own",
        )
    moved = dict(zip(ordered, candidates[0], strict=True))
    return layout.moved(moved[layout.batch], tuple(moved[a] for a in layout.space))


@Execution.register(*functions_named("expand expand_as"))
def expand(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """Repetition along free axes. A per-image value has no space to tell from free axes, and expands to maps only."""
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
    if not layout.is_map:
        raise unsupported(func, "it repeats a value per image along axes that may be space; use expand_as")
    return execution.mark(out, layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space)))


@Execution.register(*functions_named("pixel_unshuffle pixel_shuffle"))
def pixel_shuffle(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Channels to space and back, within a patch."""
    layout = own_layout(execution, func, input)
    if len(execution.require_map(func, input).space) != 2:
        raise unsupported(func, f"it moves channels to two axes of space and the map has {len(layout.space)}")
    factor = args[0] if args else next(iter(kwargs.values()))
    if "unshuffle" in func.__name__ and any(extent % factor for extent in input.shape[2:]):
        raise unsupported(func, f"patches of {tuple(input.shape[2:])} pixels cannot be cut by {factor}")
    return execution.mark(func(input, factor), layout)
