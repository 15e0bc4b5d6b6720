"""Tensors in nested lists, tuples and dicts, as functions take and return them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def map_tensors(function: Any, values: Any) -> Any:
    """Apply `function` to every tensor in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: map_tensors(function, value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        parts = [map_tensors(function, value) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    return values
