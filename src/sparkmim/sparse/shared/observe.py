"""Attributes that only observe a tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..execution import Execution
from ..functions import attributes_named


@Execution.register(
    *attributes_named("grad is_leaf _version output_nr retains_grad"),
)
def observe(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(x, *args, **kwargs)
