"""Values taken over a whole map, and numbers that may be the sizes of one: their products are refused.

A network can make ordinary numbers of sizes, by `float(h)` or `int(h)`, which the rules cannot follow. A sum over the
visible positions of a map divided by these is no mean, and no check finds that out: a rectangle of visible patches is
told its own sizes. Such numbers are known by their value alone, and the extent of one axis may be any constant. They
are therefore looked for only where values that were taken over space are scaled, or maps before their sum is taken:
there a constant that equals an extent by chance is improbable.

Tensors are noted by attributes, which the functions that are linear, and views, hand on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any

from torch import Tensor

from .errors import unsupported
from .extent import OF_THE_BATCH, Extent, Told, scaled_batch, value_of
from .functions import functions_named, operators_in_place, operators_named
from .memory import RESHAPING, VIEWING
from .nested import tensors_in

_TOTAL = "_sparkmim_total"
"""Attribute of tensors that were taken over all positions: the name of the reduction."""

_SCALED = "_sparkmim_scaled"
"""Attribute of maps that were scaled by what may be a size: the number."""

_SIZE = "_sparkmim_may_be_size"
"""Attribute of constants that were made of what may be a size: the number."""

_SCALING = operators_named("mul multiply div divide true_divide truediv floordiv floor_divide")
_SHIFTING = operators_named("add sub subtract rsub")
_FILLING = functions_named("tensor as_tensor asarray scalar_tensor full new_full full_like new_tensor fill") | (
    operators_in_place("fill")
)
_OF_SHAPES = functions_named("full new_full")
_ROOTS = operators_named("sqrt rsqrt reciprocal square pow abs clamp clamp_min clamp_max neg negative maximum minimum")
_VIEWS = VIEWING | RESHAPING | functions_named("to type type_as float double half bfloat16 clone contiguous item")
_LINEAR = functions_named("linear conv1d conv2d conv3d matmul bmm einsum mm") | {Tensor.__matmul__: "matmul"}
_LINEAR |= functions_named("mean sum cat concat stack mul dropout")
_OF_MAPS = _SCALING | _VIEWS
_OF_IMAGES = _OF_MAPS | _SHIFTING | _ROOTS
_OF_SUMS = _OF_IMAGES | _LINEAR
SUMS = ("sum", "nansum", "norm", "vector_norm")
"""Reductions that grow with the number of positions."""


def note_total(execution: Any, name: str, source: Tensor | None, out: Any) -> None:
    """Note that `out` was taken over all positions of a map, by the reduction of this name.

    Args:
        execution: answers. (Compiled, nothing is noted: an eager pass has come before.)
        name: of the reduction.
        source: the map; None where it does not matter what it was scaled by.
        out: one tensor or several.

    Raises:
        UnsupportedOperation: for the sum of a map that was scaled by a size.
    """
    if execution.compiling:
        return
    execution.told.totals = True
    number = getattr(source, _SCALED, None)
    if number is not None and name in SUMS:
        raise unsupported(getattr(Tensor, name, None), _why(number))
    for tensor in tensors_in(out):
        setattr(tensor, _TOTAL, name)


def require_no_sizes(told: Told, func: Any, args: Any, kwargs: Any) -> None:
    """Raise if a function scales what was taken over a map by a number that may be a size.

    Raises:
        UnsupportedOperation: with the number and what to do.
    """
    if not (told.totals and told.left):
        return
    kinds = {getattr(tensor, _TOTAL, None) for tensor in tensors_in((args, kwargs))} - {None}
    if not kinds:
        return
    for tensor in tensors_in((args, kwargs)):
        if (func in _SCALING or func in _LINEAR) and hasattr(tensor, _SIZE):
            raise unsupported(func, _why(getattr(tensor, _SIZE)))
    if func in _SCALING:
        _require_none_of(func, told.scales(), args, kwargs)
    elif func in _SHIFTING and "logsumexp" in kinds:
        _require_none_of(func, [math.log(scale) for scale in told.scales()], args, kwargs)


def _require_none_of(func: Any, scales: Iterable[float], args: Any, kwargs: Any) -> None:
    number = _among(scales, (args, kwargs))
    if number is not None:
        raise unsupported(func, _why(number))


def note_batch(told: Told, out: Any) -> None:
    """Note that `out`, one tensor or several, was taken over all positions of all images."""
    told.batches = True
    for tensor in tensors_in(out):
        setattr(tensor, OF_THE_BATCH, True)


def follow_batch(told: Told, images: int, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Hand on to the result of a function that statistics of a batch are among its arguments.

    Raises:
        UnsupportedOperation: if it scales one by a number computed from sizes of the map, as n / (n - 1).
    """
    if func not in _OF_SUMS or not any(hasattr(tensor, OF_THE_BATCH) for tensor in tensors_in((args, kwargs))):
        return
    if func in _SCALING:
        number = _extent_in((*args, *kwargs.values())) or _among(told.corrections(images), (args, kwargs))
        if number is not None:
            raise scaled_batch(func, number)
    note_batch(told, out)


