"""What a network computes beside its feature maps: auxiliary classifiers, projection heads, statistics that it keeps.

Such a part may call functions that have no meaning on visible patches (a pooling to a fixed grid, attention). No map
needs their results, so a refused function does not end the pass: it returns a tensor of the shape that the ordinary
network has there, without values, and so does every function of such a tensor. The refusal is raised as soon as one
reaches a map: where it meets a parameter that a map depends on, is written into another tensor, is read by Python, or
is itself returned as a map.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

from ..errors import UnsupportedOperation, running_module_ids
from ..extent import Extent, of_whole_map, unit, value_of
from ..functions import attributes_named, functions_named
from ..layout import Layout, Unfinished
from ..memory import RESHAPING, VIEWING
from ..nested import map_tensors, tensors_in
from .merged import Merged
from .pointwise import METADATA, as_size
from .short import Short

REFUSED = "_sparkmim_refused_beside"
"""Attribute of networks: by mode (training or not), functions that were refused beside the maps in an eager pass, and
which calls of each."""

_FRESH = functions_named(
    "conv1d conv2d conv3d linear matmul bmm batch_norm layer_norm group_norm adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d relu gelu sigmoid cat"
)
"""Functions whose result never shares memory with their arguments, unless they work in place."""

_MAY_ALIAS = {
    **VIEWING, **RESHAPING, **functions_named("contiguous to type type_as float double half bfloat16 cpu cuda"),
}  # fmt: skip

_WRITES = re.compile("(?!__).*(?<!_)_|__setitem__|__set__|__i(?!nvert|ndex|nt|nit|ter|mport)[a-z]+__")

_NAMESPACES = (torch, torch.Tensor, F, torch._C._nn)
_IN_PLACE = {
    getattr(space, name): name for space in _NAMESPACES for name in dir(space) if _WRITES.fullmatch(name)
}  # fmt: skip
"""Functions that write into their first argument, as a table, for Dynamo cannot read their names."""

_IN_PLACE_IF_TOLD = {
    function: name
    for name, function in vars(F).items()
    if inspect.isroutine(function) and "inplace" in getattr(getattr(function, "__code__", None), "co_varnames", ())
}
"""Functions that write where an argument says so."""

_UPDATING = (F.batch_norm, F.instance_norm)
"""Functions of modules that keep running statistics."""

_SIZES = {torch.Tensor.size, torch.Tensor.shape.__get__}  # type: ignore[attr-defined]
_NUMBERS = functions_named("numel nelement")
_DESCRIBING = {**METADATA, **attributes_named("is_cpu")}


def _updated_statistics(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *further: Any,
    **settings: Any,
) -> list[int]:
    """Return the ids of the running statistics that a norm updates."""
    updates = training or settings.get("use_input_stats", False)
    return [id(t) for t in (running_mean, running_var) if t is not None and updates]


class Valueless(NamedTuple):
    """A tensor that only has a shape, as its values would follow from a refused function.

    Attributes:
        aliases: whether it shares memory with a map in the ordinary network, or may.
    """

    aliases: bool


class Beside:
    """Answers the functions of one pass whose results no map needs.

    Args:
        network: the module.
        unreached: names of its parameters that no map depends on.
        counting: note which functions are refused, for a compiler, under which an error cannot be caught.

    Attributes:
        started: whether there are tensors without values.
        refused: calls of functions that were refused, by their numbers, counted from zero.
        untouched: ids of tensors of the network, as running statistics, that functions were given with tensors without
            values, and could not update.
    """

    def __init__(self, network: nn.Module, unreached: Collection[str], counting: bool = False) -> None:
        self.network, self.unreached, self.counting = network, unreached, counting
        self.compiling = torch.compiler.is_compiling()
        self.started = False
        self.refused: dict[Any, list[int]] = {}
        if self.compiling:
            self.refused = getattr(network, REFUSED, {}).get(network.training, {})
        self.counts: dict[Any, int] = {}
        self.untouched: set[int] = set()
        self._ids: set[int] | None = None
        self._updated: set[int] = set()  # running statistics, by maps

    def answer(self, execution: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a function: by the execution's rules, or by a tensor without values.

        Raises:
            UnsupportedOperation: for a refused function whose result a map may need.
        """
        if self.started:
            for tensor in tensors_in((args, kwargs)):
                unfinished = self.without_values(execution, tensor)
                if unfinished is not None:
                    return self._call_on_valueless(execution, unfinished, func, args, kwargs)
        if self.compiling:
            if func in self.refused and self._count(execution, func, args, kwargs) in self.refused[func]:
                error = UnsupportedOperation("it was refused in an eager pass, and a map needs its result compiled")
                return self._valueless_results(execution, error, func, args, kwargs)
            return execution.answer_any(func, args, kwargs)
        number = self._count(execution, func, args, kwargs) if self.counting else None
        if func in _UPDATING:
            self._updated.update(_updated_statistics(*args, **kwargs))
        try:
            return execution.answer_any(func, args, kwargs)
        except UnsupportedOperation as error:
            made = UnsupportedOperation(str(error))
            made.within = error.within or running_module_ids()
        if _writes(func, args, kwargs):
            raise made
        out = self._valueless_results(execution, made, func, args, kwargs)
        if number is not None:
            self.refused.setdefault(func, []).append(number)
        return out

    def _count(self, execution: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Return how many calls of a function with the input there were before, and count this one; None without it."""
        if execution.owner((args, kwargs)) is None:
            return None
        number = self.counts.get(func, 0)
        self.counts[func] = number + 1
        return number

    def require_none_kept(self, execution: Any) -> None:
        """Raise if a tensor without values has become a buffer of the network, or should have updated a map's norm.

        Raises:
            UnsupportedOperation: the refusal that it follows from.
        """
        if not self.started or self.compiling:
            return
        for buffer in self.network.buffers():
            unfinished = self.without_values(execution, buffer)
            if unfinished is not None:
                raise unfinished.error()
        both = self._updated & self.untouched
        for name, buffer in self.network.named_buffers() if both else ():
            if id(buffer) in both:
                raise UnsupportedOperation(
                    f"module {name.rpartition('.')[0]!r} normalizes feature maps, and also something beside them that "
                    "is not computed, so its running statistics would lack that; use two norms"
                )

    @staticmethod
    def without_values(execution: Any, value: Any) -> Unfinished | None:
        """Return what a tensor without values waits for, None for any other value."""
        layout = execution.marked(value)
        if layout is None or layout.origin is not execution or layout.unfinished is None:
            return None
        return layout.unfinished if isinstance(layout.unfinished.waits, Valueless) else None

    def _call_on_valueless(
        self, execution: Any, unfinished: Unfinished, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        first = args[0] if args else None
        if func in _DESCRIBING:
            return func(*args, **kwargs)
        if func in _SIZES or func in _NUMBERS or func is torch.Tensor.__len__:
            return self._size(execution, func, *args, **kwargs)
        if _writes(func, args, kwargs):
            own = self.without_values(execution, first)
            if own is None or own.waits.aliases:
                raise unfinished.error()
        error = unfinished.original
        assert error is not None
        return self._valueless_results(execution, error, func, args, kwargs)

    @staticmethod
    def _size(execution: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return sizes as the network gets them: they cannot be followed to a map, and each may be an extent of one."""
        plain = execution.has_plain_sizes()
        for axis in range(len(execution.told.grid)):
            execution.told.axes.setdefault(unit(axis), set()).update(n for n in x.shape[1:] if n > 1)
        sizes = [
            n if plain or n == 1 or n == execution.grid_shape[0] else Extent(n, told=execution.told) for n in x.shape
        ]
        if func in _SIZES:
            return as_size(execution, sizes, args, kwargs)
        execution.told.read = True
        return math.prod(sizes) if func in _NUMBERS else int(x.shape[0])

    def _valueless_results(
        self, execution: Any, error: UnsupportedOperation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the results of a function without values.

        Raises:
            UnsupportedOperation: `error`, if a map may need them or their shape is not known without values.
        """
        if kwargs.get("out") is not None:
            raise error
        given = list(tensors_in((args, kwargs)))
        if not self.compiling and any(isinstance(t, nn.Parameter) and id(t) not in self._own() for t in given):
            raise error
        metas: list[tuple[Tensor, Tensor]] = []

        def as_meta(tensor: Tensor) -> Tensor:
            for known, meta in metas:
                if known is tensor:
                    return meta
            meta = torch.empty(_shape(execution, tensor, error), dtype=tensor.dtype, device="meta")
            metas.append((tensor, meta))
            return meta

        with torch._C.DisableTorchFunction(), torch.no_grad():
            shaped: tuple[Any, Any] = map_tensors(as_meta, of_whole_map((args, kwargs)))
            out = _on_meta(func, *shaped, error)
            if out is None:
                return None
            if not isinstance(out, (Tensor, list, tuple)):
                raise error
            if not self.compiling:
                self.untouched.update(id(t) for t in given if execution.marked(t) is None)
            for known, meta in metas:
                if out is meta and self.without_values(execution, known) is not None:
                    return known  # written in place
            source = next((t for t in given if execution.marked(t) is not None), given[0])
            aliases = self._may_alias(execution, func, metas, out)

            def standing(meta: Tensor) -> Tensor:
                return self._valueless_like(execution, error, func, source, meta, aliases)

            return map_tensors(standing, out)

    def _own(self) -> set[int]:
        """Return the ids of the parameters that no map depends on."""
        if self._ids is None:
            self._ids = {id(p) for name, p in self.network.named_parameters() if name in self.unreached}
        return self._ids

    def _may_alias(self, execution: Any, func: Any, metas: list[tuple[Tensor, Tensor]], out: Any) -> bool:
        """Return whether results may share memory with a map in the ordinary network."""
        found = False
        for tensor, meta in metas:
            unfinished = self.without_values(execution, tensor)
            if not (unfinished.waits.aliases if unfinished is not None else execution.marked(tensor) is not None):
                continue
            if self.compiling:
                found = found or func not in _FRESH
            else:
                memory = meta.untyped_storage()._cdata
                found = found or func in _MAY_ALIAS
                found = found or any(t.untyped_storage()._cdata == memory for t in tensors_in(out))
        return found

    def _valueless_like(
        self, execution: Any, error: UnsupportedOperation, func: Any, source: Tensor, meta: Tensor, aliases: bool
    ) -> Tensor:
        """Return a tensor of NaN (0 in whole numbers) with the shape of `meta`, marked as one without values.

        It requires gradients, so that what a custom autograd function makes of it is not taken for a constant.
        """
        self.started = True
        floating = meta.dtype.is_floating_point or meta.dtype.is_complex
        value = torch.full((), math.nan if floating else 0, dtype=meta.dtype, device=source.device)
        if floating and not self.compiling:
            value.requires_grad_()
        with torch.set_grad_enabled(execution.grad_enabled):
            standing = value.expand(meta.shape)
        unfinished = Unfinished(func, str(error), Valueless(aliases), error.within, error)
        marked: Tensor = execution.mark(standing, Layout(execution, 0, (), unfinished=unfinished))
        return marked


def _writes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call may write to its first argument."""
    if func in _IN_PLACE or kwargs.get("inplace") is True:
        return True
    if func in _IN_PLACE_IF_TOLD:
        return any(a is True for a in args[1:])
    if torch.compiler.is_compiling():
        return False
    if isinstance(func, (OpOverload, OpOverloadPacket)):  # whose names may hide that
        return True
    return _WRITES.fullmatch(getattr(func, "__name__", "")) is not None


def _on_meta(func: Any, args: Any, kwargs: Any, error: UnsupportedOperation) -> Any:
    """Call a function on tensors without values; raise `error` if it needs them.

    Autocast, which the device of such tensors does not have, may leave tensors of several precisions: then all have
    one.
    """
    if torch.compiler.is_compiling():
        return func(*args, **kwargs)
    for converted in (lambda value: value, partial(map_tensors, _in_one_precision)):
        with suppress(Exception):  # of any kind: a function may be the network's own
            given, named = converted((args, kwargs))
            return func(*given, **named)
    raise error


def _in_one_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _shape(execution: Any, tensor: Tensor, error: UnsupportedOperation) -> list[int]:
    """Return the shape that a tensor has in the ordinary network; raise `error` if that is not known."""
    layout = execution.marked(tensor)
    if layout is None or (layout.unfinished is not None and isinstance(layout.unfinished.waits, Valueless)):
        return list(tensor.shape)
    owner = layout.origin
    waits = None if layout.unfinished is None else layout.unfinished.waits
    if isinstance(waits, Merged):
        apart = _shape(execution, waits.split, error)
        return [math.prod([apart[axis] for axis in group]) for group in waits.groups]
    if isinstance(waits, Short):
        whole = _shape(execution, waits.values, error)
        for axis, missing in zip(layout.space, waits.missing, strict=True):
            whole[axis] -= missing
        return whole
    if layout.unfinished is not None and waits is not None:
        raise error
    shape = [int(value_of(n)) for n in owner.ordinary_shape(tensor, layout)]
    if layout.padding is not None:
        for axis, before, after in zip(layout.space, layout.padding.before, layout.padding.after, strict=True):
            shape[axis] += before + after
    return shape
