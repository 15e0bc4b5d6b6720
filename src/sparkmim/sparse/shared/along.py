"""Functions along axes that are neither samples nor space: they act on each position alone and run as they are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..functions import functions_named
from ..layout import Layout
from .axes import without_axes
from .over_space import largest, over_space
from .places import LARGEST
from .pointwise import (
    broadcast_layout,
    free_axes,
    own_layout,
    pointwise,
    require_no_input,
    samples_and_channels_first,
)
from .reduce import reduction

_REDUCING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("max", "min", "median", "nanmedian", "mode", "argmax", "argmin"), ("dim", "keepdim")),
    **dict.fromkeys(("any", "all", "prod", "aminmax"), ("dim", "keepdim")),
    "count_nonzero": ("dim",),
    **dict.fromkeys(("quantile", "nanquantile"), ("q", "dim", "keepdim")),
    "kthvalue": ("k", "dim", "keepdim"),
}
"""Reductions of axes, with the names of their arguments after the tensor."""

_KEEPING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cumprod", "cummax", "cummin", "logcumsumexp"), ("dim",)),
    **dict.fromkeys(("sort", "argsort"), ("dim", "descending")),
    "topk": ("k", "dim", "largest", "sorted"),
    "diff": ("n", "dim"),
}
"""Functions along one axis that keep it, perhaps with another extent, likewise."""

_LAST_BY_DEFAULT = ("sort", "argsort", "topk", "diff", "kthvalue", "mode")
_ELEMENTWISE = {"max": torch.maximum, "min": torch.minimum}
_ALONG = functions_named(" ".join((*_REDUCING, *_KEEPING)))


@Execution.register(*_ALONG)
def along_axis(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Apply a function along a free axis, or along all of space; return each of its results with its layout."""
    name = _ALONG[func]
    arguments = _bound(func, name, args, kwargs)
    if name in _ELEMENTWISE and isinstance(arguments.get("other", arguments.get("dim")), Tensor):
        return pointwise(execution, _ELEMENTWISE[name], input, *arguments.values())
    require_no_input(execution, func, *arguments.values())
    if "out" in arguments or isinstance(arguments.get("q"), Tensor):
        raise unsupported(func, "its rule knows neither out= nor a tensor of quantiles; give q as a number")
    dim = arguments.get("dim", -1 if name in _LAST_BY_DEFAULT else None)
    if name in LARGEST and dim is None:
        return reduction(execution, LARGEST[name], input, None)
    if dim is None or dim == ():
        raise unsupported(
            func,
            "it takes all axes together, samples included, and an image must not depend on the others of its batch; "
            "name the axes, as in x.amax((1, 2, 3), keepdim=True)",
        )
    axes = tuple(d % input.ndim for d in ((dim,) if isinstance(dim, int) else dim))
    if name in LARGEST and execution.unfinished(input) is not None:
        return largest(execution, func, name, input, axes, bool(arguments.get("keepdim", False)))
    layout = own_layout(execution, func, input)
    if layout.batch not in axes and set(axes) & set(layout.space):
        return over_space(execution, func, name, input, layout, axes, arguments)
    free_axes(func, layout, input.ndim, axes)
    out = func(input, **{**arguments, "dim": dim})
    own = layout if name in _KEEPING or arguments.get("keepdim") else without_axes(layout, axes)
    for part in (out,) if isinstance(out, Tensor) else out:
        execution.mark(part, own)
    return out


def _bound(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function by name, the tensor left out."""
    names = _REDUCING.get(name) or _KEEPING[name]
    if name == "count_nonzero" and len(args) > 1 and all(type(arg) is int for arg in args):
        args = (args,)  # axes one by one
    if len(args) > len(names):
        raise unsupported(func, f"its rule knows the arguments {', '.join(names)} by position, not {len(args)} of them")
    aliases = {"axis": "dim", "keepdims": "keepdim"}
    return dict(zip(names, args, strict=False)) | {aliases.get(key, key): value for key, value in kwargs.items()}


@Execution.register(F.local_response_norm)
def local_response_norm(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Normalize over neighboring channels, axis 1."""
    layout = samples_and_channels_first(execution, func, input)
    return execution.mark(func(input, *args, **kwargs), layout)


@Execution.register(*functions_named("cosine_similarity"))
def cosine_similarity(
    execution: Execution, func: Any, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    """Compare vectors along a free axis, position by position."""
    layout, ndim = broadcast_layout(execution, func, [x1, x2])
    return execution.mark(func(x1, x2, dim, eps), _without(func, layout, ndim, dim))


@Execution.register(*functions_named("pairwise_distance"))
def pairwise_distance(
    execution: Execution, func: Any, x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """Return the distance of vectors along the last axis, position by position."""
    layout, ndim = broadcast_layout(execution, func, [x1, x2])
    reduced = _without(func, layout, ndim, -1)
    return execution.mark(func(x1, x2, p, eps, keepdim), layout if keepdim else reduced)


def _without(func: Any, layout: Layout, ndim: int, dim: int) -> Layout:
    return without_axes(layout, free_axes(func, layout, ndim, dim))


# --- looked up in tables, or at places of a free axis ---------------------------------------------------------------


@Execution.register(F.embedding, torch.embedding)
def embedding(execution: Execution, func: Any, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Look up the rows of a table, as vector quantization does; its columns are a new last axis."""
    indices, table = (input, weight) if func is F.embedding else (weight, input)
    layout = own_layout(execution, func, indices)
    require_no_input(execution, func, table)
    return execution.mark(func(input, weight, *args, **kwargs), layout)


@Execution.register(F.one_hot)
def one_hot(execution: Execution, func: Any, tensor: Tensor, num_classes: int = -1) -> Tensor:
    layout = own_layout(execution, func, tensor)
    if num_classes < 0:
        raise unsupported(func, "the number of classes depends on all values; give num_classes")
    return execution.mark(func(tensor, num_classes), layout)


_AT_PLACES = functions_named("gather take_along_dim scatter scatter_add scatter_ scatter_add_ index_fill index_fill_")


@Execution.register(*_AT_PLACES)
def at_places(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Read or write places of a free axis, which may differ from position to position."""
    name = _AT_PLACES[func].rstrip("_")
    names = ("indices", "dim") if name == "take_along_dim" else ("dim", "index", "src")
    arguments = dict(zip(names, args, strict=False)) | kwargs
    dim = arguments.get("dim")
    if len(args) > len(names) or dim is None:
        raise unsupported(func, "its rule needs the axis, and no arguments by position after src")
    layout = own_layout(execution, func, input)
    free_axes(func, layout, input.ndim, dim)
    others = [value for key, value in arguments.items() if key != "dim" and isinstance(value, Tensor)]
    if name == "index_fill":
        require_no_input(execution, func, *others)
        return execution.mark(func(input, *args, **kwargs), layout)
    for other in others:
        own = execution.layout(other)
        if own != layout or any(other.shape[a] != input.shape[a] for a in layout.tracked_axes):
            raise unsupported(
                func,
                "its index must be a tensor of the input with the same samples and positions; for the same "
                "places at every position use index_select",
            )
    return execution.mark(func(input, *args, **kwargs), layout)
