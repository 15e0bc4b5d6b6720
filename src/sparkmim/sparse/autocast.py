"""What autocast would do, done by hand where functions are called within other ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_arguments(*tensors: Tensor | None) -> list[Any]:
    """Convert the arguments of a convolution as autocast would."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors]


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context in which autocast converts nothing: none where it is off, as entering it takes long."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def layer_norm_in_own_precision(
    function: Callable[..., Tensor],
    x: Tensor,
    shape: Sequence[int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Normalize a map in its own precision, weights rounded to it, where autocast would copy it to float32.

    On CUDA autocast hands on float32 too, which the next layer copies back: five times the bytes. The norm itself adds
    up in float32 either way.

    Args:
        function: a layer norm.
        x: the map.
        shape: axes that are normalized.
        args, kwargs: its other arguments.
    """

    def rounded(value: Any) -> Any:
        return value.to(x.dtype) if isinstance(value, Tensor) else value

    with torch.autocast(x.device.type, enabled=False):
        named = {name: rounded(value) for name, value in (kwargs or {}).items()}
        return function(x, shape, *map(rounded, args), **named)
