"""Which memory tensors of the ordinary network share: whether a function copies or aliases, and what it means to write.

Packed maps lie in memory with their channels last, so that `x.permute(0, 2, 3, 1).contiguous()`, a copy in the ordinary
network, would be a view here, and `x.contiguous()`, there `x` itself, a copy. Once somebody writes in place, that is
part of what these functions mean. So the strides that a tensor has in the ordinary network are followed where they are
not those of a contiguous tensor, and decide. Where they are not known (they may depend on the device), such a function
copies, and once one of the two tensors has been written to, using the other is refused.

The ordinary network is the one whose images and weights are contiguous, `(B, C, *size)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .errors import unsupported
from .functions import attributes_named, functions_named
from .nested import tensors_in
from .strides import (
    UNKNOWN,
    Note,
    Order,
    Strides,
    alike,
    as_shape,
    channels_last_strides,
    contiguous_strides,
    dense,
    has_channels_last,
    indexed,
    note_of,
    order_given,
    order_of,
    strides_in_order,
)

RESHAPING = functions_named("reshape reshape_as flatten")
"""Functions that alias their argument where its strides allow that, and else copy."""

_ORDERS = functions_named("permute transpose swapaxes swapdims movedim moveaxis") | attributes_named("mT")
_PARTS = functions_named("narrow chunk split tensor_split split_with_sizes detach detach_ alias requires_grad_")
_SELECTING = functions_named("select unbind")
_AS_SIZES = functions_named("view view_as unflatten")
_EXPANDING = functions_named("expand expand_as broadcast_to")
_INDEXING = {torch.Tensor.__getitem__: "getitem"}
_SQUEEZING = functions_named("unsqueeze squeeze")

VIEWING = {
    **_ORDERS, **_PARTS, **_SELECTING, **_AS_SIZES, **_EXPANDING, **_INDEXING, **_SQUEEZING, **attributes_named("data"),
}  # fmt: skip
"""Functions that alias their argument."""

SHAPING = {**VIEWING, **RESHAPING}
"""Functions that alias their argument, always or where they can."""

CONTIGUOUS = functions_named("linear layer_norm rms_norm matmul") | {torch.Tensor.__matmul__: "matmul"}
"""Functions whose result is contiguous whatever the strides of their argument."""

_BY_FORMAT = functions_named(
    "conv1d conv2d conv3d max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d batch_norm group_norm instance_norm interpolate cat concat concatenate "
    "pixel_shuffle pixel_unshuffle channel_shuffle"
)
"""Functions whose result is contiguous but for an argument with channels last, where it depends on the device."""

_OF_SHAPE = {torch.Tensor.size, torch.Tensor.shape.__get__, torch.Tensor.ndim.__get__}  # type: ignore[attr-defined]

MADE_LIKE = functions_named("empty_like zeros_like ones_like full_like rand_like randn_like")
"""Functions whose result is new, and lies in memory as their argument unless they are given a memory format."""

KEEPING: dict[Any, Any] = dict(MADE_LIKE)
"""Functions whose result has its axes in memory in the order of their argument's; modules of rules add theirs."""


