"""Indices into the positions of a map, which have no meaning on patches: tensors that raise when they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..execution import Execution
from ..layout import Layout, Unfinished

LARGEST = {"max": torch.amax, "min": torch.amin}
"""Functions that return values and indices, and what returns their values."""

_WHY = (
    "the index it returns is a place among the positions of the whole map, which visible patches do not have; only its "
    "values can be used, as in x.flatten(2).max(-1)[0]"
)


def without_meaning(execution: Execution, func: Any, values: Tensor) -> Tensor:
    """Return what stands for the indices of values that a function has found in a map."""
    layout = execution.marked(values)
    assert layout is not None
    own = Layout(layout.origin, layout.batch, layout.space, unfinished=Unfinished(func, _WHY))
    return execution.mark(torch.zeros_like(values, dtype=torch.int64), own)


def returned(name: str, *parts: Tensor) -> Any:
    """Return several results in torch's own type, so that `.values` works (Dynamo knows it by position alone)."""
    return parts if torch.compiler.is_compiling() else getattr(torch.return_types, name)(parts)
