"""Randomness. Stochastic depth and channel dropout are drawn once an image, as in the dense network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import Execution, unsupported
from ..layout import Layout
from .functions import functions_named
from .pointwise import own_layout


@Execution.register(*functions_named("new_empty new_zeros new_ones new_full"))
def new_tensor(execution: Execution, func: Any, x: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """A new tensor shaped after one of the input; per image if samples are in their place and space has no extent."""
    layout = execution.layout(x)
    out: Tensor = func(x, *shape, **kwargs)
    if layout is None:
        raise unsupported(func, "its shape descends from the input in an unknown way")
    return _new_like(execution, func, out, x, layout)


def _new_like(execution: Execution, func: Any, out: Tensor, x: Tensor, layout: Layout) -> Tensor:
    if out.ndim < x.ndim or out.shape[layout.batch] != x.shape[layout.batch]:
        return out  # a constant: should it vary over samples or positions after all, combining it with a map raises
    same_size = layout.is_map and all(out.shape[axis] == x.shape[axis] for axis in layout.space)
    if same_size and (any(out.shape[axis] != 1 for axis in layout.space) or out.shape == x.shape):
        return execution.mark(out, layout)
    if out.ndim == x.ndim and all(out.shape[axis] == 1 for axis in layout.space):
        return execution.mark(out, layout.per_image(layout.batch))
    raise unsupported(func, f"what the axes of a new tensor of shape {tuple(out.shape)} mean is not known")


@Execution.register(*functions_named("empty_like zeros_like ones_like full_like"))
def like(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    return execution.mark(func(x, *args, **kwargs), layout)


@Execution.register(*functions_named("rand_like randn_like"), torch.bernoulli)
def random_like(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    if layout.is_map:
        return execution.mark(func(x, *args, **kwargs), layout)
    return execution.on_one_row_per_image(lambda rows: func(rows, *args, **kwargs), x, layout)


@Execution.register(torch.Tensor.bernoulli_, torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.exponential_)
def random_in_place(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, x)
    if layout.is_map:
        return execution.mark(func(x, *args, **kwargs), layout)
    drawn = func(execution.one_row_per_image(x, layout.batch).clone(), *args, **kwargs)
    return execution.mark(x.copy_(execution.all_rows(drawn, layout.batch)), layout)


@Execution.register(F.dropout, torch.dropout, torch.dropout_)
def dropout(
    execution: Execution, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    layout = own_layout(execution, func, input)
    if layout.is_map or not training:
        return execution.mark(F.dropout(input, p, training, inplace), layout)
    out = execution.on_one_row_per_image(lambda rows: F.dropout(rows, p, training), input, layout)
    return execution.mark(input.copy_(out), layout) if inplace else out


@Execution.register(F.dropout1d, F.dropout2d, F.dropout3d)
def channel_dropout(
    execution: Execution, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Whole channels of an image are dropped."""
    layout = own_layout(execution, func, input)
    if not training or p == 0.0:
        return execution.mark(input.clone(), layout)
    if layout.is_map and (layout.batch != 0 or layout.space != tuple(range(2, input.ndim))):
        raise unsupported(func, f"it needs a map laid out as (batch, channel, *space), its argument is {layout}")
    noise = execution.mark(input.new_ones(*input.shape[:2], *[1] * (input.ndim - 2)), layout.per_image(0))
    noise = execution.on_one_row_per_image(lambda rows: F.dropout(rows, p), noise, layout.per_image(0))
    return execution.mark(input.mul_(noise) if inplace else input * noise, layout)
