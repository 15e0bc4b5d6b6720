"""Randomness. Stochastic depth and channel dropout are drawn once an image, as in the dense network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import MADE_OUTSIDE, Execution
from ..expectation import noise_within_images
from ..extent import of_whole_map, value_of
from ..functions import functions_named
from ..layout import Layout
from ..registry import register_factory, understands_sizes
from .axes import space_of
from .pointwise import own_layout
from .scales import extents_here

_NEW = functions_named("new_empty new_zeros new_ones new_full")


@understands_sizes(*_NEW)
@Execution.register(*_NEW)
def new_tensor(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Any:
    """Make a tensor of a shape with the dtype and device of one of the input."""
    layout = own_layout(execution, func, input)
    name = "size" if "size" in kwargs else "fill_value" if func is torch.Tensor.new_full else ""
    sizes = kwargs.pop("size") if name == "size" else shape[0] if isinstance(shape[0], (tuple, list)) else shape
    others = shape[1:] if isinstance(shape[0], (tuple, list)) else ()
    meaning = _meaning(execution, sizes, channels=layout.batch == 0 and len(sizes) == input.ndim)
    if meaning is None:
        out: Tensor = func(input, of_whole_map(tuple(sizes)), *of_whole_map(others), **of_whole_map(kwargs))
        setattr(out, MADE_OUTSIDE, True)
        return out  # a constant: should it vary over samples or positions after all, combining it with a map raises
    return _made(execution, *meaning, lambda local: func(input, local, *of_whole_map(others), **of_whole_map(kwargs)))


def _meaning(execution: Execution, sizes: Sequence[Any], channels: bool) -> tuple[Layout, list[int]] | None:
    """Return the layout of a new tensor whose shape on the whole map is `sizes`, and its shape here.

    One that is led by the number of images and has ones elsewhere holds a value per image (its shape here is that of
    one row an image); with the extents of a map behind it, it is a map. None for any other.

    Args:
        execution: answers, or has as `coarser` what does.
        sizes: of the new tensor, as a network gives them.
        channels: whether values per image may have channels, `(B, C, 1, 1)`.
    """
    space = space_of(sizes)
    images = execution.grid_shape[0]
    lead = execution.count_rows() if execution.has_plain_sizes() else images
    if space is None or len(sizes) < 2 or sizes[0] != lead or 0 in space:
        return None
    if space:
        found = extents_here(execution, sizes, space)
        if found is None:
            return None
        owner, local = found
        if owner is not execution:
            execution.has_scales = True
        return Layout(owner, 0, space), [owner.count_rows(), *local[1:]]
    if images == 1 or any(size != 1 for size in sizes[1 + channels :]):
        return None
    return Layout(execution, 0, ()), [images, *[value_of(size) for size in sizes[1:]]]


def made_for(execution: Execution, sizes: Sequence[Any], make: Callable[[list[int]], Tensor]) -> Tensor | None:
    """Make a tensor whose shape on the whole map is `sizes`; None if that is not one of the input's."""
    meaning = _meaning(execution, sizes, channels=False)
    return None if meaning is None else _made(execution, *meaning, make)


def _made(execution: Execution, layout: Layout, local: list[int], make: Callable[[list[int]], Tensor]) -> Tensor:
    """Make a new tensor and mark it; values per image are made once an image."""
    with noise_within_images() if layout.is_map and not execution.compiling else nullcontext():
        out = make(local)
    return execution.mark(out if layout.is_map else execution.all_rows(out, layout.batch), layout)


_SHAPED = (torch.rand, torch.randn, torch.empty, torch.zeros, torch.ones)


@register_factory(*_SHAPED, torch.full, torch.normal, torch.randint)
def shaped(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Make a tensor whose shape is led by the number of images: drawn once an image, as in the ordinary network."""
    name, place = _SIZE_ARGUMENT.get(func, ("size", 0))
    if name in kwargs:
        sizes = kwargs[name]
    elif func in _SHAPED:
        sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    else:
        place = 1 if func is torch.randint and len(args) == 2 else place
        sizes = args[place] if len(args) > place else None
    if not isinstance(sizes, (tuple, list)) or not sizes:
        return None
    meaning = _meaning(execution, sizes, channels=False)
    if meaning is None:
        return None

    def make(local: list[int]) -> Tensor:
        named, given = dict(kwargs), args
        if name in kwargs:
            named[name] = local
        else:
            given = (local,) if func in _SHAPED else (*args[:place], local, *args[place + 1 :])
        out: Tensor = func(*of_whole_map(given), **of_whole_map(named))
        return out

    return _made(execution, *meaning, make)


_SIZE_ARGUMENT = {torch.full: ("size", 0), torch.normal: ("size", 2), torch.randint: ("size", 2)}
"""Name and place of the shape among the arguments. (Without its lower bound, that of randint is one place earlier.)"""


@Execution.register(*functions_named("empty_like zeros_like ones_like full_like"))
def like(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    return execution.mark(func(input, *args, **kwargs), layout)


@Execution.register(*functions_named("rand_like randn_like bernoulli"))
def random_like(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    return execution.on_one_row_per_image(lambda rows: func(rows, *args, **kwargs), input, layout)


@Execution.register(torch.Tensor.bernoulli_, torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.exponential_)
def random_in_place(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    drawn = func(execution.one_row_per_image(input, layout.batch).clone(), *args, **kwargs)
    return execution.mark(input.copy_(execution.all_rows(drawn, layout.batch)), layout)


@Execution.register(F.dropout, torch.dropout, torch.dropout_)
def dropout(
    execution: Execution, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    layout = own_layout(execution, func, input)
    inplace = inplace or func is torch.dropout_
    if layout.is_map or not training:
        return execution.mark(F.dropout(input, p, training, inplace), layout)
    out = execution.on_one_row_per_image(lambda rows: F.dropout(rows, p, training), input, layout)
    return execution.mark(input.copy_(out), layout) if inplace else out


@Execution.register(*functions_named("rrelu rrelu_"))
def rrelu(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Draw a slope for each negative value in training, once an image for values per image."""
    layout = own_layout(execution, func, input)
    if layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    rows = execution.one_row_per_image(input, layout.batch).clone()
    drawn = func(rows, *args, **kwargs)
    out = execution.all_rows(drawn, layout.batch)
    return execution.mark(input.copy_(out) if drawn is rows else out, layout)


@Execution.register(F.dropout1d, F.dropout2d, F.dropout3d)
def channel_dropout(
    execution: Execution, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Drop whole channels of an image."""
    layout = own_layout(execution, func, input)
    if not training:
        return execution.mark(func(input, p, training, inplace), layout)
    if layout.is_map:
        execution.require_map(func, input)
    noise = execution.mark(input.new_ones(*input.shape[:2], *[1] * (input.ndim - 2)), layout.per_image(0))
    with noise_within_images() if layout.is_map and not execution.compiling else nullcontext():
        noise = execution.on_one_row_per_image(lambda rows: F.dropout(rows, p), noise, layout.per_image(0))
    return execution.mark(input.mul_(noise) if inplace else input * noise, layout)
