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
from .pointwise import broadcast_layout, free_axes, own_layout

# --- joining and splitting ------------------------------------------------------------------------------------------


@Execution.register(*functions_named("cat concat concatenate"))
def cat(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0, **kwargs: Any) -> Tensor:
    layout, ndim = broadcast_layout(execution, func, tensors)
    if any(execution.layout(t) != layout for t in tensors):
        raise unsupported(func, "it joins tensors whose axes mean different things")
    free_axes(func, layout, ndim, kwargs.pop("axis", dim))
    return execution.mark(func(tensors, dim, **kwargs), layout)


@Execution.register(torch.stack)
def stack(execution: Execution, func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    layout, ndim = broadcast_layout(execution, func, tensors)
    if any(execution.layout(t) != layout for t in tensors):
        raise unsupported(func, "it joins tensors whose axes mean different things")
    return execution.mark(torch.stack(tuple(tensors), dim), _with_new_axis(layout, dim % (ndim + 1)))


@Execution.register(*functions_named("chunk split tensor_split split_with_sizes"))
def split(execution: Execution, func: Any, x: Tensor, sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, x)
    free_axes(func, layout, x.ndim, dim)
    return tuple(execution.mark(part, layout) for part in func(x, sections, dim))


@Execution.register(*functions_named("unbind"))
def unbind(execution: Execution, func: Any, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    out = without_axes(layout, (axis,))
    return tuple(execution.mark(part, out) for part in func(x, dim))


@Execution.register(*functions_named("narrow select index_select"))
def part_of_axis(execution: Execution, func: Any, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    out = func(x, dim, *args, **kwargs)
    return execution.mark(out, layout if out.ndim == x.ndim else without_axes(layout, (axis,)))


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
        elif not isinstance(entry, int):
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
def permute(execution: Execution, func: Any, x: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    order = kwargs.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    order = [d % x.ndim for d in order]
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("transpose swapaxes swapdims"))
def transpose(execution: Execution, func: Any, x: Tensor, dim0: int, dim1: int) -> Tensor:
    layout = own_layout(execution, func, x)
    order = list(range(x.ndim))
    a, b = dim0 % x.ndim, dim1 % x.ndim
    order[a], order[b] = b, a
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("movedim moveaxis"))
def movedim(execution: Execution, func: Any, x: Tensor, source: Any, destination: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    sources = [s % x.ndim for s in ([source] if isinstance(source, int) else source)]
    destinations = [d % x.ndim for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(axis for axis in range(x.ndim) if axis not in sources)
    order = [sources[destinations.index(axis)] if axis in destinations else next(rest) for axis in range(x.ndim)]
    return execution.mark(x.permute(order), _permuted(layout, order))


@Execution.register(*functions_named("unsqueeze"))
def unsqueeze(execution: Execution, func: Any, x: Tensor, dim: int) -> Tensor:
    layout = own_layout(execution, func, x)
    return execution.mark(x.unsqueeze(dim), _with_new_axis(layout, dim % (x.ndim + 1)))


@Execution.register(*functions_named("squeeze"))
def squeeze(execution: Execution, func: Any, x: Tensor, dim: Any = None) -> Tensor:
    layout = own_layout(execution, func, x)
    if dim is None:
        raise unsupported(func, "which axes it removes depends on the size of a patch; name the axis")
    axes = free_axes(func, layout, x.ndim, dim)
    gone = [axis for axis in axes if x.shape[axis] == 1]
    return execution.mark(x.squeeze(dim), without_axes(layout, gone))


@Execution.register(*functions_named("flatten"))
def flatten(execution: Execution, func: Any, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    layout = own_layout(execution, func, x)
    start, end = start_dim % x.ndim, end_dim % x.ndim
    if start == end:
        return x
    if any(start <= axis <= end for axis in layout.tracked_axes):
        raise unsupported(func, f"it merges samples or positions with other axes ({layout})")
    shape = [*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]]
    return reshape(execution, func, x, shape)


@Execution.register(*functions_named("unflatten"))
def unflatten(execution: Execution, func: Any, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    layout = own_layout(execution, func, x)
    (axis,) = free_axes(func, layout, x.ndim, dim)
    sizes = _without_unknown(sizes, x.shape[axis])
    return reshape(execution, func, x, [*x.shape[:axis], *sizes, *x.shape[axis + 1 :]])


@Execution.register(*functions_named("reshape view"))
def reshape(execution: Execution, func: Any, x: Tensor, *shape: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    if shape and isinstance(shape[0], torch.dtype):
        raise unsupported(func, "it reinterprets the bytes of a map")
    wanted = _without_unknown(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape, x.numel())
    return execution.mark(x.reshape(wanted), _reshaped(func, layout, list(x.shape), wanted))


@Execution.register(*functions_named("view_as reshape_as"))
def reshape_as(execution: Execution, func: Any, x: Tensor, other: Tensor) -> Tensor:
    return reshape(execution, func, x, list(other.shape))


def _without_unknown(shape: Sequence[int], numel: int) -> list[int]:
    """`shape` with its -1, if any, worked out."""
    known = math.prod([s for s in shape if s != -1])
    return [numel // known if s == -1 else int(s) for s in shape]


def _reshaped(func: Any, layout: Layout, old: list[int], new: list[int]) -> Layout:
    """Where samples and space are after a reshape; raises unless each of them stays an axis of its own.

    The tracked axes cut the shape into segments of free axes. A reshape keeps their meaning exactly if the new shape
    has the same tracked extents in the same order, with segments of the same sizes between them.
    """
    ordered = sorted(layout.tracked_axes)
    bounds = [-1, *ordered, len(old)]
    segments = [math.prod(old[a + 1 : b]) for a, b in pairwise(bounds)]

    def places(index: int, start: int) -> list[tuple[int, ...]]:
        if index == len(ordered):
            return [()] if math.prod(new[start:]) == segments[index] else []
        found = []
        for axis in range(start, len(new)):
            if math.prod(new[start:axis]) == segments[index] and new[axis] == old[ordered[index]]:
                found += [(axis, *rest) for rest in places(index + 1, axis + 1)]
        return found

    candidates = places(0, 0)
    if len(candidates) > 1:  # only axes of extent 1 leave a choice: samples stay first, space stays last
        first, last = ordered[0] == 0, ordered[-1] == len(old) - 1
        candidates = [c for c in candidates if (c[0] == 0 or not first) and (c[-1] == len(new) - 1 or not last)]
    if len(candidates) > 1 and len(new) == len(old):
        candidates = [c for c in candidates if c == tuple(ordered)]
    if len(candidates) != 1:
        raise unsupported(
            func,
            f"reshaping {tuple(old)} ({layout}) to {tuple(new)} does not keep samples and space as axes of their own",
        )
    moved = dict(zip(ordered, candidates[0], strict=True))
    return layout.moved(moved[layout.batch], tuple(moved[a] for a in layout.space))


@Execution.register(*functions_named("expand expand_as"))
def expand(execution: Execution, func: Any, x: Tensor, *shape: Any) -> Tensor:
    """Repetition along free axes; a per-image value expanded to a map becomes that map."""
    if shape and isinstance(shape[0], Tensor):
        layout, ndim = broadcast_layout(execution, func, [x, shape[0]])
        if ndim != shape[0].ndim:
            raise unsupported(func, "it does not fit the tensor it is expanded to")
        return execution.mark(x.expand(shape[0].shape), layout)
    layout = own_layout(execution, func, x)
    sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    shift = len(sizes) - x.ndim
    out = x.expand(sizes)
    moved = layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space))
    if any(out.shape[a + shift] != x.shape[a] for a in layout.tracked_axes):
        raise unsupported(func, "it repeats samples or positions")
    return execution.mark(out, moved)


@Execution.register(*functions_named("pixel_unshuffle pixel_shuffle"))
def pixel_shuffle(execution: Execution, func: Any, x: Tensor, factor: int) -> Tensor:
    """Channels to space and back, within a patch: needs channels second and space last."""
    layout = own_layout(execution, func, x)
    if not layout.is_map or layout.batch != 0 or layout.space != (2, 3):
        raise unsupported(func, f"it needs (batch, channel, height, width), the map is {layout}")
    return execution.mark(func(x, factor), layout)
