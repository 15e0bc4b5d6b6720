"""Times the ways in which the engine can convolve packed patches, layer by layer, in turn; prints a Markdown table.

    python benchmarks/conv_paths.py [--batch 16] [--ratio 0.6] [--device cpu]

The layers are those of ResNet-50 (3x3) and ConvNeXt-T (depthwise 7x7) at 224 px. The thresholds `GEMM_PIXELS` and
`DENSE_ADVANTAGE` of `sparkmim/sparse/ops/conv.py` follow from such a table.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch import nn

import sparkmim
from compare import cpu_name
from sparkmim.sparse import PatchGrid, SparseExecution, run
from sparkmim.sparse.packed import conv

PATHS = {"halo": (0, math.inf), "matrix product": (math.inf, math.inf), "whole map": (0, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    visible = sparkmim.random_visible(args.batch, (7, 7), args.ratio, torch.Generator().manual_seed(0)).to(args.device)
    grid = PatchGrid(visible, int(visible[0].sum()))
    layers = [(nn.Conv2d(c, c, 3, padding=1), c, p) for c, p in ((64, 8), (128, 4), (256, 2), (512, 1))]
    layers += [(nn.Conv2d(c, c, 7, padding=3, groups=c), c, p) for c, p in ((96, 8), (192, 4), (384, 2), (768, 1))]
    print(f"batch {args.batch}, mask ratio {args.ratio}, {cpu_name()}, {torch.get_num_threads()} threads,"
          f" torch {torch.__version__}, {args.rounds} rounds in turn, medians\n")  # fmt: skip
    print("| layer | pixels of a patch | " + " | ".join(f"{path}, ms" for path in PATHS) + " |")
    print("|---|---|" + "---|" * len(PATHS))
    for layer, channels, pixels in layers:
        layer.to(args.device)
        x = torch.randn(args.batch, channels, 7 * pixels, 7 * pixels, device=args.device, requires_grad=True)
        depthwise = layer.groups > 1
        paths = [path for path in PATHS if path != ("matrix product" if depthwise else "whole map")]
        times: dict[str, list[float]] = {path: [] for path in paths}
        for round_ in range(args.rounds + 1):
            for path in paths:
                conv.GEMM_PIXELS, conv.DENSE_ADVANTAGE = PATHS[path]  # type: ignore[assignment]
                start = time.perf_counter()
                (out,) = run(SparseExecution(grid), layer, x)
                out.backward(torch.ones_like(out))
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if round_:  # the first warms up
                    times[path].append(time.perf_counter() - start)
        kind = f"depthwise 7x7, {channels}" if depthwise else f"3x3, {channels}"
        cells = [f"{1e3 * statistics.median(times[path]):.1f}" if path in times else "-" for path in PATHS]
        print(f"| {kind} | {pixels} x {pixels} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
