"""Copy networks that hold tensors which `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_OF_TORCH = frozenset(nn.Module().__dict__)


def copied(value: T) -> T:
    """Return a deep copy of a network, or of what holds one; it is not changed.

    `copy.deepcopy` refuses tensors that are results of a computation with gradients. A network has some as attributes
    after a forward pass if it keeps a feature (`self.features = x`), or has its weights from the older `weight_norm`,
    `spectral_norm` or `prune`. The copy holds their values, cut off from that computation. Attributes that cannot be
    copied at all (a lock, an open file) are shared with it.
    """
    with torch.no_grad(), _DetachedCopies():  # scripted modules copy their parameters by operations
        try:
            return copy.deepcopy(value)
        except TypeError:
            shared = _uncopyable(value)
            if not shared:
                raise
            return copy.deepcopy(value, {id(one): one for one in shared})


def _uncopyable(value: Any) -> list[Any]:
    """Return what modules hold as attributes and cannot be copied: locks, files, sockets, generators."""
    network = value if isinstance(value, nn.Module) else getattr(value, "module", None)
    parts = network.modules() if isinstance(network, nn.Module) else ()
    held = [one for part in parts for name, one in vars(part).items() if name not in _OF_TORCH]
    return [one for one in held if not _is_copyable(one)]


def _is_copyable(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except TypeError:
        return False
    return True


class _DetachedCopies(TorchFunctionMode):
    """Copies results of a computation as their values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            original, memo = args
            return memo.setdefault(id(original), original.detach().clone())
        return func(*args, **(kwargs or {}))
