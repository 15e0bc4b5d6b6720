"""Reductions over space: statistics of an image are taken over its visible positions, and hold one value an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import unsupported
from ..execution import Execution
from ..extent import degrees_of, of_whole_map, value_of
from ..functions import functions_named
from ..layout import Layout
from ..reduction import REDUCTIONS, Reduction, bound_arguments
from ..registry import understands_sizes
from ..totals import note_total
from .axes import without_axes
from .calls import call
from .in_turn import InTurn, begun, continued
from .places import without_meaning
from .pointwise import own_layout


@Execution.register(*REDUCTIONS)
def reduction(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Reduce named axes: free axes as they are, all of space over an image's visible positions.

    A reduction of one spatial axis waits for the same of the others, and they are carried out together.
    """
    arguments = bound_arguments(func, args, kwargs)
    dims = arguments.pop("dim", None)
    keep = bool(arguments.pop("keepdim", False))
    if isinstance(arguments.get("p"), str):
        if arguments["p"] != "fro":
            raise unsupported(func, "it is the norm of a matrix, not of the values at positions")
        arguments["p"] = 2
    if func is torch.linalg.norm and not isinstance(dims, int):
        raise unsupported(func, "along two axes it is the norm of a matrix; use torch.linalg.vector_norm")
    if arguments.pop("out", None) is not None:
        raise unsupported(func, "it writes into a tensor that does not descend from the input")
    if dims is None or dims == ():
        dims = range(input.ndim)
    axes = tuple(d % input.ndim for d in ((dims,) if isinstance(dims, int) else dims))
    reduce = Reduction(func, keep, arguments)
    unfinished = execution.unfinished(input)
    if unfinished is not None and isinstance(unfinished.waits, InTurn):
        return continued(execution, reduce, unfinished, axes)
    layout = own_layout(execution, func, input)
    if layout.batch in axes:
        return _over_batch(execution, reduce, input, layout, axes)
    spatial = [a for a in layout.space if a in axes]
    if spatial and len(spatial) != len(layout.space):
        return begun(execution, reduce, input, layout, axes)

    def marked(out: Tensor) -> Tensor:
        new = layout.per_image(layout.batch) if spatial else layout
        return execution.mark(out, new if keep else without_axes(new, axes))

    if not spatial:
        out = reduce(input, axes)
    else:
        out = execution.reduce_space(reduce, input, layout, axes)
        note_total(execution, reduce.name, input, out)
    return marked(out) if isinstance(out, Tensor) else tuple(marked(part) for part in out)


# Statistics of a batch, whose size and number of visible positions do not scale them.
_OF_BATCHES = {"mean", "nanmean", "amax", "amin", "var", "std", "var_mean", "std_mean"}


