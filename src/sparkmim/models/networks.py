"""What can be said of a network without running it."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn


def spatial_dims(module: nn.Module) -> int:
    """Return the number of spatial dimensions of a network: that of most of its convolutions.

    A network without convolution modules is judged by its largest parameter with the axes of a kernel.

    Raises:
        ValueError: if it has neither.
    """
    convolutions = [m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    if convolutions:
        return Counter(len(m.kernel_size) for m in convolutions).most_common(1)[0][0]
    kernels = [p for p in module.parameters() if 2 < p.ndim <= 5]
    if not kernels:
        raise ValueError(
            f"{type(module).__name__} has no convolution, so it offers no feature maps; expected a convnet"
        )
    return max(kernels, key=lambda p: p.numel()).ndim - 2


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's first parameter of floating-point numbers, in which it takes images."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())


def require_full_precision(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's parameters; raise for one of 16 bits, whose weights small steps do not change.

    Raises:
        ValueError: with what to do instead.
    """
    dtype = dtype_of(module)
    if dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the parameters of {type(module).__name__} are {dtype}; pretraining takes them in float32 "
            "(network.float()), and computes in 16 bits under torch.autocast (--precision on the command line)"
        )
    return dtype
