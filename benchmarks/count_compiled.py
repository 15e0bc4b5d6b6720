"""Bytes that a compiled training step moves, by Inductor's own count, without running it or compiling its kernels.

    python benchmarks/count_compiled.py --model resnet50 --batches 4 8 --at 256

Counted at two small batches, whose difference gives the bytes of an image, and of everything else; minutes on one core.
Networks are traced on the CPU in bf16 autocast. The decoder decides as on CUDA; the engine as on the CPU, without
kernels of Triton.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.config
import torch._inductor.async_compile
import torch._inductor.config
from torch._inductor.graph import GraphLowering

import sparkmim
from count_kernels import decided_as_on_cuda
from sparkmim.models.masking import random_visible


def count(model: sparkmim.SparK, batch: int, size: int) -> dict[str, int]:
    """Return the bytes of the forward and the backward graph."""
    found: dict[str, int] = {}
    codegen = GraphLowering.codegen

    def counted(self: Any) -> Any:
        out = codegen(self)
        direction = "backward" if self.is_backward else "forward"
        found[direction] = found.get(direction, 0) + self.count_bytes()[0]
        return out

    def nothing(self: Any, *args: Any, **kwargs: Any) -> Any:
        return lambda *arguments: None

    images = torch.randn(batch, model.backbone.in_chans, size, size)
    visible = random_visible(batch, model.grid_shape((size, size)), model.mask_ratio, torch.Generator().manual_seed(0))
    compiler = torch._inductor.async_compile.AsyncCompile
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(force_disable_caches=True, compile_threads=1),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
        patch.object(GraphLowering, "codegen", counted),
        patch.object(compiler, "cpp_pybinding", nothing),
        patch.object(compiler, "cpp", nothing),
        decided_as_on_cuda(),
    ):
        model.compile(fullgraph=True)
        # Both graphs are lowered before the first is run, which may fail: its kernels compute nothing, so index tables
        # hold anything.
        failed: Exception | None = None
        try:
            with torch.autocast("cpu", torch.bfloat16):
                model(images, visible)
        except (RuntimeError, IndexError) as error:
            failed = error
    if found.keys() != {"forward", "backward"}:
        counted_graphs = ", ".join(found) or "neither"
        raise RuntimeError(f"expected to count a forward and a backward graph, got {counted_graphs}") from failed
    return found


def main() -> None:
    """Count at two batches, and print bytes at a third."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batches", type=int, nargs=2, default=[4, 8])
    parser.add_argument("--at", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--decoder-width", type=int, default=768)
    args = parser.parse_args()
    counts = []
    for batch in args.batches:
        begun = time.monotonic()
        model = sparkmim.SparK(args.model, decoder_width=args.decoder_width).train()
        counts.append(count(model, batch, args.size))
        told = ", ".join(f"{direction} {value / 1e9:.3f} GB" for direction, value in counts[-1].items())
        print(f"batch {batch}: {told} ({time.monotonic() - begun:.0f} s)", flush=True)
    few, more = args.batches
    at = {
        direction: counts[0][direction] + (args.at - few) * (counts[1][direction] - counts[0][direction]) / (more - few)
        for direction in counts[0]
    }
    parts = ", ".join(f"{direction} {value / 1e9:.1f}" for direction, value in at.items())
    print(f"**{args.model}** compiled, batch {args.at}: {sum(at.values()) / 1e9:.1f} GB ({parts})")


if __name__ == "__main__":
    main()
