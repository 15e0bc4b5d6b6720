"""A network and its twin, which is the same function but has other numbers at hidden positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .checkpointing import recompute_under
from .functions import functions_named
from .layout import MARK

_ORDINARY = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS = {
    **dict.fromkeys(functions_named("conv1d conv2d conv3d"), _ORDINARY),
    **dict.fromkeys(functions_named("conv_transpose1d conv_transpose2d conv_transpose3d"), _TRANSPOSED),
}
"""Convolutions, and the names of their arguments in order."""

GARBAGE = 100.0
"""Size of what the twin leaves at hidden positions; those of an ordinary network are near 1."""


class GarbageAfterConvolutions(TorchFunctionMode):
    """Subtracts numbers inside each convolution, by its bias, and adds them to its result.

    To a network that is all. An execution that leaves zeros at hidden positions after a convolution has these numbers
    there then, so that whatever reads them becomes another function. Enter it last, within an execution.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        recompute_under(self._again, func)
        names = _CONVOLUTIONS.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | (kwargs or {})
        weight, bias = given["weight"], given.get("bias")
        if weight.dtype.itemsize < 4:  # which would round off what such garbage is added to
            return func(**given)
        channels = weight.shape[1] * given.get("groups", 1) if names is _TRANSPOSED else weight.shape[0]
        garbage = GARBAGE * torch.linspace(-1, 2, channels, dtype=weight.dtype, device=weight.device)
        out: Tensor = func(**given | {"bias": -garbage if bias is None else bias - garbage})
        layout = getattr(out, MARK, None)
        if layout is not None and layout.unfinished is not None:  # nothing but what it waits for may follow it
            return func(**given)
        return out + garbage.view(-1, *[1] * (weight.ndim - 2))

    def _again(self) -> GarbageAfterConvolutions:
        return self
