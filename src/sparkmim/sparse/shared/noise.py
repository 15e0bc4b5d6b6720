"""Randomness. Stochastic depth and channel dropout are drawn once an image, as in the dense network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..functions import functions_named
from ..layout import Layout
from .pointwise import own_layout


@Execution.register(*functions_named("new_empty new_zeros new_ones new_full"))
def new_tensor(execution: Execution, func: Any, input: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """Make a tensor shaped after one of the input; per image if samples are in their place and space has no extent."""
    layout = own_layout(execution, func, input)
    out: Tensor = func(input, *shape, **kwargs)
    if out.ndim < input.ndim or out.shape[layout.batch] != input.shape[layout.batch]:
        return out  # a constant: should it vary over samples or positions after all, combining it with a map raises
    # Where patches have no extent, a map and a value per image look alike. For a constant that does not matter.
    flat = all(input.shape[axis] == 1 for axis in layout.space)
    constant = func is not torch.Tensor.new_empty
    if layout.is_map and all(out.shape[axis] == input.shape[axis] for axis in layout.space) and (constant or not flat):
        return execution.mark(out, layout)
    only_samples = all(extent == 1 for axis, extent in enumerate(out.shape) if axis != layout.batch)
    without_space = out.ndim == input.ndim and all(out.shape[axis] == 1 for axis in layout.space)
    if without_space and (only_samples or not flat):
        return execution.mark(out, layout.per_image(layout.batch))
    raise unsupported(func, f"what the axes of a new tensor of shape {tuple(out.shape)} mean is not known")


@Execution.register(*functions_named("empty_like zeros_like ones_like full_like"))
def like(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    return execution.mark(func(input, *args, **kwargs), layout)


@Execution.register(*functions_named("rand_like randn_like"), torch.bernoulli)
def random_like(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if layout.is_map:
        _require_extent(func, input, layout)
        return execution.mark(func(input, *args, **kwargs), layout)
    return execution.on_one_row_per_image(lambda rows: func(rows, *args, **kwargs), input, layout)


@Execution.register(torch.Tensor.bernoulli_, torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.exponential_)
def random_in_place(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if layout.is_map:
        _require_extent(func, input, layout)
        return execution.mark(func(input, *args, **kwargs), layout)
    drawn = func(execution.one_row_per_image(input, layout.batch).clone(), *args, **kwargs)
    return execution.mark(input.copy_(execution.all_rows(drawn, layout.batch)), layout)


def _require_extent(func: Any, x: Tensor, layout: Layout) -> None:
    """Raise for patches of one pixel, where noise shaped like a map may be meant for positions or for images."""
    if all(x.shape[axis] == 1 for axis in layout.space):
        raise unsupported(func, "patches have one pixel here, so noise per position looks like noise per image")


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
    noise = execution.on_one_row_per_image(lambda rows: F.dropout(rows, p), noise, layout.per_image(0))
    return execution.mark(input.mul_(noise) if inplace else input * noise, layout)
