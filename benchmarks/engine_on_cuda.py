"""Has the packed engine decide on fake tensors of the CPU as it decides on CUDA after the first step of training.

For counting (`count_kernels.py`): Triton kernels are taken to be right, and what the engine makes once for a process is
made outside the count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sparkmim.sparse import offsets
from sparkmim.sparse.packed import depthwise, gather
from sparkmim.sparse.shared import pointwise


@contextmanager
def engine_on_cuda() -> Iterator[None]:
    """Decide as on CUDA within."""
    kept: dict[tuple[object, ...], Any] = {}

    def once(key: tuple[object, ...], mask: Tensor, make: Callable[[torch.device], Any]) -> Any:
        if key not in kept:
            with _disable_current_modes():
                kept[key] = make(mask.device)
        return kept[key]

    with ExitStack() as stack:
        for module in (depthwise, gather):
            stack.enter_context(patch.object(module, "takes_kernels", lambda triton, *_: triton is not False))
        stack.enter_context(patch.object(pointwise, "_on_cuda", lambda x: True))
        stack.enter_context(patch.object(offsets, "_kept", once))
        yield
