"""Find attention and recurrence in a network by running it without data, on torch's meta device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "tensordot"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


class _Watch(TorchFunctionMode):
    """Record calls of a forward pass that may mix arbitrary positions: (function, elements of the result)."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = self._mark(images)
        self.attention: str | None = None
        self.recurrence: str | None = None
        self.products: list[tuple[str, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        activations = sum(hasattr(t, "_sparkmim_activation") for t in _tensors([*args, *kwargs.values()]))
        if not activations:
            return out
        name = getattr(func, "__name__", "")
        full = resolve_name(func) or name
        if "attention" in name:
            self.attention = full
        elif name in RECURRENT:
            self.recurrence = full
        elif name in PRODUCTS and activations > 1:
            self.products.append((full, sum(t.numel() for t in _tensors([out]))))
        for tensor in _tensors([out]):
            self._mark(tensor)
        return out

    @staticmethod
    def _mark(tensor: Tensor) -> Tensor:
        tensor._sparkmim_activation = True  # type: ignore[attr-defined]
        return tensor

    @classmethod
    def forward(cls, network: Any, size: tuple[int, int]) -> tuple[_Watch, str | None]:
        """Run a network; return what was recorded, and the error that ended the run, if any."""
        watch = cls(torch.empty(2, 3, *size, device="meta"))
        try:
            with torch.no_grad(), watch:
                network.forward_intermediates(watch.images, intermediates_only=True)
        except Exception as error:  # a network's code may raise anything
            return watch, one_line(error)
        return watch, None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def inspect_operations(network: nn.Module, size: int) -> str | None:
    """Return why a network on the meta device is not convolutional, or None if it is.

    The network is run at two sizes. Attention is torch's own, or a product of two activations whose result grows with
    the image; a product that does not grow (global context) has values for the whole image, as squeeze-excite has.

    Args:
        network: a network with timm's `forward_intermediates`.
        size: side of the images that it is made for.
    """
    if not hasattr(network, "forward_intermediates"):
        return "it offers no feature maps (forward_intermediates)"
    small, error = _Watch.forward(network, (size, size))
    if small.attention:
        return f"attention: {small.attention}"
    if small.recurrence:
        return f"recurrence over positions: {small.recurrence}"
    if error:
        return f"it cannot be run without data: {error}"
    large, error = _Watch.forward(network, (size, 2 * size))
    if error and not small.products:
        return f"it works at one image size only: {error}"
    for i, (name, few) in enumerate(small.products):
        if error or few != large.products[i][1]:
            return f"attention: {name} of two activations"
    return None


def architecture_of(network: nn.Module) -> str:
    """Return a digest of a network's modules, their settings and the shapes of their parameters, without weights.

    Settings are attributes of a module that are numbers, texts, functions or sequences of those. Mappings are ignored,
    since timm stores the origin of weights and their image size in one.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        settings = {key: _setting(value) for key, value in sorted(vars(module).items()) if key != "training"}
        digest.update(repr((name, f"{type(module).__module__}.{type(module).__qualname__}", settings)).encode())
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        digest.update(repr([(key, tuple(tensor.shape)) for key, tensor in tensors]).encode())
    return digest.hexdigest()[:16]


def _setting(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_setting(part) for part in value]
    return getattr(value, "__qualname__", type(value).__qualname__)


def one_line(error: BaseException | str) -> str:
    """Return an error's message on one line, shortened to 200 characters."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 200 else text[:197] + "..."
