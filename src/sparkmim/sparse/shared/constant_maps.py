"""Values per image as maps: resampled to the size of a map, one value is that value everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..layout import Layout
from .calls import call


def constant_map(execution: Execution, func: Any, input: Tensor, layout: Layout, size: Any) -> Tensor:
    """Return a value per image `(B, C, 1, ...)` as a map of `size`, read off a map, as ASPP does with its pooling."""
    dims = input.ndim - 2
    sizes = [size] * dims if not isinstance(size, (tuple, list)) else list(size)
    if layout.batch != 0 or dims < 1 or any(extent != 1 for extent in input.shape[2:]):
        raise unsupported(func, f"it resamples axes that are not of space ({layout})")
    if size is None:
        raise unsupported(
            func, "it resamples a value per image by a factor; give the size of the map, as in size=x.shape[2:]"
        )
    out: Tensor = call(execution, torch.Tensor.expand, input, -1, -1, *sizes)
    return out
