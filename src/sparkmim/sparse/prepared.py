"""Prepare a network for a check: convert it, and randomize what is constant in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.devices import out_of_memory
from .checkpointing import recompute_under
from .functions import functions_named
from .overrides import draws_positions

Features = Callable[[Tensor], Any]

_OF_DTYPES = re.compile("scalar type|dtype|should be the same|Double", re.IGNORECASE)


class Prepared(NamedTuple):
    """How a network is checked.

    Attributes:
        dtype: of its parameters and images.
        computed: the lowest precision in which it computes, whose tolerance applies.
        is_one: whether its own conversions to other precisions are left out (:class:`OnePrecision`).
    """

    dtype: torch.dtype
    computed: torch.dtype
    is_one: bool

    def precision(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return the context in which it runs where its parameters have been converted to `dtype`."""
        return OnePrecision(dtype) if self.is_one else nullcontext()


def prepare(
    network: nn.Module, features: Features, images: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> Prepared:
    """Convert a network and randomize it.

    One that does not run in float64, as it converts its input or makes tensors of another dtype, is left in float32.
    One that computes in 16 bits, or does not run in float32 either, is checked in float64 with all its conversions left
    out: rounding to 16 bits would hide differences, and parts of several precisions would not fit together.

    Args:
        network: the module.
        features: calls it.
        images: to run it on.
        dtype: wanted.
        generator: of what is drawn.

    Raises:
        ValueError: if the network does not run on the images.
    """
    wanted = [(dtype, False), (torch.float32, False), (dtype, True)] if dtype == torch.float64 else [(dtype, False)]
    for attempt, (own, is_one) in enumerate(wanted):
        convert(network, own)
        try:
            with OnePrecision(own) if is_one else nullcontext(), _LowestPrecision(own) as computed:
                randomize(network, features, images.to(own), generator)
            if computed.dtype not in SIXTEEN_BITS or wanted[-1] == (own, is_one):
                return Prepared(own, computed.dtype, is_one)
        except Exception as error:
            if out_of_memory(error):
                raise
            if attempt + 1 == len(wanted) or _OF_DTYPES.search(str(error)) is None:
                raise _not_run(network, images.shape[2:], error) from error
    raise AssertionError("the last attempt returns or raises")


def _not_run(network: nn.Module, size: Sequence[int], error: Exception) -> ValueError:
    """Return what to raise for a network that does not run on the images of a check."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    remedy = "if it takes only multiples of a number, use a patch size of that many pixels"
    if _OF_DTYPES.search(reason) is not None:
        remedy = (
            "the check computes in one precision; have the network convert by Tensor.to(dtype) or .half(), or compute "
            "in 16 bits by torch.autocast"
        )
    return ValueError(
        f"{type(network).__name__} does not run on the images of the check, {' x '.join(map(str, size))} pixels "
        f"({reason}); {remedy}"
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


SIXTEEN_BITS = (torch.float16, torch.bfloat16)
_FLOATING = (*SIXTEEN_BITS, torch.float32, torch.float64)
_TYPES = tuple(f"torch.{name}Tensor" for name in ("Half", "BFloat16", "Float", "Double"))
_CONVERTING = functions_named("half bfloat16 float double")


class OnePrecision(TorchFunctionMode):
    """Has a network compute in one precision: what it converts to, or makes of, another one has this one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.compiler.is_compiling():
            recompute_under(self._again, func)
        named = {name: self._own(value) for name, value in (kwargs or {}).items()}
        if func in _CONVERTING:
            return torch.Tensor.to(args[0], self.dtype, **named)
        return func(*map(self._own, args), **named)

    def _again(self) -> OnePrecision:
        return self

    def _own(self, value: Any) -> Any:
        is_other = isinstance(value, torch.dtype) and value in _FLOATING
        return self.dtype if is_other or (isinstance(value, str) and value in _TYPES) else value


class _LowestPrecision(TorchFunctionMode):
    """Notes whether a network converts what has the precision `dtype` to a lower one, as some norms always do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if isinstance(first, Tensor) and isinstance(out, Tensor) and out.dtype != first.dtype:
            lower = first.dtype in (torch.float64, torch.float32) and out.dtype in (torch.float32, *SIXTEEN_BITS)
            if lower and _FLOATING.index(out.dtype) < _FLOATING.index(self.dtype):
                self.dtype = out.dtype
        return out
