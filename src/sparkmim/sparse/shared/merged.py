"""Reshapes that merge samples or positions with other axes: `x.view(b, groups, -1)`, `x.flatten(1)`, `x.view(-1, c)`.

What they make has no meaning on patches by itself, but most of what follows has: functions of single values, reductions
of a merged axis, linear layers and norms of an axis that is not, and the reshape back. So the tensor waits, as the map
with its axes apart ("split"), and those functions are answered on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import value_of
from ..functions import functions_named
from ..layout import Layout, Unfinished
from ..memory import settle
from ..reduction import REDUCTIONS, bound_arguments
from ..registry import register_waiting
from ..versions import counts_versions, version_of
from .calls import call
from .places import LARGEST, returned, without_meaning
from .pointwise import IN_PLACE, METADATA, POINTWISE, SAME_VALUES, as_size

Groups = tuple[tuple[int, ...], ...]


class Merged(NamedTuple):
    """A tensor some of whose axes are several ones taken together.

    Attributes:
        split: the same values with all axes apart.
        groups: for each axis, those of `split` that it is, in their order.
        version: of `split` when it was made: it must not change.
    """

    split: Tensor
    groups: Groups
    version: int


def merged(
    execution: Execution, func: Any, x: Tensor, old: Sequence[Any], new: Sequence[Any], why: str
) -> Tensor | None:
    """Return what stands for `x` reshaped so that axes are merged; None if its axes do not lie in the new ones.

    Args:
        old, new: its shape on the whole map, before and after.
        why: it cannot be used for anything else, for errors.
    """
    layout = execution.layout(x)
    assert layout is not None
    found = _apart([value_of(n) for n in old], layout.tracked_axes, [value_of(n) for n in new])
    if found is None:
        return None
    parts, groups = found
    at = {axis: place for place, (axis, _) in enumerate(parts)}
    moved = layout.moved(at[layout.batch], tuple(at[axis] for axis in layout.space))
    shape = [x.shape[axis] if axis in layout.tracked_axes else size for axis, size in parts]
    split = settle(execution, torch.Tensor.reshape, (x,), {}, execution.mark(x.reshape(shape), moved))
    return _standing_for(execution, func, split, groups, why)


def _apart(
    old: Sequence[int], tracked: Sequence[int], new: Sequence[int]
) -> tuple[list[tuple[int, int]], Groups] | None:
    """Return the axes of a shape, free ones cut further, so that each axis of a new shape is some of them.

    Returns:
        For each of these parts its axis (-1 for a new one) and its size, and for each new axis its parts.
    """
    left, axis = list(old), 0
    parts: list[tuple[int, int]] = []
    groups: list[tuple[int, ...]] = []
    for size in new:
        first = len(parts)
        if size == 1 and not (axis < len(left) and left[axis] == 1):
            parts.append((-1, 1))
        elif size == 1:
            parts.append((axis, 1))
            axis += 1
        while size > 1:
            if axis == len(left):
                return None
            here = left[axis]
            if size % here == 0:
                parts.append((axis, here))
                size, axis = size // here, axis + 1
            elif here % size == 0 and axis not in tracked:
                parts.append((axis, size))
                size, left[axis] = 1, here // size
            else:
                return None
        groups.append(tuple(range(first, len(parts))))
    for rest in range(axis, len(left)):
        if left[rest] != 1 or not groups:
            return None
        groups[-1] = (*groups[-1], len(parts))
        parts.append((rest, 1))
    return parts, tuple(groups)


def _standing_for(execution: Execution, func: Any, split: Tensor, groups: Groups, why: str) -> Tensor:
    """Return a tensor of the merged shape that stands for `split`; an ordinary one if nothing is merged any more."""
    layout = execution.layout(split)
    assert layout is not None
    shape = [math.prod([split.shape[axis] for axis in group]) for group in groups]
    tracked = layout.tracked_axes
    if not any(sum(a in tracked or split.shape[a] != 1 for a in group) > 1 for group in groups):
        whole = call(execution, torch.Tensor.size, split)
        out: Tensor = call(execution, torch.Tensor.reshape, split, *_sizes(whole, groups))
        return out
    execution.has_waiting = True
    source = split if counts_versions(split) else execution.mark(split.clone(), layout)
    waits = Merged(source, groups, version_of(source))
    standing = split.new_zeros(()).expand(shape)
    return execution.mark(standing, Layout(layout.origin, 0, (0,), unfinished=Unfinished(func, why, waits)))


def _sizes(whole: Sequence[Any], groups: Groups) -> list[Any]:
    return [math.prod([whole[axis] for axis in group]) for group in groups]


class _Call:
    """A function called on merged tensors.

    Args:
        execution: answers.
        func, args, kwargs: the call.

    Attributes:
        first: the merged tensor that leads.
    """

    def __init__(self, execution: Execution, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.execution, self.func, self.args, self.kwargs = execution, func, args, kwargs
        found = [self.waiting(value) for value in (*args, *kwargs.values())]
        known = [unfinished for unfinished in found if unfinished is not None]
        if not known:
            raise unsupported(func, "it takes a list of tensors whose axes are merged")
        self.unfinished = known[0]
        self.first: Merged = self.unfinished.waits

    def waiting(self, value: Any) -> Unfinished | None:
        """Return what waits as a merged tensor, None for any other value."""
        unfinished = self.execution.unfinished(value) if isinstance(value, Tensor) else None
        return unfinished if unfinished is not None and isinstance(unfinished.waits, Merged) else None

    def split(self, value: Any) -> Any:
        """Return the tensor behind a merged one; raise if it has been written to since."""
        waits: Merged = self.waiting(value).waits  # type: ignore[union-attr]
        if version_of(waits.split) != waits.version:
            raise unsupported(self.func, "the map was written to between a reshape that merges its axes and this")
        return waits.split

    def refused(self) -> Exception:
        """Return the error for what has no meaning on merged axes."""
        return unsupported(self.unfinished.function, self.unfinished.why)

    def lead(self) -> Tensor:
        """Return the split of the function's first argument; raise if that is none."""
        value = self.args[0] if self.args else self.kwargs.get("input")
        if self.waiting(value) is None:
            raise self.refused()
        out: Tensor = self.split(value)
        return out

    def standing(self, out: Any, groups: Groups | None = None) -> Any:
        """Return results with the axes of `split` as results with merged ones."""
        if isinstance(out, tuple):
            return tuple(self.standing(part, groups) for part in out)
        groups = self.first.groups if groups is None else groups
        if self.execution.layout(out) is None:  # a statistic of the whole batch
            return self.execution.of_the_batch(out.reshape(_sizes(out.shape, groups)))
        return _standing_for(self.execution, self.unfinished.function, out, groups, self.unfinished.why)

    def axis(self, dim: int) -> int:
        """Return the axis of `split` that an axis is; raise if it is several."""
        group = self.first.groups[dim % len(self.first.groups)]
        if len(group) != 1:
            raise self.refused()
        return group[0]

    def answer(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function on tensors whose axes are apart."""
        return call(self.execution, func, *args, **kwargs)

    def shape(self, value: Any) -> list[Any]:
        """Return the shape of the whole map of any tensor."""
        waits = self.waiting(value)
        sizes = self.answer(torch.Tensor.size, self.split(value) if waits is not None else value)
        return list(sizes) if waits is None else _sizes(sizes, waits.waits.groups)


# --- what is answered -----------------------------------------------------------------------------------------------


def _elementwise(self: _Call) -> Any:
    """Compute with the values of tensors whose axes are merged alike, and of others that are constant along these."""
    if "out" in self.kwargs:
        raise self.refused()
    groups = self.first.groups

    def aligned(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        waits = self.waiting(value)
        if waits is not None:
            if waits.waits.groups != groups:
                raise self.refused()
            return self.split(value)
        if value.ndim > len(groups):
            raise self.refused()
        sizes, shape = self.shape(value), []
        for size, group in zip(sizes, groups[len(groups) - value.ndim :], strict=True):
            if len(group) > 1 and size != 1:
                raise self.refused()
            shape += [size] if len(group) == 1 else [1] * len(group)
        if len(shape) == value.ndim:
            return value
        return self.answer(torch.Tensor.reshape, value, *shape)

    args = [aligned(value) for value in self.args]
    return self.standing(self.answer(self.func, *args, **{k: aligned(v) for k, v in self.kwargs.items()}))


def _same(self: _Call) -> Any:
    if any(self.waiting(value) is not None for value in (*self.args[1:], *self.kwargs.values())):
        raise self.refused()
    return self.standing(self.answer(self.func, self.lead(), *self.args[1:], **self.kwargs))


def _without(self: _Call, out: Any, axes: Sequence[int], dims: Sequence[int]) -> Any:
    """Return results of a reduction without the axes that it has kept."""
    if isinstance(out, tuple):
        return tuple(_without(self, part, axes, dims) for part in out)
    if self.execution.layout(out) is None:  # a statistic of the whole batch
        return self.execution.of_the_batch(out.squeeze(tuple(axes)))
    count = len(self.first.groups)
    gone = {dim % count for dim in dims}
    groups = [
        tuple(axis - sum(other < axis for other in axes) for axis in group)
        for dim, group in enumerate(self.first.groups)
        if dim not in gone
    ]
    return self.standing(self.answer(torch.squeeze, out, tuple(axes)), tuple(groups))


def _reduced(self: _Call) -> Any:
    arguments = bound_arguments(self.func, self.args[1:], self.kwargs)
    split = self.lead()
    dims = arguments.pop("dim", None)
    keep = bool(arguments.pop("keepdim", False))
    if dims is None:
        dims = range(len(self.first.groups))
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    axes = sorted(axis for dim in dims for axis in self.first.groups[dim])
    out = self.answer(self.func, split, dim=tuple(axes) if len(axes) > 1 else axes[0], keepdim=True, **arguments)
    return self.standing(out) if keep else _without(self, out, axes, dims)


def _largest(self: _Call) -> Any:
    """Return the largest (or smallest) values along an axis, merged or not, and indices that must not be used."""
    name = _LARGEST[self.func]
    given = bound_arguments(LARGEST[name], self.args[1:], self.kwargs)
    if isinstance(given.get("other", given.get("dim")), Tensor):
        return _elementwise(self)
    dim = given.get("dim")
    values = _reduced(_Call(self.execution, LARGEST[name], (self.args or (self.kwargs["input"],))[:1], given))
    if dim is None:
        return values
    layout = self.execution.marked(values)
    if layout is None:  # of the whole batch
        raise self.refused()
    return returned(name, values, without_meaning(self.execution, self.func, values))


def _along(self: _Call) -> Any:
    """Work along one axis that is not merged."""
    if len(self.args) > 2:
        raise self.refused()
    kwargs = dict(self.kwargs)
    dim = kwargs.pop("dim", self.args[1] if len(self.args) > 1 else None)
    if dim is None:
        raise self.refused()
    keep = kwargs.pop("keepdim", False)
    axis, split = self.axis(dim), self.lead()
    if self.func not in _PICKING:
        return self.standing(self.answer(self.func, split, dim=axis, **kwargs))
    out = self.answer(self.func, split, dim=axis, keepdim=True)
    return self.standing(out) if keep else _without(self, out, [axis], [dim])


def _last(self: _Call) -> Any:
    """Work along the last axis, which is not merged; other arguments are weights."""
    self.axis(-1)
    return _same(self)


def _normalized(self: _Call) -> Any:
    """Normalize the last axes: all that make up all of space, or such that are not merged."""
    shape = self.kwargs.get("normalized_shape", self.args[1] if len(self.args) > 1 else None)
    count = len(shape) if isinstance(shape, (tuple, list)) else 1
    axes = [axis for group in self.first.groups[-count:] for axis in group]
    own = self.answer(torch.Tensor.size, self.lead())
    kwargs = {key: value for key, value in self.kwargs.items() if key not in ("input", "normalized_shape")}
    return self.standing(self.answer(self.func, self.lead(), [own[axis] for axis in axes], *self.args[2:], **kwargs))


def _batch_norm(self: _Call) -> Any:
    """Normalize axis 1, which is not merged, over what axis 0 merges with the samples."""
    channels, split = self.axis(1), self.lead()
    moved = self.answer(torch.movedim, split, channels, 1)
    out = self.answer(self.func, moved, *self.args[1:], **self.kwargs)
    return self.standing(self.answer(torch.movedim, out, 1, channels))


def _looked_up(self: _Call) -> Any:
    """Look up rows of a table, which are a new last axis."""
    out = self.answer(self.func, self.lead(), *self.args[1:], **self.kwargs)
    return self.standing(out, (*self.first.groups, (out.ndim - 1,)))


def _ordered(self: _Call) -> Any:
    """Permute axes."""
    count = len(self.first.groups)
    order = list(range(count))
    given = [*self.args[1:], *self.kwargs.values()]
    if self.func in _PERMUTE:
        dims = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        order = [dim % count for dim in dims]
    elif len(given) == 2:
        a, b = given[0] % count, given[1] % count
        order[a], order[b] = b, a
    elif count == 2:  # x.t()
        order = [1, 0]
    groups = [self.first.groups[dim] for dim in order]
    out = self.answer(torch.permute, self.lead(), [axis for group in groups for axis in group])
    starts = [sum(len(group) for group in groups[:i]) for i in range(len(groups))]
    return self.standing(out, tuple(tuple(range(s, s + len(g))) for s, g in zip(starts, groups, strict=True)))


def _reshaped(self: _Call) -> Any:
    """Reshape, which is to reshape `split`."""
    split, own = self.lead(), self.shape(self.args[0])
    name, given = _RESHAPING[self.func], self.args[1:]
    if name in ("view_as", "reshape_as"):
        shape = self.shape(self.kwargs.get("other", given[0] if given else None))
    elif name == "flatten":
        start, end = (
            self.kwargs.get(key, given[i] if len(given) > i else default) % len(own)
            for i, (key, default) in enumerate((("start_dim", 0), ("end_dim", -1)))
        )
        shape = [*own[:start], math.prod(own[start : end + 1]), *own[end + 1 :]]
    elif name == "unflatten":
        dim, sizes = (*given, *self.kwargs.values())
        shape = [*own[: dim % len(own)], *sizes, *own[dim % len(own) + 1 :]]
    else:
        sizes = [*given, *self.kwargs.values()]
        shape = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if any(isinstance(size, torch.dtype) for size in shape):
            raise self.refused()
    return self.answer(torch.Tensor.reshape, split, *shape)


def _size(self: _Call) -> Any:
    return as_size(self.execution, self.shape(self.args[0]), self.args[1:], self.kwargs)


def _number(self: _Call) -> Any:
    self.execution.told.read = True
    shape = self.shape(self.args[0])
    return math.prod(shape) if self.func in _NUMBERS else int(shape[0])


def _described(self: _Call) -> Any:
    """Return what a tensor's number of axes, dtype or the like is."""
    return self.func(self.args[0] if METADATA[self.func] in ("ndim", "dim", "ndimension") else self.lead())


_NUMBERS = functions_named("numel nelement")
_RESHAPING = functions_named("reshape view view_as reshape_as flatten unflatten")
_PERMUTE = functions_named("permute")
_PICKING = functions_named("argmax argmin")
_LARGEST = functions_named(" ".join(LARGEST))

_ANSWERS: dict[Any, Callable[[_Call], Any]] = {
    **dict.fromkeys(set(POINTWISE) - set(IN_PLACE), _elementwise),
    **dict.fromkeys(METADATA, _described),
    **dict.fromkeys([*SAME_VALUES, *functions_named("dropout zeros_like ones_like")], _same),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(_LARGEST, _largest),
    **dict.fromkeys([*functions_named("softmax log_softmax softmin"), *_PICKING], _along),
    **dict.fromkeys([F.linear, torch._C._nn.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__], _last),
    **dict.fromkeys([torch.mm, torch.Tensor.mm], _last),
    **dict.fromkeys(functions_named("layer_norm rms_norm"), _normalized),
    F.batch_norm: _batch_norm,
    F.embedding: _looked_up,
    **dict.fromkeys([*_PERMUTE, *functions_named("transpose swapaxes swapdims t")], _ordered),
    **dict.fromkeys(_RESHAPING, _reshaped),
    torch.Tensor.size: _size,
    torch.Tensor.shape.__get__: _size,  # type: ignore[attr-defined]
    **dict.fromkeys([*_NUMBERS, torch.Tensor.__len__], _number),
}


@register_waiting(Merged)
def answer_merged(execution: Execution, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a function one of whose arguments has merged axes; raise for one that needs them apart."""
    call_of = _Call(execution, func, args, kwargs)
    answer = _ANSWERS.get(func)
    if answer is None:
        raise call_of.refused()
    return answer(call_of)
