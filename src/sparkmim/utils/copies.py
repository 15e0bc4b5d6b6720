"""Copy networks that hold tensors which `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def copied(value: T) -> T:
    """Return a deep copy of a network, or of what holds one; it is not changed.

    `copy.deepcopy` refuses tensors that are results of a computation with gradients. A network has some as attributes
    after a forward pass if it keeps a feature (`self.features = x`), or has its weights from the older `weight_norm`,
    `spectral_norm` or `prune`. The copy holds their values, cut off from that computation.
    """
    with torch.no_grad(), _DetachedCopies():  # scripted modules copy their parameters by operations
        return copy.deepcopy(value)


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
