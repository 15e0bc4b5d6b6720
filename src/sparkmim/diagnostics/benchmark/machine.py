"""Description and peak performance of this machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from ...utils.text import counted
from .measure import seconds

PACKAGES = ("sparkmim", "torch", "torchvision", "timm", "pillow")


def describe(device: torch.device) -> str:
    """Return CPU model and cores, the GPU if it is used, and versions."""
    parts = [f"{cpu_name()}, {counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    parts.append(f"Python {platform.python_version()}")
    return "; ".join([*parts, ", ".join(f"{name} {version(name)}" for name in PACKAGES)])


def cpu_name() -> str:
    """Return the processor's model."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def peak_flops(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Measure operations per second of a product of two large square matrices, the best of several rounds.

    In float32, a GPU computes it in TensorFloat-32, as it does convolutions.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        torch.mm(a, b)
        return float(2 * side**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(rounds)))
    finally:
        torch.set_float32_matmul_precision(before)
