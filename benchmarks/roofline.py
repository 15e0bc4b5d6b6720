"""Predict the time of an operation on a GPU from its bytes, its operations and its kernels.

The greatest of three times: bytes at a share of the bandwidth, operations at a share of the peak of tensor cores
(tiles, waves over the multiprocessors, split-K if there are few tiles), and 2.2 microseconds a kernel. Shares are of
published numbers: the model gives 261, 320, 799, 140 ms for four steps that were measured on an RTX 3090 at 210, 313,
755, 146 (timm's `benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv`): read it as plus or minus a quarter, depthwise
convolutions by cuDNN to a factor of two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

LAUNCH = 2.2e-6
"""Seconds of a kernel, at least."""


class GPU(NamedTuple):
    """A GPU: bytes a second, bf16 and TF32 operations a second, multiprocessors, clock."""

    bandwidth: float
    half: float
    single: float
    processors: int
    clock: float


GPUS = {
    "H100": GPU(3.0e12, 790e12, 395e12, 132, 1.75e9),
    "H200": GPU(4.3e12, 790e12, 395e12, 132, 1.75e9),
}

SHARE_OF_BANDWIDTH = {
    "elementwise": 0.92, "batchnorm": 0.85, "batchnorm_bwd": 0.85, "layernorm": 0.85, "layernorm_bwd": 0.80,
    "cast": 0.92, "copy": 0.65, "cat": 0.9, "reduce": 0.7, "pool": 0.6, "pool_bwd": 0.4, "gather_sum": 0.4,
    "fill": 0.85, "tables": 0.6, "sort": 0.3, "foreach": 0.85,
}  # fmt: skip

TILES = {(64, 64): 0.55, (128, 64): 0.75, (64, 128): 0.75, (256, 64): 0.85, (128, 128): 0.92, (128, 256): 1.0}
"""Tiles of a product of matrices, and the share of the peak that each can reach."""


def product(gpu: GPU, rows: int, columns: int, depth: int, dtype: torch.dtype, share: float) -> float:
    """Return the seconds of a product of matrices on tensor cores, by its best tile."""
    peak = gpu.half if dtype in (torch.bfloat16, torch.float16) else gpu.single
    depth = -(-depth // 64) * 64
    times = []
    for (high, wide), reached in TILES.items():
        tiles = -(-rows // high) * -(-columns // wide)
        one = 2 * high * wide * depth / (peak / gpu.processors * share * reached)
        times.append(-(-tiles // gpu.processors) * one)
        if tiles < gpu.processors:  # split along the depth
            times.append(1.15 * tiles * one / gpu.processors)
    return min(times)


def seconds(row: Any, gpu: GPU) -> float:
    """Return the predicted seconds of a row of `count_kernels.py`."""
    moved, floor, kind, info = row.read + row.written, LAUNCH * row.kernels, row.kind, row.info
    multiply_adds = gpu.processors * gpu.clock * 128  # a second, outside tensor cores
    if kind.startswith("conv_"):
        return max(_convolution(info, gpu), moved / (gpu.bandwidth * 0.88), floor)
    if kind.startswith("depthwise"):
        return max(_depthwise(row, gpu, multiply_adds), floor)
    if kind.startswith("triton"):
        share = 0.15 if kind == "triton" else 0.10
        return max(moved / (gpu.bandwidth * 0.8), row.flops / 2 / (multiply_adds * share), floor)
    if kind == "gemm":
        memory = moved / (gpu.bandwidth * 0.85)
        (rows, depth), columns = info["a"][-2:], info["b"][-1]
        many = math.prod(info["a"][:-2])
        return max(many * product(gpu, rows, columns, depth, info["dtype"], 0.82) if many == 1 else 0, memory, floor)
    if kind == "gather":
        width = info["source"][-1] * info["itemsize"]
        if len(info["source"]) == 2 and width % 16 == 0:  # a block a row, 32 blocks at a time on each multiprocessor
            blocks = info["out"][0] * max(1, math.ceil(width / 4096)) / (gpu.processors * 32 / 1.6e-6)
            return max(blocks, moved / (gpu.bandwidth * 0.88), floor)
        return max(moved / (gpu.bandwidth * 0.35), floor)
    return max(moved / (gpu.bandwidth * SHARE_OF_BANDWIDTH.get(kind, 0.7)), floor)


def _convolution(info: dict[str, Any], gpu: GPU) -> float:
    """Return the seconds of the arithmetic of a convolution, or of its gradients."""
    weight, taps = info["w"], math.prod(info["w"][2:])
    channels, width = (weight[0], weight[1]) if info["transposed"] else (weight[1], weight[0])
    channels = -(-channels // 8) * 8
    stride, dtype, wanted = math.prod(info["stride"]), info["dtype"], info["gradients"]
    inputs, outputs = (shape[0] * math.prod(shape[2:]) for shape in (info["x"], info["out"]))
    if wanted is None:
        if info["transposed"]:
            return product(gpu, inputs, width * stride, channels * taps // stride, dtype, 0.6)
        return product(gpu, outputs, width, channels * taps, dtype, 0.72)
    time = 0.0
    if wanted[0]:
        depth = width * taps if info["transposed"] else width * taps // stride
        time += product(gpu, inputs, channels, depth, dtype, 0.68)
    if wanted[1]:
        time += product(gpu, channels * taps, width, inputs if info["transposed"] else outputs, dtype, 0.58)
    return time


def _depthwise(row: Any, gpu: GPU, multiply_adds: float) -> float:
    """Return the seconds of a depthwise convolution by cuDNN: a tenth of the peak forward, a twentieth backward."""
    moved, wanted = row.read + row.written, row.info["gradients"]
    work = math.prod(row.info["out"]) * math.prod(row.info["w"][2:])
    memory = moved / (gpu.bandwidth * 0.7)
    if wanted is None:
        return max(memory, work / (multiply_adds * 0.10))
    return sum(max(memory / 2, work / (multiply_adds * 0.05)) for gradient in wanted[:2] if gradient)