class Memory:
    """What is known of the ordinary network's memory during one run.

    Args:
        compiling: whether the run is traced by a compiler.

    Attributes:
        strided: whether a tensor of the input is not contiguous in the ordinary network.
        traced: tensors and their strides while compiling.
        doubts: groups of memory of which it is not known whether they are one in the ordinary network.
        doubtful: whether there are such groups.
        stale: memory that may have been written to in the ordinary network, as another of its group has been.
    """

    def __init__(self, compiling: bool = False) -> None:
        self.compiling = compiling
        self.strided = False
        self.doubtful = False
        self.traced: list[tuple[Tensor, Note | None]] = []
        self.doubts: list[list[StorageWeakRef]] = []
        self.stale: list[StorageWeakRef] = []

    # --- strides ------------------------------------------------------------------------------------------------

    def noted(self, tensor: Tensor) -> Note | None:
        """Return what is noted of a tensor; None if it is contiguous in the ordinary network."""
        if not self.strided:
            return None
        if not self.compiling:
            return getattr(tensor, "_sparkmim_strides", None)
        for traced, note in reversed(self.traced):
            if traced is tensor:
                return note
        return None

    def note(self, tensor: Tensor, note: Note | None) -> Tensor:
        """Remember the strides of `tensor` in the ordinary network, None if it is contiguous, and return it."""
        if note is None and not self.strided:
            return tensor
        self.strided = True
        if self.compiling:
            self.traced.append((tensor, note))
        else:
            tensor._sparkmim_strides = note  # type: ignore[attr-defined]
        return tensor

    def strides(self, tensor: Tensor, shape: Sequence[int]) -> Strides:
        """Return the strides of `tensor`, of this shape in the ordinary network, or UNKNOWN."""
        note = self.noted(tensor)
        if note is None:
            return contiguous_strides(shape)
        return strides_in_order(shape, note.axes) if isinstance(note, Order) else note

    # --- doubts -------------------------------------------------------------------------------------------------

    def doubt(self, a: Tensor, b: Tensor) -> None:
        """Remember that two tensors, which share no memory here, may do so in the ordinary network."""
        self.doubtful = True
        if self.compiling:
            return
        joined = [StorageWeakRef(t.untyped_storage()) for t in (a, b)]
        ends = {reference.cdata for reference in joined}
        apart = []
        for group in self.doubts:
            alive = [reference for reference in group if not reference.expired()]
            if ends & {reference.cdata for reference in alive}:
                joined += alive
            elif len(alive) > 1:
                apart.append(alive)
        self.doubts = [*apart, joined]

    def writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Tensor, int]]:
        """Return the tensors in doubt that a call may write to and their versions; raise for what may be outdated.

        Raises:
            UnsupportedOperation: if an argument may hold something else in the ordinary network.
        """
        if self.compiling or torch.is_inference_mode_enabled():
            if may_write(func, args, kwargs):
                raise unsupported(func, f"it writes in place, and {_IN_DOUBT}")
            return []
        given = list(tensors_in((args, kwargs)))
        if self.stale and func not in _OF_SHAPE:
            self.require_current(func, given)
        return [(tensor, tensor._version) for tensor in given if not tensor.is_inference()]

    def written(self, before: list[tuple[Tensor, int]]) -> None:
        """Remember what has become outdated since :meth:`writes`."""
        for tensor, version in before:
            if tensor._version == version:
                continue
            storage = tensor.untyped_storage()._cdata
            for group in self.doubts:
                if storage in {reference.cdata for reference in group}:
                    self.stale += [reference for reference in group if reference.cdata != storage]

    def require_current(self, func: Any, tensors: Sequence[Tensor]) -> None:
        """Raise if one of `tensors` may hold something else in the ordinary network."""
        outdated = {reference.cdata for reference in self.stale if not reference.expired()}
        if outdated and any(tensor.untyped_storage()._cdata in outdated for tensor in tensors):
            raise unsupported(func, f"one of its arguments may have been written to in place: {_IN_DOUBT}")


_IN_DOUBT = (
    "whether a contiguous() or reshape() before copied depends on how the ordinary network's maps lie in memory, which "
    "is not known here (write out of place, or clone() first)"
)


