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
"""Writing 5 to this file resets the peak memory of this process on Linux."""


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time a function in seconds, including the device's work."""
    _wait_for(device)
    start = time.perf_counter()
    function()
    _wait_for(device)
    return time.perf_counter() - start


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Measure the peak memory of a function beyond what was in use before; None where that is not possible."""
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
        trim(0)  # memory freed but not returned to the system would be reused without being counted
    CLEAR_PEAK.write_text("5")
    idle = _resident("VmRSS")
    function()
    return _resident("VmHWM") - idle


def forward_flops(function: Callable[[], object]) -> int:
    """Count operations (a multiply-add is two) of convolutions and matrix products in an eager forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def _resident(which: str) -> int:
    """Return the memory of this process in bytes, current (VmRSS) or peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
