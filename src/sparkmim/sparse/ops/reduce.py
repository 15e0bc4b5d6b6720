"""Reductions over space: statistics of an image are taken over its visible positions, and hold one value an image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import Execution, unsupported
from .local import _without_axes, functions_named, own_layout
from .window import per_axis

# Where each reduction takes its axes: the position among its positional arguments after the tensor.
_REDUCTIONS: dict[Any, int] = {
    function: place
    for names, place in (
        (("mean", "sum", "amax", "amin", "logsumexp", "std", "var", "std_mean", "var_mean", "nanmean", "nansum"), 0),
        (("norm",), 1),
    )
    for function in functions_named(*names)
}
_REDUCTIONS[torch.linalg.vector_norm] = 1
_REDUCTIONS[torch.linalg.norm] = 1


def reduction_axes(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]:
    """The axes a call reduces, and its arguments without them."""
    place = _REDUCTIONS[func]
    kwargs = dict(kwargs)
    for key in ("dim", "axis"):
        if key in kwargs:
            dims = kwargs.pop(key)
            break
    else:
        dims = args[place] if len(args) > place else None
        if isinstance(dims, bool):  # var(x, unbiased)
            dims = None
        if place == 0 and len(args) > 1 and all(type(a) is int for a in args):  # x.mean(2, 3)
            dims, args = args, (args,)
        args = args[:place] + (_Axes,) + args[place + 1 :]
    if dims is None:
        raise unsupported(func, "it reduces all axes, samples included")
    axes = tuple(d % x.ndim for d in ((dims,) if isinstance(dims, int) else dims))
    return axes, args, kwargs


class _Axes:
    """Stands for the axes in the arguments of a reduction."""


def call_reduction(func: Any, x: Tensor, axes: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _Axes in args:
        return func(x, *[axes if a is _Axes else a for a in args], **kwargs)
    return func(x, *args, **{**kwargs, "dim": axes})


def keeps_axes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether keepdim is asked for, by name or position: it follows the axes (and for var and std the correction)."""
    if "keepdim" in kwargs or "keepdims" in kwargs:
        return bool(kwargs.get("keepdim", kwargs.get("keepdims")))
    after = args[args.index(_Axes) + 1 :] if _Axes in args else ()
    booleans = [a for a in after if isinstance(a, bool)]
    return bool(booleans and booleans[-1])


@Execution.register(*_REDUCTIONS)
def reduction(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Reductions with the axes named: of free axes as they are, of all of space over an image's visible positions."""
    layout = own_layout(execution, func, x)
    axes, args, kwargs = reduction_axes(func, x, args, kwargs)
    keep = keeps_axes(func, args, kwargs)
    if layout.batch in axes:
        raise unsupported(func, "it mixes images")
    spatial = [a for a in layout.space if a in axes]
    if spatial and len(spatial) != len(layout.space):
        raise unsupported(func, "it reduces one spatial axis and not the others")

    def marked(out: Tensor) -> Tensor:
        new = layout.per_image(layout.batch) if spatial else layout
        return execution.mark(out, new if keep else _without_axes(new, axes))

    if not spatial:
        out = call_reduction(func, x, axes, args, kwargs)
    else:
        out = execution.reduce_space(lambda whole, dims: call_reduction(func, whole, dims, args, kwargs), x, layout, axes, keep)
    return marked(out) if isinstance(out, Tensor) else tuple(marked(part) for part in out)


@Execution.register(*functions_named(*[f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)]))
def adaptive_pool(execution: Execution, func: Any, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Pooling of the whole map to one value a channel."""
    layout = own_layout(execution, func, input)
    if not layout.is_map:
        if layout.batch != 0:
            raise unsupported(func, f"it needs samples first, its argument is {layout}")
        return execution.on_one_row_per_image(lambda x: func(x, output_size), input, layout)
    dims = len(layout.space)
    if layout.space != tuple(range(input.ndim - dims, input.ndim)) or any(s != 1 for s in per_axis(output_size, dims)):
        raise unsupported(func, f"only pooling to size 1 has a rule, not to {output_size}")
    if return_indices:
        raise unsupported(func, "the indices it returns have no meaning on patches")
    function = torch.amax if "max" in func.__name__ else torch.mean
    out: Tensor = reduction(execution, function, input, dim=layout.space, keepdim=True)
    return out
