"""Conversions of dtype, and constants that only borrow dtype and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..execution import Execution
from ..functions import functions_named
from .pointwise import own_layout, require_no_input


@Execution.register(*functions_named("long int short char byte bool cfloat"))
def converted(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    return execution.mark(func(input, *args, **kwargs), layout)


@Execution.register(torch.Tensor.type)
def type_of(execution: Execution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return the name of a tensor's type, or the tensor converted to another."""
    layout = own_layout(execution, func, input)
    out = func(input, *args, **kwargs)
    return execution.mark(out, layout) if isinstance(out, Tensor) else out


@Execution.register(torch.Tensor.new_tensor)
def new_tensor(execution: Execution, func: Any, input: Tensor, data: Any, **kwargs: Any) -> Tensor:
    """Make a constant with the dtype and device of a tensor of the input."""
    require_no_input(execution, func, data)
    out: Tensor = func(input, data, **kwargs)
    return out
