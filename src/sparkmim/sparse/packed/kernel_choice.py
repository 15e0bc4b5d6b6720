"""When Triton kernels take the place of PyTorch's operations: on CUDA, once they have been found right there."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

AVAILABLE = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets its kernels, which then take tensors on a CPU."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What the kernels compute with."""

Check = Callable[[torch.device], str | None]
"""Compares kernels with the plain path on a device: what is wrong with them, None if nothing is."""

_VERDICTS: dict[tuple[str, str, int | None], bool] = {}
"""Whether the kernels of a name are right on a device, as far as that is known."""


def require_triton() -> None:
    """Raise ModuleNotFoundError, with the remedy, if Triton is not installed."""
    if not AVAILABLE:
        raise ModuleNotFoundError(
            "triton=True needs the package triton, which is not installed. It comes with torch for CUDA on Linux; "
            "else install it (pip install triton, on Windows triton-windows), or leave triton=False",
            name="triton",
        )


def takes_kernels(triton: bool | None, name: str, x: Tensor, check: Check) -> bool:
    """Return whether kernels compute a function of `x`.

    Args:
        triton: of the execution: whether they are to, None where they are found right.
        name: of the kernels, for what is remembered and warnings.
        x: what they would be given.
        check: compares them with the plain path.
    """
    if triton is False or x.dtype not in DTYPES or not (x.is_cuda or INTERPRETED):
        return False
    return True if triton else x.is_cuda and AVAILABLE and are_verified(name, x, check)


def are_verified(name: str, x: Tensor, check: Check) -> bool:
    """Return whether kernels are verified on the device of `x`: at first use they are compared with the plain path.

    While a compiler or a CUDA graph records, or where there are no values to compare, kernels that have not been
    compared before are taken for wrong. Wrong ones, and those that fail, are warned of once.
    """
    key = (name, x.device.type, x.device.index)
    if key in _VERDICTS:
        return _VERDICTS[key]
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
        _VERDICTS[key] = _verify(name, x.device, check)
    return _VERDICTS[key]


def _verify(name: str, device: torch.device, check: Check) -> bool:
    try:
        wrong = check(device)
    except Exception as error:  # of a compiler, a driver or a device that none of us has seen
        wrong = f"they fail ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if wrong is not None:
        warnings.warn(
            f"Triton's {name} kernels are not used on {device}: {wrong}. PyTorch's own operations take their place; "
            "triton=False says so without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
    return wrong is None
