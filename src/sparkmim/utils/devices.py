"""Choose and name devices, and recognize errors of memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from .text import counted

DEVICES = ("auto", "cpu", "cuda", "mps")
"""Names of devices."""


def pick_device(name: str) -> torch.device:
    """Return the device of this process.

    Args:
        name: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda" or "mps"; "cuda" becomes the device of the local rank.

    Raises:
        ValueError: for another name, if the machine has no such device, or fewer CUDA devices than processes.
    """
    if name not in DEVICES:
        raise ValueError(f"--device takes {' or '.join(DEVICES)}, not {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available to torch; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is available to torch; use --device cpu")
    if name != "cuda":
        return torch.device(name)
    number = int(os.environ.get("LOCAL_RANK", 0))
    processes = max(number + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # so that every process raises
    if processes > torch.cuda.device_count():
        raise ValueError(
            f"{processes} processes need as many CUDA devices, but torch sees {torch.cuda.device_count()}; use "
            f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu"
        )
    return torch.device(name, number)


def choose_algorithms(device: torch.device, *, measure: bool) -> None:
    """Let cuDNN measure its algorithms for convolutions of each new shape, or choose by heuristics, in this process.

    Measuring pays where few shapes are computed often. Without effect on other devices.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = measure


class CopyStream:
    """Copy pinned tensors to a GPU on a stream of their own, while the one before is computed with.

    The host runs ahead of the device, so the copy of a batch overlaps with the step before. On other devices, and for
    tensors that are not pinned, this is a plain copy.

    Args:
        device: to copy to.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.stream: Any = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device; what is computed with it waits for the copy."""
        if self.device.type != "cuda" or tensor.device.type != "cpu" or not tensor.is_pinned():
            return tensor.to(self.device, non_blocking=self.device.type != "cpu")
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = tensor.to(self.device, non_blocking=True)
        computing.wait_stream(self.stream)
        moved.record_stream(computing)  # its memory is not given to the next copy before it was used
        return moved


@contextmanager
def measured_algorithms(measure: bool) -> Iterator[None]:
    """Let cuDNN measure its algorithms within, or choose by heuristics; as it was afterwards."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = measure
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def shapes_that_vary() -> AbstractContextManager[None]:
    """Do not measure algorithms within: each new shape would take the time of many steps."""
    return measured_algorithms(False)


def device_name(device: torch.device) -> str:
    """Return a device's name for people: the GPU's, or the CPU's architecture and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({platform.machine()}, {counted(threads, 'thread')})"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory. For CPU memory torch raises a plain RuntimeError."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and ("out of memory" in text or "allocate memory" in text)
    )
