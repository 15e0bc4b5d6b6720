"""Padding for networks without: maps that stay proportional to the image, so that patches can be followed through them.

A convolution or pooling of kernel extent e and stride s turns n positions into n / s only with about (e - 1) / 2 pixels
of padding on each side. Networks of the Inception kind pad less here and there, and their maps shrink by a few
positions. :class:`Alignment` gives those calls the padding they lack; no module and no parameter is touched. Where the
border of the image is not seen, the aligned maps are those of the ordinary network, with the same weights, on the image
moved by the padding that was added (37 pixels for Inception v3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

# Functions with the names of their arguments after the map, and their number of spatial dimensions.
_CALLS: dict[Any, tuple[tuple[str, ...], int]] = {
    getattr(namespace, f"{name}{dims}d"): (arguments, dims)
    for name, arguments in (("conv", _CONVOLUTION), ("max_pool", _MAX_POOL), ("avg_pool", _AVG_POOL))
    for dims in (1, 2, 3)
    for namespace in (torch, F)
    if hasattr(namespace, f"{name}{dims}d")
}


class Alignment(TorchFunctionMode):
    """While active, convolutions and poolings whose maps would not be 1 / stride of theirs get padding that makes them.

    What follows an `F.pad` is left alone, for it was padded already. An average pooling leaves the padding that it gets
    out of its count. Under an execution of :mod:`sparkmim.sparse` it is entered last, so that rules see padded calls.

    Attributes:
        padded: names of the modules that made the calls concerned, noted during :meth:`noting`.
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
        added = _missing_padding(named, dims)
        if added is None:
            return func(*args, **kwargs)
        if self._running and self._running[-1] not in self.padded:
            self.padded.append(self._running[-1])
        if "count_include_pad" in names and not any(_per_axis(named.get("padding", 0), dims)):
            named["count_include_pad"] = False
        return func(named.pop("input"), **{**named, "padding": added})

    @contextmanager
    def noting(self, network: nn.Module) -> Iterator[None]:
        """Note in `padded` which modules of `network` make the calls that get padding."""
        handles = []
        for name, module in network.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)),
                module.register_forward_hook(lambda *_: self._leave(), always_call=True),
            ]
        try:
            yield
        finally:
            self._running.clear()
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        if self._running:
            self._running.pop()


def _missing_padding(call: dict[str, Any], dims: int) -> tuple[int, ...] | None:
    """The padding by which a call's map becomes 1 / stride of its own; None if it does already, or none can be had."""
    kernel = call["weight"].shape[2:] if "weight" in call else _per_axis(call["kernel_size"], dims)
    stride = _per_axis(call.get("stride") or (1 if "weight" in call else kernel), dims)
    dilation = _per_axis(call.get("dilation", 1), dims)
    ceil_mode = bool(call.get("ceil_mode"))
    padding = call.get("padding", 0)
    if padding == "same":
        return None
    own = (0,) * dims if padding == "valid" else _per_axis(padding, dims)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    axes = list(zip(own, extents, stride, strict=True))
    if all(is_aligned(2 * p, e, s, ceil_mode) for p, e, s in axes):
        return None
    wanted = tuple(
        p if is_aligned(2 * p, e, s, ceil_mode) else max(0, e - s if ceil_mode else e - 1) // 2 for p, e, s in axes
    )
    reached = all(is_aligned(2 * p, e, s, ceil_mode) for p, e, s in zip(wanted, extents, stride, strict=True))
    return wanted if reached else None  # an even kernel of stride 1, say, would need more on one side


def is_aligned(padding: int, extent: int, stride: int, ceil_mode: bool = False) -> bool:
    """Whether a window turns n positions into n / stride, for every large n that the stride divides.

    Args:
        padding: of both sides together.
        extent: of the kernel, dilation included.
        stride: of the window.
        ceil_mode: whether a window that hangs over the end counts.
    """
    surplus = padding - extent
    return (-(-surplus // stride) if ceil_mode else surplus // stride) == -1


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    values: Sequence[int] = (value,) if isinstance(value, int) else tuple(value)
    return tuple(values) * dims if len(values) == 1 else tuple(values)
