"""Choose and name devices, and recognize errors of memory."""

from __future__ import annotations

import os
import platform

import torch

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