def _extent_in(values: Iterable[Any]) -> float | None:
    """Return the first number that is a size of a map, None if there is none."""
    return next((value_of(value) for value in values if type(value) is Extent), None)


def follow(told: Told, func: Any, args: Any, kwargs: Any, out: Any, traced: bool) -> None:
    """Hand on to the result of a function what is noted of its arguments.

    Args:
        traced: whether an argument descends from the input.
    """
    if not told.left and not _any_total(args) and not (kwargs and _any_total(kwargs.values())):
        return  # most of the functions of most networks
    tensors = list(tensors_in((args, kwargs)))
    found: dict[str, Any] = {}
    for name in (_TOTAL, _SCALED, _SIZE):
        for tensor in tensors:
            if hasattr(tensor, name):
                found[name] = getattr(tensor, name)
    if told.left and (func in _SCALING or func in _FILLING):
        given = [value for value in (*args, *kwargs.values()) if func not in _OF_SHAPES or isinstance(value, Real)]
        number = _among(told.scales(), given)
        if number is not None:
            found[_SCALED if traced and func in _SCALING else _SIZE] = number
    if not found:
        return
    for tensor in tensors_in(out):
        if not traced:
            _set(tensor, _SIZE, found.get(_SIZE))
            continue
        layout = getattr(tensor, "_sparkmim_layout", None)
        is_map = layout is not None and layout.is_map
        kind = found.get(_TOTAL)
        if func in (_OF_MAPS if is_map else _OF_SUMS if kind in SUMS else _OF_IMAGES):
            _set(tensor, _TOTAL, kind)
        if func in _OF_SUMS:
            _set(tensor, _SCALED, found.get(_SCALED, found.get(_SIZE)))
        elif func in _FILLING or layout is None:
            _set(tensor, _SIZE, found.get(_SIZE))


def _any_total(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if _TOTAL in value.__dict__:
                return True
        elif isinstance(value, (list, tuple)) and _any_total(value):
            return True
    return False


def _set(tensor: Tensor, name: str, value: Any) -> None:
    if value is not None:
        setattr(tensor, name, value)


def _among(scales: Iterable[float], values: Any) -> float | None:
    """Return the first number in nested lists, tuples and dicts that is one of several, None if there is none."""
    for number in _numbers(values):
        if any(math.isclose(abs(number), abs(scale), rel_tol=1e-6) for scale in scales):
            return number
    return None


def _why(number: float) -> str:
    return (
        f"it scales what is taken over the whole map by {number:g}, which may be the size of the map: the network has "
        "made ordinary numbers of sizes, and a sum over visible positions divided by the number of all is no mean. For "
        "an average over the map use x.mean((2, 3)); hold a constant that only happens to equal a size in a buffer"
    )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (Tensor, bool, str)):
        return
    if isinstance(value, Real):
        yield float(value)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, dict):
        yield from _numbers(tuple(value.values()))
