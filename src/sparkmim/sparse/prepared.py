"""Prepare a network for a check: convert it, and randomize what is constant in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.devices import out_of_memory
from .overrides import draws_positions

Features = Callable[[Tensor], Any]

_OF_DTYPES = re.compile("scalar type|dtype|should be the same|Double", re.IGNORECASE)


def prepare(
    network: nn.Module, features: Features, images: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> tuple[torch.dtype, torch.dtype]:
    """Convert a network and randomize it; return the dtype of its images, and the lowest in which it computes.

    One that does not run in float64, as it converts its input or makes tensors of another dtype, is left in float32.

    Args:
        network: the module.
        features: calls it.
        images: to run it on.
        dtype: wanted.
        generator: of what is drawn.

    Raises:
        ValueError: if the network does not run on the images.
    """
    convert(network, dtype)
    try:
        with _LowestPrecision(dtype) as computed:
            randomize(network, features, images, generator)
        return dtype, computed.dtype
    except Exception as error:
        if dtype == torch.float64 and _OF_DTYPES.search(str(error)) is not None:
            return prepare(network, features, images.float(), torch.float32, generator)
        if out_of_memory(error):
            raise
        raise _not_run(network, images.shape[2:], error) from error


def _not_run(network: nn.Module, size: Sequence[int], error: Exception) -> ValueError:
    """Return what to raise for a network that does not run on the images of a check."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(
        f"{type(network).__name__} does not run on the images of the check, {' x '.join(map(str, size))} pixels "
        f"({reason}); if it takes only multiples of a number, use a patch size of that many pixels"
    )


def convert(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters and buffers of a network, complex ones to complex numbers of that precision."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(complex_dtype)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    network._apply(converted)


def randomize(network: nn.Module, features: Features, images: Tensor, generator: torch.Generator) -> None:
    """Randomize constant parameters and running statistics, so that every branch of a network counts.

    Running statistics are near those of the images: with any others activations grow from layer to layer, and gates
    (sigmoids of huge numbers) make large differences of rounding.
    """
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.is_floating_point() and p.numel() and p.min() == p.max():
                low, high = (-0.2, 0.2) if name.endswith("bias") else (0.5, 1.0)
                p.copy_(torch.empty(p.shape, dtype=p.dtype).uniform_(low, high, generator=generator))
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if draws_positions(module):  # what DropBlock drops of a cropped image is no crop of what it drops of the whole
            module.register_forward_pre_hook(_in_evaluation)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    kept = {name: b.clone() for name, b in network.named_buffers() if "running" not in name}
    try:
        with torch.no_grad():
            network.train()
            features(images.clone())  # which a network may write into
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    with torch.no_grad():
        for name, b in network.named_buffers():  # flags and counts: the first pass of training is to be checked
            if name in kept and kept[name].shape == b.shape:
                b.copy_(kept[name])
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            shift, scale = torch.randn(2, *norm.running_mean.shape, generator=generator).to(norm.running_mean)
            norm.running_var.add_(norm.running_var.mean())
            norm.running_mean.add_(0.2 * shift * norm.running_var.sqrt())
            norm.running_var.mul_(1 + 0.5 * scale.tanh())


def _in_evaluation(module: nn.Module, args: Any) -> None:
    module.eval()


class _LowestPrecision(TorchFunctionMode):
    """Notes whether a network converts what has the precision `dtype` to float32, as some norms always do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if isinstance(first, Tensor) and isinstance(out, Tensor) and first.dtype == torch.float64:
            self.dtype = torch.float32 if out.dtype == torch.float32 else self.dtype
        return out