def _over_batch(execution: Execution, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
    """Return a statistic of all images together, over their visible positions, as batch norms written by hand take it.

    It is a value of the batch: a constant to each image, without a layout.

    Raises:
        UnsupportedOperation: for one that grows with the batch, or leaves some spatial axes out.
    """
    if reduce.name not in _OF_BATCHES:
        raise unsupported(
            reduce.function,
            "it adds up all images of the batch and their positions, of which only some are visible; take a mean, or "
            "name the axes of an image, as in x.sum((1, 2, 3), keepdim=True)",
        )
    if not set(layout.space) <= set(axes):
        raise unsupported(
            reduce.function,
            "it mixes images at each position, and images differ in which are visible; a statistic of all images is "
            "taken over all of space too, as in x.mean((0, 2, 3))",
        )
    return execution.of_the_batch(execution.reduce_batch(reduce, x, layout, axes))


# Adaptive pooling: what it takes of its windows, and its number of spatial dimensions.
_ADAPTIVE: dict[Any, tuple[Any, int]] = {
    **{f: (torch.mean, n) for n in (1, 2, 3) for f in functions_named(f"adaptive_avg_pool{n}d")},
    F.adaptive_max_pool1d: (torch.amax, 1),
    F.adaptive_max_pool2d: (torch.amax, 2),
    F.adaptive_max_pool3d: (torch.amax, 3),
}
# Those that return indices too.
_ADAPTIVE_INDICES: dict[Any, tuple[Any, int]] = {
    torch.adaptive_max_pool1d: (torch.amax, 1),
    F.adaptive_max_pool1d_with_indices: (torch.amax, 1),
    F.adaptive_max_pool2d_with_indices: (torch.amax, 2),
    F.adaptive_max_pool3d_with_indices: (torch.amax, 3),
}
_ADAPTIVE_VALUES = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@understands_sizes(*_ADAPTIVE, *_ADAPTIVE_INDICES)
@Execution.register(*_ADAPTIVE, *_ADAPTIVE_INDICES)
def adaptive_pool(
    execution: Execution, func: Any, input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    """Pool the whole map to one value a channel, or to a whole part of its own size."""
    out = _adaptive_pool(execution, func, input, output_size)
    return (out, without_meaning(execution, func, out)) if return_indices or func in _ADAPTIVE_INDICES else out


def _adaptive_pool(execution: Execution, func: Any, input: Tensor, output_size: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    statistic, dims = (_ADAPTIVE | _ADAPTIVE_INDICES)[func]
    if not layout.is_map:
        if layout.batch != 0:
            raise unsupported(func, f"it needs samples first, its argument is {layout}")
        size = of_whole_map(output_size)
        pool = func if func in _ADAPTIVE else _ADAPTIVE_VALUES[dims - 1]
        return execution.on_one_row_per_image(lambda x: pool(x, size), input, layout)
    if len(execution.require_map(func, input).space) != dims:
        raise unsupported(func, f"it pools along {dims} axes and the map has {len(layout.space)}")
    sizes = per_axis(output_size, dims) if output_size is not None else (None,) * dims
    if all(size == 1 and not degrees_of(size) for size in sizes):
        return over_whole_map(execution, statistic, input)
    windows = _windows(execution, input, layout, sizes)
    if windows is None:
        raise unsupported(
            func,
            f"its windows follow from the size of the whole map, and patches are not cut along them: it has a rule for "
            f"pooling to size 1, or to a whole part of the map's own size (x.shape[2] // 2), not to {output_size}",
        )
    pools = _AVERAGES if statistic is torch.mean else _MAXIMA
    out: Tensor = call(execution, pools[dims - 1], input, windows)
    return out


def _windows(execution: Execution, x: Tensor, layout: Layout, sizes: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the windows that pool a map to sizes read off it, which divide its own; None if there are none such."""
    windows = []
    for axis, size in zip(layout.space, sizes, strict=True):
        whole = execution.extent_of_whole(layout, axis, x.shape[axis])
        wanted = whole if size is None else value_of(size)
        if (size is not None and degrees_of(size) != layout.degrees(axis)) or wanted < 1 or whole % wanted:
            return None
        windows.append(int(whole // wanted))
    return tuple(windows)


def over_whole_map(execution: Execution, statistic: Any, x: Tensor) -> Tensor:
    """Reduce a map to one value a channel, its spatial axes kept."""
    layout = execution.layout(x)
    assert layout is not None
    out: Tensor = reduction(execution, statistic, x, dim=layout.space, keepdim=True)
    return out


def is_whole_map(execution: Execution, x: Tensor, layout: Layout, kernel: Sequence[Any], padding: Any) -> bool:
    """Return whether a pooling's window is all of a map: its sizes were read off a map, and are those of this one."""
    whole = [execution.extent_of_whole(layout, axis, x.shape[axis]) for axis in layout.space]
    if list(kernel) != whole or layout.padding is not None or any(per_axis(padding, len(whole))):
        return False
    return all(degrees_of(size) for size in kernel)


def require_fixed_windows(func: Any, kernel: Sequence[Any]) -> None:
    """Raise if a window that is not the whole map grows with it, as strips of rows do: they run through hidden patches.

    Raises:
        UnsupportedOperation: with what to do instead.
    """
    if any(degrees_of(size) for size in kernel):
        raise unsupported(
            func,
            f"its windows of {tuple(of_whole_map(kernel))} grow with the map, as rows and columns do, and patches are "
            "not cut along them: it has a rule for windows of fixed size and for the whole map (x.mean((2, 3)))",
        )
