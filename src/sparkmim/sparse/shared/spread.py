"""Constants that are repeated to the shape of a map: weights, statistics, tables of channels.

Along samples and positions such a tensor is the same everywhere, so on patches it is repeated over those at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..execution import MADE_OUTSIDE, Execution
from ..extent import degrees_of, of_whole_map, value_of
from ..functions import functions_named
from ..registry import register_factory
from .axes import numbers_of
from .noise import made_for
from .pointwise import broadcast_layout, with_values_per_image

_EXPAND = functions_named("expand broadcast_to")
_REPEAT = functions_named("repeat tile")
_NEW = functions_named("new_empty new_zeros new_ones new_full")


@register_factory(*_EXPAND)
def expanded(execution: Execution, func: Any, input: Any, *shape: Any, **kwargs: Any) -> Tensor | None:
    """Repeat a constant along axes of a map."""
    if not isinstance(input, Tensor):
        return None
    sizes = numbers_of(shape, {k: v for k, v in kwargs.items() if k in ("size", "shape")}, next(iter(kwargs), "size"))
    shift = len(sizes) - input.ndim
    if shift < 0:
        return None
    sizes = [input.shape[a - shift] if a >= shift and value_of(n) == -1 else n for a, n in enumerate(sizes)]
    return _spread(execution, input, sizes, lambda rows, local: rows.expand(local))


@register_factory(*_REPEAT)
def repeated(execution: Execution, func: Any, input: Any, *counts: Any, **kwargs: Any) -> Tensor | None:
    """Repeat a constant, which has extent 1 there, along axes of a map, and along free axes."""
    if not isinstance(input, Tensor):
        return None
    times = numbers_of(counts, kwargs, next(iter(kwargs), "repeats"))
    shift = len(times) - input.ndim
    if shift < 0:
        return None
    own = [1] * shift + list(input.shape)
    sizes = [count if n == 1 else n * value_of(count) for count, n in zip(times, own, strict=True)]
    if any(n != 1 and degrees_of(count) for count, n in zip(times, own, strict=True)):
        return None

    def make(rows: Tensor, local: list[int]) -> Tensor:
        here = [1] * shift + list(rows.shape)
        return rows.repeat([size // n if n else size for size, n in zip(local, here, strict=True)])

    return _spread(execution, input, sizes, make)


def _spread(
    execution: Execution, input: Tensor, sizes: Sequence[Any], make: Callable[[Tensor, list[int]], Tensor]
) -> Tensor | None:
    """Return a constant, or noise of each image, repeated to a shape, as a map; None if that is no map's, or it varies.

    Args:
        make: repeats a tensor whose samples are those at hand to a shape of these.
    """
    space = [axis for axis, size in enumerate(sizes) if degrees_of(size)]
    if not space:
        return None
    shift = len(sizes) - input.ndim
    if any(axis >= shift and input.shape[axis - shift] != 1 for axis in space):
        return None
    images = execution.grid_shape[0]
    of_images = not shift and images > 1 and input.shape[0] == images and hasattr(input, MADE_OUTSIDE)
    if not of_images and not shift and input.shape[0] != 1:
        return None

    def repeated_here(local: list[int]) -> Tensor:
        return make(execution.all_rows(input, 0) if of_images and local[0] != images else input, local)

    return made_for(execution, sizes, repeated_here)


@register_factory(*_NEW)
def new_of_constant(execution: Execution, func: Any, input: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Make a tensor of a map's shape with the dtype and device of a constant."""
    given = kwargs["size"] if "size" in kwargs else args[0] if args and isinstance(args[0], (tuple, list)) else args
    others = args[1:] if args and isinstance(args[0], (tuple, list)) else ()
    rest = {key: value for key, value in kwargs.items() if key != "size"}
    if not isinstance(given, (tuple, list)) or not any(degrees_of(size) for size in given):
        return None

    def make(local: list[int]) -> Tensor:
        out: Tensor = func(input, local, *of_whole_map(others), **of_whole_map(rest))
        return out

    return made_for(execution, given, make)


@Execution.register(torch.broadcast_tensors)
def broadcast_tensors(execution: Execution, func: Any, *tensors: Any) -> list[Tensor]:
    """Repeat maps, values per image and constants to one shape."""
    listed = len(tensors) == 1 and isinstance(tensors[0], (tuple, list))
    given = list(with_values_per_image(execution, tuple(tensors[0] if listed else tensors)))
    layout, _ = broadcast_layout(execution, func, given)
    shape = torch.broadcast_shapes(*[tensor.shape for tensor in given])
    return [execution.mark(tensor.expand(shape), layout) for tensor in given]