def in_format(execution: Any, func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Carry out a function that is given a memory format: return `x` itself where the ordinary network does, or copy.

    Args:
        func: `contiguous`, `clone`, `to` or a conversion like it.
        x: a tensor with a layout, which the result has too.
    """
    memory, layout, kwargs = execution.memory, execution.layout(x), dict(kwargs)
    shape = execution.ordinary_shape(x, layout)
    strides = memory.strides(x, shape)
    wanted = kwargs.pop("memory_format", torch.contiguous_format)
    to = func not in FORMATTING
    if not to and args:
        wanted = args[0]
    out = func(x, *args, **kwargs) if to else x
    if wanted is torch.preserve_format:
        note = memory.noted(x)
        return x if out is x else memory.note(execution.mark(out, layout), note and dense(note))
    last = wanted in (torch.channels_last, torch.channels_last_3d)
    target = channels_last_strides(shape) if last else contiguous_strides(shape)
    if out is x:
        known = strides != UNKNOWN
        if known and (has_channels_last(shape, strides) == last if to else alike(shape, strides, target)):
            return x
        out = x.clone()
        if not known:
            memory.doubt(x, out)
            if to:  # which may return a tensor with gaps
                return memory.note(execution.mark(out, layout), UNKNOWN)
    return memory.note(execution.mark(out, layout), _in_format(shape, wanted))


FORMATTING = functions_named("contiguous")


def formats(func: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call says how its result lies in memory."""
    return func in FORMATTING or kwargs.get("memory_format") is not None


def _in_format(shape: Sequence[int], wanted: torch.memory_format) -> Note | None:
    """Return what to note of a new tensor in a format."""
    last = wanted in (torch.channels_last, torch.channels_last_3d)
    return note_of(shape, channels_last_strides(shape)) if last else None


def settle(execution: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Return the result of a rule, copied if the ordinary network copies and this one did not; note its strides."""
    made = execution.marked(out)
    if made is not None and made.unfinished is not None:  # what waits has no values yet
        return out
    if func in RESHAPING or func in VIEWING:
        source = args[0] if args else kwargs["input"]
        if out is source or execution.marked(source) is None:  # a constant, expanded as a map
            return out
        if func in RESHAPING:
            return _reshaped(execution, source, out)
        _view(execution, func, args, kwargs, source, out)
    elif func in MADE_LIKE and kwargs.get("memory_format") not in (None, torch.preserve_format):
        execution.memory.note(out, _in_format(execution.ordinary_shape(out, made), kwargs["memory_format"]))
    elif func in MADE_LIKE or not formats(func, kwargs):  # `in_format` has noted what it made
        _follow(execution, func, args, kwargs, out)
    return out


def keeps_order(func: Any, args: tuple[Any, ...], out: Any) -> bool:
    """Note the strides of what a function of each position made, where its first argument decides them alone.

    This is what :func:`settle` does for most functions of most networks, in less time; not for compilers.

    Returns:
        Whether it did.
    """
    first = args[0] if args and func in KEEPING and func not in MADE_LIKE and func not in FORMATTING else None
    own = getattr(first, "_sparkmim_layout", None)
    made = getattr(out, "_sparkmim_layout", None)
    if first is None or own is None or made is None or made.unfinished is not None or own.is_map != made.is_map:
        return False
    note = getattr(first, "_sparkmim_strides", None)
    if not (note is None or isinstance(note, Order)) or first.shape != out.shape:
        return False
    if note is not None and out is not first:
        out._sparkmim_strides = note
    return True


def _view(execution: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, out: Any) -> None:
    """Note the strides of views of `source` that `func` has made."""
    memory = execution.memory
    note = memory.noted(source)
    if note is None and func in _AS_SIZES:
        return
    if func in _ORDERS:
        order = order_given(_ORDERS[func], source.ndim, args[1:], kwargs)
        if note is None or isinstance(note, Order):
            moved = tuple(order.index(axis) for axis in (range(source.ndim) if note is None else note.axes))
            memory.note(out, None if moved == tuple(range(source.ndim)) else Order(moved))
        else:
            memory.note(out, tuple(note[axis] for axis in order) if note != UNKNOWN else UNKNOWN)
        return
    shape = execution.ordinary_shape(source, execution.marked(source))
    strides = memory.strides(source, shape)
    for part in tensors_in(out):
        layout = execution.marked(part)
        if layout is not None:
            new = execution.ordinary_shape(part, layout)
            found = UNKNOWN if strides == UNKNOWN else _viewed(func, args, kwargs, shape, strides, new)
            memory.note(part, note_of(new, found))


def _reshaped(execution: Any, source: Tensor, out: Tensor) -> Tensor:
    """Return a reshaped tensor, copied if the ordinary network copies it, its strides noted."""
    memory = execution.memory
    note = memory.noted(source)
    shares, known, found = True, True, None
    if note is not None:
        shape = execution.ordinary_shape(source, execution.marked(source))
        new = execution.ordinary_shape(out, execution.marked(out))
        strides = memory.strides(source, shape)
        if shape == new:
            viewed: Strides | None = strides
        else:
            known = strides != UNKNOWN
            viewed = as_shape(shape, strides, new) if known else None
        shares = viewed is not None
        found = UNKNOWN if not known else None if viewed is None else note_of(new, viewed)
    here = memory.compiling or out.untyped_storage()._cdata == source.untyped_storage()._cdata
    if here and not shares:
        out = execution.mark(out.clone(), execution.marked(out))
    if not known or (shares and not here):
        memory.doubt(source, out)
    return memory.note(out, found)


def _viewed(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Sequence[int], strides: Strides, new: Sequence[int]
) -> Strides:
    """Return the strides of a view, of shape `new`, which `func` made of a tensor; UNKNOWN where they are not known."""
    ndim = len(shape)
    if func in _EXPANDING:
        shift = len(new) - ndim
        own = [0 if extent != wide else s for extent, s, wide in zip(shape, strides, new[shift:], strict=True)]
        return (0,) * shift + tuple(own)
    if func in _AS_SIZES or func in _SQUEEZING:
        return as_shape(shape, strides, new) or UNKNOWN
    if func in _SELECTING:
        axis = (kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else 0) % ndim
        return strides[:axis] + strides[axis + 1 :]
    if func in _INDEXING:
        return indexed(args[1], shape, strides)
    return strides


def _follow(execution: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Note the strides of what a function made that neither aliases its argument nor reshapes it."""
    memory = execution.memory
    first, made = args[0] if args else None, execution.marked(out)
    if func in KEEPING and isinstance(first, Tensor) and isinstance(out, Tensor) and first.shape == out.shape:
        note, own = memory.noted(first), execution.marked(first)
        same_kind = own is not None and made is not None and own.is_map == made.is_map  # not a value per image
        if same_kind and (note is None or isinstance(note, Order)):  # which decides alone
            if note is not None and out is not first:
                memory.note(out, note)
            return
    given = [(t, memory.noted(t)) for t in tensors_in(args)]
    if kwargs:
        given += [(t, memory.noted(t)) for t in tensors_in(kwargs)]
    if all(note is None for _, note in given) or any(out is t for t, _ in given):
        return
    for part in (out,) if isinstance(out, Tensor) else tensors_in(out):
        found: Note | None = UNKNOWN
        if func in KEEPING:
            found = _of_each_position(execution, [t for t, _ in given], part)
        elif func in _BY_FORMAT:
            found = UNKNOWN if any(_may_have_channels_last(execution, t, note) for t, note in given) else None
        if found is not None:
            memory.note(part, found)


def _of_each_position(execution: Any, given: Sequence[Tensor], out: Tensor) -> Note | None:
    """Return what to note of the result of a function that acts on each position of tensors."""
    layout = execution.marked(out)
    if layout is None:
        return UNKNOWN
    shape = execution.ordinary_shape(out, layout)
    operands = []
    for tensor in given:
        own = execution.marked(tensor)
        size = tuple(tensor.shape) if own is None else execution.ordinary_shape(tensor, own)
        strides = tensor.stride() if own is None else execution.memory.strides(tensor, size)
        if strides == UNKNOWN and size:
            return UNKNOWN
        wide = shape[len(shape) - len(size) :]
        spread = [0 if n == 1 != m else s for n, m, s in zip(size, wide, strides, strict=True)]
        operands.append((0,) * (len(shape) - len(size)) + tuple(spread))
    return note_of(shape, strides_in_order(shape, order_of(operands).axes))


def _may_have_channels_last(execution: Any, tensor: Tensor, note: Note | None) -> bool:
    if note is None or isinstance(note, Order):
        return note is not None and note.axes[-1] == 1
    return has_channels_last(execution.ordinary_shape(tensor, execution.marked(tensor)), note)


def may_write(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call may write to its first argument, by its name and arguments."""
    name = str(getattr(func, "__name__", ""))
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    flagged = kwargs.get("inplace") is True or any(a is True for a in args[1:])
    return in_place or operator or flagged or name == "__setitem__"
