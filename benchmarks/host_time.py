"""Times what the engine costs the host: networks of 8 channels, so that there is hardly any arithmetic, on one thread.

    python benchmarks/host_time.py [--against PATH/src] [--rounds 25]

Rows are the forward pass of the ordinary and the packed network, and a whole step of pretraining (forward and
backward, decoder 64 wide), in processor time. With `--against` the same runs with the package under another path, in
turn in processes of their own: A B A B.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

NETWORKS = ("resnet50", "convnext_base", "efficientnet_b0")
PARTS = ("dense", "packed", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a folder that holds another sparkmim")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--serve", choices=NETWORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    trees = [None] if args.against is None else [args.against, None]
    print("| network | package | dense, ms | packed, ms | of dense | step, ms | of the first |")
    print("|---|---|---|---|---|---|---|")
    for network in args.networks:
        kids = [started(network, tree) for tree in trees]
        times: list[dict[str, list[float]]] = [{part: [] for part in PARTS} for _ in kids]
        for round_ in range(args.rounds + 3):
            for kid, taken in zip(kids, times, strict=True):
                for part in PARTS:
                    seconds = asked(kid, part)
                    if round_ >= 3:  # those before warm up
                        taken[part].append(seconds)
        for tree, taken in zip(trees, times, strict=True):
            ms = {part: 1e3 * statistics.median(taken[part]) for part in PARTS}
            first = statistics.median(a / b for a, b in zip(taken["step"], times[0]["step"], strict=True))
            share = statistics.median(a / b for a, b in zip(taken["packed"], taken["dense"], strict=True))
            print(
                f"| {network} | {'this one' if tree is None else 'the other'} | {ms['dense']:.1f} | {ms['packed']:.1f} "
                f"| {share:.2f} | {ms['step']:.1f} | {first:.2f} |",
                flush=True,
            )
        for kid in kids:
            kid.stdin.close()  # type: ignore[union-attr]
            kid.wait()


def started(network: str, tree: str | None) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({} if tree is None else {"PYTHONPATH": tree})
    command = [sys.executable, __file__, "--serve", network]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(kid: subprocess.Popen[str], part: str) -> float:
    assert kid.stdin is not None
    assert kid.stdout is not None
    kid.stdin.write(part + "\n")
    kid.stdin.flush()
    return float(kid.stdout.readline())


def serve(name: str) -> None:
    """Time the parts that are asked for on standard input."""
    import torch

    import sparkmim
    from sparkmim.sparse import PatchGrid

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sparkmim.SparK(tiny(name), decoder_width=64).train()
    images = torch.randn(2, 3, 64, 64)
    visible = torch.zeros(2, 2, 2, dtype=torch.bool)
    visible[:, 0, 0] = visible[:, 1, 1] = True
    parts: dict[str, Callable[[], object]] = {
        "dense": lambda: model.backbone(images),
        "packed": lambda: model.encode_visible(images, PatchGrid(visible, 2)),
        "step": lambda: model(images, visible).loss.backward(),
    }
    for line in sys.stdin:
        start = time.process_time()
        parts[line.strip()]()
        print(time.process_time() - start, flush=True)


def tiny(name: str) -> Any:
    """Return a network of the same layers with 8 channels each."""
    from timm.models.convnext import ConvNeXt
    from timm.models.efficientnet import _gen_efficientnet
    from timm.models.resnet import Bottleneck, ResNet

    narrow: Any = type("Narrow", (Bottleneck,), {"expansion": 1})
    if name == "resnet50":
        return ResNet(narrow, (3, 4, 6, 3), num_classes=0, channels=(8, 8, 8, 8), stem_width=8)
    if name == "convnext_base":
        return ConvNeXt(depths=(3, 3, 27, 3), dims=(8, 8, 8, 8), num_classes=0)
    return _gen_efficientnet("efficientnet_b0", channel_multiplier=0.1, num_classes=0)


if __name__ == "__main__":
    main()
