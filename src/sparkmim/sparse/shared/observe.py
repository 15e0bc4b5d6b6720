"""Calls that observe a tensor or its gradient: what they are given is what the execution computes with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..execution import Execution
from ..functions import attributes_named, functions_named


@Execution.register(
    *functions_named("register_hook retain_grad"),
    *attributes_named("grad is_leaf _version output_nr retains_grad"),
)
def observe(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call it as it is. A hook is given the gradient of packed patches, or of a whole map, as the tensor is one."""
    return func(x, *args, **kwargs)
