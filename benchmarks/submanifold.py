"""Times sparse convolutions of other projects beside ours, on the same layers and masks, in turn; prints a Markdown
table with our ratio to each.

    python benchmarks/submanifold.py --mmpretrain DIR --spconv DIR [--batch 16] [--ratio 0.6] [--device cpu]

A contestant runs four equal convolutions in a row, as the layers of a stage follow each other, so that what a format
costs to enter and leave is shared by four. `--mmpretrain` and `--spconv` are folders with these packages
(`pip install --target DIR --no-deps mmpretrain`, `pip install --target DIR spconv`); one that is not given is left out.

- packed: sparkmim.
- masked dense: `SparseConv2d` of mmpretrain 1.2, taken from the authors' code: a dense convolution times the mask.
- spconv: `SubMConv2d`, its index pairs made once for the four. It has no depthwise convolution, and without a GPU
  no backward pass.

A contestant that gives other numbers than ours is named and left out (spconv 2.3.8 does without a GPU).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparkmim
from compare import cpu_name
from sparkmim.sparse import PatchGrid, SparseExecution, run

DEPTH = 4

Pass = Callable[[], list[Tensor]]
"""Makes the results whose gradients are then taken."""


def packed(layers: nn.Sequential, x: Tensor, visible: Tensor) -> Pass:
    def maps() -> list[Tensor]:
        grid = PatchGrid(visible, int(visible[0].sum()))
        return run(SparseExecution(grid), layers, x)

    return maps


def masked_dense(layers: nn.Sequential, x: Tensor, visible: Tensor, folder: str) -> Pass:
    modules = mmpretrain_layers(folder)
    others = nn.Sequential(*(modules.SparseConv2d(**settings(layer)) for layer in layers)).to(x.device)
    others.load_state_dict(layers.state_dict())
    modules.SparseHelper._cur_active = visible.unsqueeze(1)
    scale = x.shape[-1] // visible.shape[-1]
    shown = x.detach() * visible.repeat_interleave(scale, 1).repeat_interleave(scale, 2).unsqueeze(1)
    shown.requires_grad_()
    return lambda: [others(shown)]


def submanifold(layers: nn.Sequential, x: Tensor, visible: Tensor, folder: str) -> Pass:
    sys.path.append(folder)
    import spconv.pytorch as spconv

    others = []
    for layer in layers:
        other = spconv.SubMConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, indice_key="all")
        with torch.no_grad():
            other.weight.copy_(layer.weight.permute(0, 2, 3, 1))
            other.bias.copy_(layer.bias)
        others.append(other.to(x.device))
    network = spconv.SparseSequential(*others)
    scale = x.shape[-1] // visible.shape[-1]
    there = visible.repeat_interleave(scale, 1).repeat_interleave(scale, 2).nonzero()
    rows = x.detach().movedim(1, -1)[there.unbind(1)].requires_grad_()

    def run() -> list[Tensor]:
        tensor = spconv.SparseConvTensor(rows, there.int(), list(x.shape[2:]), len(x))
        return [network(tensor).features]

    return run


def mmpretrain_layers(folder: str) -> Any:
    """Import the package's file of sparse layers, without the packages that the rest of it needs."""
    path = Path(folder) / "mmpretrain/models/utils/sparse_modules.py"
    registry = types.ModuleType("mmpretrain.registry")
    registry.MODELS = types.SimpleNamespace(register_module=lambda *_: lambda cls: cls)  # type: ignore[attr-defined]
    sys.modules["mmpretrain.registry"] = registry
    spec = importlib.util.spec_from_file_location("sparse_modules", path)
    assert spec is not None
    assert spec.loader is not None
    modules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules)
    return modules


def settings(layer: nn.Module) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "padding", "groups")
    return {name: getattr(layer, name) for name in names}


def timed(run: Pass, backward: bool, device: str) -> float:
    start = time.perf_counter()
    if backward:
        out = run()
        torch.autograd.backward(out, [torch.ones_like(o) for o in out])
    else:
        with torch.no_grad():
            run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def disagreeing(runs: dict[str, Pass], visible: Tensor) -> list[str]:
    """Contestants whose results over visible positions do not add up to those of the first."""
    grid = PatchGrid(visible, int(visible[0].sum()))
    with torch.no_grad():
        sums = {
            name: (grid.pack(out[0]) if name == "masked dense" else out[0]).double().sum().item()
            for name, out in ((name, run()) for name, run in runs.items())
        }
    first = next(iter(sums.values()))
    return [name for name, value in sums.items() if abs(value - first) > 1e-2 * max(1.0, abs(first))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmpretrain")
    parser.add_argument("--spconv")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    visible = sparkmim.random_visible(args.batch, (7, 7), args.ratio, torch.Generator().manual_seed(0)).to(args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    print(
        f"batch {args.batch}, mask ratio {args.ratio}, {DEPTH} layers in a row, float32, {datetime.date.today()},"
        f" {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds in turn,"
        " medians\n"
    )
    wrong: set[str] = set()
    print("| layer | map | pass | packed, ms | masked dense, ms | ratio | spconv, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for kernel, channels, pixels in [(3, 64, 8), (3, 128, 4), (3, 256, 2), (3, 512, 1), (7, 96, 8), (7, 384, 2)]:
        groups = channels if kernel == 7 else 1
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups)
        layers = nn.Sequential(*(copy.deepcopy(conv) for _ in range(DEPTH))).to(args.device)
        x = torch.randn(args.batch, channels, 7 * pixels, 7 * pixels, device=args.device, requires_grad=True)
        runs = {"packed": packed(layers, x, visible)}
        if args.mmpretrain:
            runs["masked dense"] = masked_dense(layers, x, visible, args.mmpretrain)
        if args.spconv and groups == 1:
            runs["spconv"] = submanifold(layers, x, visible, args.spconv)
        for name in disagreeing(runs, visible):
            wrong.add(name)
            del runs[name]
        for backward in (False, True):
            able = [name for name in runs if not (name == "spconv" and backward and args.device == "cpu")]
            times: dict[str, list[float]] = {name: [] for name in able}
            for round_ in range(args.rounds + 1):
                for name in able:
                    seconds = timed(runs[name], backward, args.device)
                    if round_:  # the first warms up
                        times[name].append(seconds)
            medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
            cells = [f"{medians['packed']:.1f}"]
            for name in ("masked dense", "spconv"):
                known = name in medians
                cells += [f"{medians[name]:.1f}", f"{medians[name] / medians['packed']:.2f}"] if known else ["-", "-"]
            kind = f"depthwise 7x7, {channels}" if groups > 1 else f"3x3, {channels}"
            side = 7 * pixels
            print(f"| {kind} | {side} x {side} | {'both' if backward else 'forward'} | {' | '.join(cells)} |")
    if wrong:
        print(f"\nLeft out, for giving other numbers here: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
