"""Times the ways in which a densified map can be projected, level by level, in turn; prints a Markdown table.

    python benchmarks/projection.py [--batch 8] [--model resnet50]

The levels are those of ResNet-50 with decoders 768 and 256 wide and of ConvNeXt-T with one 768 wide, at 224 px, forward
and backward. The rule of `is_faster` in `sparkmim/models/sparse_projection.py` follows from such a table. The last rows
are the whole step of `--model`, with that rule and with whole maps throughout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import sparkmim
from compare import cpu_name
from sparkmim.models import sparse_projection as projection
from sparkmim.sparse import PatchGrid

LEVELS = [(1024, 384, 2), (512, 192, 4), (256, 96, 8), (1024, 128, 2), (512, 64, 4), (256, 32, 8)]
LEVELS += [(384, 384, 2), (192, 192, 4), (96, 96, 8)]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.6, 0.4, 0.25, 0.1])
    parser.add_argument("--model", default="resnet50")
    args = parser.parse_args()
    print(f"batch {args.batch}, {cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__},"
          f" {args.rounds} rounds in turn, medians\n")  # fmt: skip
    print("| what | visible patches | precision | whole map, ms | products added up, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for precision, dtype in DTYPES.items():
        for ratio in args.ratios:
            visible = sparkmim.random_visible(args.batch, (7, 7), ratio, torch.Generator().manual_seed(0))
            share = f"{int(visible[0].sum())} of 49"
            for channels, width, pixels in LEVELS:
                what = f"{channels} to {width} channels, {pixels} x {pixels} | {share} | {precision}"
                row(what, level(visible, channels, width, pixels, dtype), lambda grid, conv: True, args.rounds)
    images = torch.randn(args.batch, 3, 224, 224)
    for precision, dtype in DTYPES.items():
        model = sparkmim.SparK(args.model).train()
        row(
            f"step of {args.model} | 20 of 49 | {precision}",
            step(model, images, dtype),
            projection.is_faster,
            args.rounds,
        )


def level(visible: torch.Tensor, channels: int, width: int, pixels: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return forward and backward of one level's projection, with tables made anew."""
    grid = PatchGrid(visible, int(visible[0].sum()))
    packed = torch.randn(grid.patches, channels, pixels, pixels, dtype=dtype).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, width, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fill = torch.randn(channels, dtype=dtype, requires_grad=True)
    packed.requires_grad_()

    def run() -> None:
        out = projection.project(packed, fill, conv, PatchGrid(visible, grid.visible_per_image))
        out.backward(torch.ones_like(out))

    return run


def step(model: sparkmim.SparK, images: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return forward and backward of the whole model."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(images).loss
        loss.backward()

    return run


def row(what: str, run: Callable[[], None], ours: Callable[[PatchGrid, Any], bool], rounds: int) -> None:
    """Time both ways in turn, and print a row."""
    ways: list[Callable[[PatchGrid, Any], bool]] = [lambda grid, conv: False, ours]
    kept = projection.is_faster
    times: list[list[float]] = [[], []]
    try:
        for round_ in range(rounds + 1):
            for way, taken in zip(ways, times, strict=True):
                projection.is_faster = way  # type: ignore[assignment]
                start = time.perf_counter()
                run()
                if round_:  # the first warms up
                    taken.append(time.perf_counter() - start)
    finally:
        projection.is_faster = kept
    whole, added = (1e3 * statistics.median(taken) for taken in times)
    print(f"| {what} | {whole:.1f} | {added:.1f} | {added / whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
