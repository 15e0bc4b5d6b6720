"""Time, memory and arithmetic of a function."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Where Linux forgets the most memory that this process had, on writing 5."""


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long it takes, the device's work included."""
    _wait_for(device)
    start = time.perf_counter()
    function()
    _wait_for(device)
    return time.perf_counter() - start


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that it takes beyond what is in use before; None where that cannot be measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        idle = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - idle
    if device.type != "cpu" or not CLEAR_PEAK.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what has been freed, but not given back, would be taken again unseen
    CLEAR_PEAK.write_text("5")
    idle = _resident("VmRSS")
    function()
    return _resident("VmHWM") - idle


def forward_flops(function: Callable[[], object]) -> int:
    """Operations (a product and a sum are two) of convolutions and matrix products in a forward pass, run eagerly."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def _resident(which: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
