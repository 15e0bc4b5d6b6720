"""Strides: where the positions of a tensor lie in memory, and what they are of views and copies.

Nothing here knows of executions; :mod:`~sparkmim.sparse.memory` follows the strides of the ordinary network by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

Strides = tuple[int, ...]

UNKNOWN: Strides = ()
"""Stands for strides that are not known."""


class Order(NamedTuple):
    """The strides of a tensor without gaps: its axes, that of the largest stride first."""

    axes: tuple[int, ...]


Note = Strides | Order
"""What is noted of a tensor that is not contiguous in the ordinary network."""


def contiguous_strides(shape: Sequence[int]) -> Strides:
    """Return the strides of a contiguous tensor."""
    return strides_in_order(shape, range(len(shape)))


def strides_in_order(shape: Sequence[int], order: Sequence[int]) -> Strides:
    """Return the strides of a dense tensor whose axes lie in memory in this order, the last one without gaps."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def alike(shape: Sequence[int], a: Strides, b: Strides) -> bool:
    """Return whether two strides mean the same for a tensor of this shape."""
    return all(s == t for extent, s, t in zip(shape, a, b, strict=True) if extent != 1)


def note_of(shape: Sequence[int], strides: Strides) -> Note | None:
    """Return what to note of strides, which is nothing for those of a contiguous tensor."""
    return None if strides != UNKNOWN and alike(shape, strides, contiguous_strides(shape)) else strides


def laid_out(tensor: Tensor, note: Note | None) -> Tensor:
    """Return a tensor laid out in memory as the ordinary network's, without gaps; as it is where that is not known."""
    order = None if note == UNKNOWN else range(tensor.ndim) if note is None else dense(note)
    if order is None:
        return tensor
    axes = list(order.axes if isinstance(order, Order) else order)
    return tensor.permute(axes).contiguous().permute([axes.index(axis) for axis in range(tensor.ndim)])


def note_of_tensor(tensor: Tensor) -> Note | None:
    """Return what to note of a tensor that is the ordinary network's own."""
    return note_of(tensor.shape, tensor.stride())


def dense(note: Note) -> Note:
    """Return the note of a copy that keeps the order of axes."""
    return note if isinstance(note, Order) or note == UNKNOWN else order_of([note])


def order_of(operands: Sequence[Strides]) -> Order:
    """Return the order of axes in memory of what is computed from tensors position by position (as torch decides).

    Args:
        operands: the strides of each, broadcast: 0 along axes on which it does not depend, which others decide.
    """
    order = list(reversed(range(len(operands[0]))))  # the smallest stride first
    for end in range(1, len(order)):
        moved = end
        for place in reversed(range(end)):
            a, b = order[place], order[moved]
            steps = next(((s[a], s[b]) for s in operands if s[a] and s[b] and s[a] != s[b]), (0, 0))
            if steps[0] > steps[1]:
                order[place], order[moved] = b, a
                moved = place
            elif steps[0] < steps[1]:
                break
    return Order(tuple(reversed(order)))


def channels_last_strides(shape: Sequence[int]) -> Strides:
    """Return the strides of a tensor `(B, C, *size)` in the format torch.channels_last (or channels_last_3d)."""
    return strides_in_order(shape, [0, *range(2, len(shape)), 1])


def has_channels_last(shape: Sequence[int], strides: Strides) -> bool:
    """Return whether torch would take a tensor for one with channels last (or it is not known)."""
    if strides == UNKNOWN:
        return True
    if len(shape) not in (4, 5) or strides[1] == 0:
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


def as_shape(shape: Sequence[int], strides: Strides, new: Sequence[int]) -> Strides | None:
    """Return the strides of a view of another shape, None if a tensor of these strides has none (as torch decides)."""
    out, place = [0] * len(new), len(new) - 1
    base, old_count, new_count = strides[-1], 1, 1
    for axis in reversed(range(len(shape))):
        old_count *= shape[axis]
        if axis > 0 and (shape[axis - 1] == 1 or strides[axis - 1] == old_count * base):
            continue
        while place >= 0 and (new_count < old_count or new[place] == 1):
            out[place] = new_count * base
            new_count *= new[place]
            place -= 1
        if new_count != old_count:
            return None
        if axis > 0:
            base, old_count, new_count = strides[axis - 1], 1, 1
    return tuple(out) if place == -1 else None


# --- what functions do ----------------------------------------------------------------------------------------------


def order_given(name: str, ndim: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Return the axes of a tensor in the order that a function gives them."""
    names = ("dims", "dim0", "axis0", "source", "dim1", "axis1", "destination")  # (whatever order they were given in)
    values = [*args, *(kwargs[own] for own in names if own in kwargs)]
    if name == "mT":
        values = [-2, -1]
    if name == "permute":
        dims = values[0] if isinstance(values[0], (tuple, list)) else values
        return [d % ndim for d in dims]
    first, second = ([d % ndim for d in ((v,) if isinstance(v, int) else v)] for v in values[:2])
    order = list(range(ndim))
    if name not in ("movedim", "moveaxis"):
        order[first[0]], order[second[0]] = second[0], first[0]
        return order
    rest = iter([axis for axis in range(ndim) if axis not in first])
    return [first[second.index(axis)] if axis in second else next(rest) for axis in range(ndim)]


def indexed(index: Any, shape: Sequence[int], strides: Strides) -> Strides:
    """Return the strides of `x[index]` for an index of integers, slices, None and an ellipsis; UNKNOWN for others."""
    entries = list(index) if isinstance(index, (tuple, list)) else [index]
    if not all(entry is None or entry is Ellipsis or isinstance(entry, (int, slice)) for entry in entries):
        return UNKNOWN
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis not in entries:
        entries.append(Ellipsis)
    place = entries.index(Ellipsis)
    entries[place : place + 1] = [slice(None)] * (len(shape) - used)
    out: list[int] = []
    axis = 0
    for entry in entries:
        if entry is None:
            out.append(shape[axis] * strides[axis] if axis < len(shape) else 1)
            continue
        if isinstance(entry, slice):
            out.append(strides[axis] * (entry.step or 1))
        axis += 1
    return tuple(out)
