"""Where to compute, and whether its memory is enough."""

from __future__ import annotations

import os
import platform

import torch


def pick_device(name: str) -> torch.device:
    """The device of this process.

    Raises:
        ValueError: if there is none of that kind, or not one for each of this machine's processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available to torch; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is available to torch; use --device cpu")
    if name != "cuda":
        return torch.device(name)
    number = int(os.environ.get("LOCAL_RANK", 0))
    processes = max(number + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # so that all of them raise alike
    if processes > torch.cuda.device_count():
        raise ValueError(
            f"{processes} processes need as many CUDA devices, and torch sees {torch.cuda.device_count()}; use "
            f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu"
        )
    return torch.device(name, number)


def device_name(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({platform.machine()}, {threads} thread{'s' * (threads != 1)})"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there; torch says so of a CPU's by a RuntimeError."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and ("out of memory" in text or "allocate memory" in text)
    )
