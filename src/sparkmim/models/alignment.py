"""Pad unpadded convolutions and poolings, so that feature maps are proportional to the image and align with patches.

A convolution or pooling of kernel extent e and stride s turns n positions into n / s only with about (e - 1) / 2 pixels
of padding on each side. Inception networks pad less in places, and their maps shrink by a few positions.
:class:`Alignment` pads those calls; modules and parameters stay unchanged. Away from the image's border, the aligned
maps equal those of the unpadded network, with the same weights, on the image shifted by the padding that was added (37
pixels for Inception v3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..utils.axes import per_axis
from ..utils.hooks import running_modules

_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

# For each function, the names of its arguments after the map, and its number of spatial dimensions.
_CALLS: dict[Any, tuple[tuple[str, ...], int]] = {
    getattr(namespace, f"{name}{dims}d"): (arguments, dims)
    for name, arguments in (("conv", _CONVOLUTION), ("max_pool", _MAX_POOL), ("avg_pool", _AVG_POOL))
    for dims in (1, 2, 3)
    for namespace in (torch, F)
    if hasattr(namespace, f"{name}{dims}d")
}


class Alignment(TorchFunctionMode):
    """Pad convolutions and poolings, while active, whose output size would not be the input's divided by the stride.

    Calls on the result of `F.pad` stay as they are: they are padded already. Average poolings do not count the padding
    that is added. Under an execution of :mod:`sparkmim.sparse` this mode is entered last, so that rules see padded
    calls.

    Attributes:
        padded: names of the modules whose calls were padded, recorded within :meth:`record_padded`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.padded: list[str] = []
        self._running: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.pad, torch._C._nn.pad):
            out = func(*args, **kwargs)
            out._sparkmim_padded = True
            return out
        if func not in _CALLS or hasattr(args[0] if args else kwargs["input"], "_sparkmim_padded"):
            return func(*args, **kwargs)
        names, dims = _CALLS[func]
        named = dict(zip(("input", *names), args, strict=False)) | kwargs
        added = _aligned_padding(named, dims)
        if added is None:
            return func(*args, **kwargs)
        if self._running and self._running[-1] not in self.padded:
            self.padded.append(self._running[-1])
        if "count_include_pad" in names and not any(per_axis(named.get("padding", 0), dims)):
            named["count_include_pad"] = False
        return func(named.pop("input"), **{**named, "padding": added})

    @contextmanager
    def record_padded(self, network: nn.Module) -> Iterator[None]:
        """Record in `padded` which modules of `network` make the calls that are padded."""
        with running_modules(network) as self._running:
            yield


def _aligned_padding(call: dict[str, Any], dims: int) -> tuple[int, ...] | None:
    """Return the padding with which a call divides the size of a map by its stride.

    None if it does so already, or if no symmetric padding achieves it.
    """
    kernel = call["weight"].shape[2:] if "weight" in call else per_axis(call["kernel_size"], dims)
    stride = per_axis(call.get("stride") or (1 if "weight" in call else kernel), dims)
    dilation = per_axis(call.get("dilation", 1), dims)
    ceil_mode = bool(call.get("ceil_mode"))
    padding = call.get("padding", 0)
    if padding == "same":
        return None
    own = (0,) * dims if padding == "valid" else per_axis(padding, dims)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    axes = list(zip(own, extents, stride, strict=True))
    if all(is_aligned(2 * p, e, s, ceil_mode) for p, e, s in axes):
        return None
    wanted = tuple(
        p if is_aligned(2 * p, e, s, ceil_mode) else max(0, e - s if ceil_mode else e - 1) // 2 for p, e, s in axes
    )
    reached = all(is_aligned(2 * p, e, s, ceil_mode) for p, e, s in zip(wanted, extents, stride, strict=True))
    return wanted if reached else None  # an even kernel of stride 1 would need one side padded more


def is_aligned(padding: int, extent: int, stride: int, ceil_mode: bool = False) -> bool:
    """Return whether a window turns n positions into n / stride, for every large n that the stride divides.

    Args:
        padding: of both sides together.
        extent: of the kernel, dilation included.
        stride: of the window.
        ceil_mode: count a window that extends past the end.
    """
    surplus = padding - extent
    return (-(-surplus // stride) if ceil_mode else surplus // stride) == -1
