"""Small networks drawn at random, of what looks at positions, writes in place, has poles, or joins scales.

`python tests/random_patch_networks.py --count 2000` tries many; `test_random_patch_networks.py` tries a few.
"""

from __future__ import annotations

import argparse
import collections
import copy
import math
import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, mask_at, run

CHANNELS, GRID, BATCH = 4, (4, 4), 2


def convolved(network: Network, x: Tensor, conv: nn.Module) -> Tensor:
    """Convolve with the bias in the convolution or, which is the same function, added after it."""
    assert isinstance(conv, nn.Conv2d)
    if not network.bias_after:
        return conv(x)  # type: ignore[no-any-return]
    out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    assert conv.bias is not None
    return out + conv.bias[:, None, None]


def cells(x: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, C, H / 2, 2, W / 2, 2)`."""
    return x.view(x.shape[0], x.shape[1], x.shape[2] // 2, 2, x.shape[3] // 2, 2)


def to_depth(x: Tensor) -> Tensor:
    cut = cells(x)
    return cut.permute(0, 1, 3, 5, 2, 4).reshape(x.shape[0], 4 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def relu_of_channels_last(x: Tensor) -> Tensor:
    """Writes to a copy."""
    y = x.permute(0, 2, 3, 1).contiguous()
    y.mul_(0.5)
    return x - F.relu(y, inplace=True).permute(0, 3, 1, 2)


def relu_of_tokens(x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2).contiguous()
    y += 0.3
    return x * y.transpose(1, 2).reshape(x.shape).sigmoid()


def relu_of_same(x: Tensor) -> Tensor:
    """Writes to the map itself."""
    z = x * 1.0
    y = z.contiguous()
    y.mul_(0.7)
    return y + z


DOWN: dict[str, Callable[[Network, Tensor, Any], Tensor]] = {
    "strided convolution": lambda n, x, m: convolved(n, x, m["strided"]),
    "max pooling": lambda n, x, m: F.max_pool2d(x, 3, 2, 1),
    "average pooling": lambda n, x, m: F.avg_pool2d(x, 2),
    "slice": lambda n, x, m: convolved(n, x[..., ::2, ::2], m["mixed"]),
    "unshuffle": lambda n, x, m: convolved(n, F.pixel_unshuffle(x, 2), m["widened"]),
    "focus": lambda n, x, m: convolved(n, focus(x), m["widened"]),
    "space to depth": lambda n, x, m: convolved(n, to_depth(x), m["widened"]),
    "mean of cells": lambda n, x, m: cells(x).mean((3, 5)),
    "largest of cells": lambda n, x, m: cells(x).amax((3, 5)),
}

SAME: dict[str, Callable[[Network, Tensor, Any], Tensor]] = {
    "convolution": lambda n, x, m: convolved(n, x, m["same"]),
    "batch norm": lambda n, x, m: m["batch"](x),
    "group norm": lambda n, x, m: m["group"](x),
    "instance norm": lambda n, x, m: m["instance"](x),
    "layer norm": lambda n, x, m: m["layer"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "batch norm of groups": lambda n, x, m: m["batch3d"](x.unflatten(1, (2, 2))).flatten(1, 2),
    "gelu": lambda n, x, m: F.gelu(x),
    "relu": lambda n, x, m: F.relu(x * 1.0, inplace=True) + 0.1 * x,
    "gate": lambda n, x, m: x * m["mixed"](x.mean((2, 3), keepdim=True)).sigmoid(),
    "gate of the finest": lambda n, x, m: x * n.first.mean((2, 3), keepdim=True).sigmoid(),
    "softmax of positions": lambda n, x, m: x * (1 + x.flatten(2).softmax(-1).view(x.shape)),
    "signed root": lambda n, x, m: (lambda z: z.sign() * z.abs().sqrt())(x * n.scale),
    "unit length": lambda n, x, m: (lambda z: z / z.norm(dim=1, keepdim=True))(x * n.scale),
    "unit deviation": lambda n, x, m: (lambda z: z / z.std(1, keepdim=True))(x * n.scale),
    "logarithm": lambda n, x, m: (x * n.scale).abs().log(),
    "inverse": lambda n, x, m: (1 / (x * n.scale).square().sum(1, keepdim=True)).clamp(max=9) * x,
    "channels last, in place": lambda n, x, m: relu_of_channels_last(x),
    "tokens, in place": lambda n, x, m: relu_of_tokens(x),
    "itself, in place": lambda n, x, m: relu_of_same(x),
    "down and up": lambda n, x, m: x + F.interpolate(convolved(n, x, m["strided"]), scale_factor=2),
}  # fmt: skip


class Network(nn.Module):
    """A stem of stride 2, and blocks drawn at random of which two halve the map."""

    scale: nn.Parameter
    first: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        down = [draw.choice(list(DOWN)) for _ in range(2)]
        same = [draw.choice(list(SAME)) for _ in range(4)]
        self.names = [same[0], down[0], same[1], down[1], same[2], same[3]]
        self.stem = nn.Conv2d(3, CHANNELS, 2, 2)
        self.scale = nn.Parameter(torch.rand(CHANNELS, 1, 1) + 0.5)
        self.parts = nn.ModuleList([self._parts() for _ in self.names])
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        self.bias_after = False
        self.double()

    def _parts(self) -> nn.ModuleDict:
        made = {
            "strided": nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1),
            "mixed": nn.Conv2d(CHANNELS, CHANNELS, 1),
            "widened": nn.Conv2d(4 * CHANNELS, CHANNELS, 1),
            "same": nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1),
            "batch": nn.BatchNorm2d(CHANNELS),
            "batch3d": nn.BatchNorm3d(2),
            "group": nn.GroupNorm(2, CHANNELS),
            "instance": nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True),
            "layer": nn.LayerNorm(CHANNELS),
        }
        for name in ("batch", "batch3d", "group", "instance"):
            nn.init.normal_(made[name].bias)  # type: ignore[arg-type]
        return nn.ModuleDict(made)

    def forward(self, x: Tensor) -> Tensor:
        x = convolved(self, x, self.stem)
        self.first = x
        for name, parts in zip(self.names, self.parts, strict=True):
            x = {**DOWN, **SAME}[name](self, x, parts)
        del self.first
        return convolved(self, x, self.last)


class Result(NamedTuple):
    """The map where visible, the gradients of images and parameters, and the buffers."""

    values: Tensor
    gradients: list[Tensor]
    buffers: list[Tensor]


def result(network: Network, images: Tensor, visible: Tensor | None, kind: type[Any] | None = None) -> Result:
    network = copy.deepcopy(network)
    images = images.clone().requires_grad_()
    if visible is None or kind is None:
        out = network(images)
        shown = torch.ones_like(out, dtype=torch.bool)
    else:
        execution = kind(PatchGrid(visible, int(visible[0].sum())))
        out = execution.whole_map(run(execution, network, images)[0])
        shown = mask_at(visible, out.shape[2:]).unsqueeze(1).expand_as(out)
    out = out[shown]
    leaves = [images, *network.parameters()]
    grads = torch.autograd.grad((out * torch.arange(out.numel()).cos()).sum(), leaves, allow_unused=True)
    kept = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]
    return Result(out.detach(), kept, [b.clone() for b in network.buffers()])


def deviation(found: Result, wanted: Result) -> float:
    """Return the largest relative difference; infinite where one of the two is not finite and the other is."""
    worst = 0.0
    total = math.sqrt(sum(g.norm().item() ** 2 for g in wanted.gradients))
    for ours, theirs, floor in zip(found, wanted, (0.0, 1e-3 * total, 0.0), strict=True):
        for a, b in zip(*((t if isinstance(t, list) else [t]) for t in (ours, theirs)), strict=True):
            if a.shape != b.shape:
                return math.inf
            difference = (a - b).double().norm().item()
            if difference != 0:
                worst = max(
                    worst,
                    difference / (b.double().norm().item() + floor + 1e-12) if difference < math.inf else math.inf,
                )
    return worst


def faults(seed: int, thorough: bool = True) -> dict[str, float] | str:
    """Return what a network drawn by `seed` gets wrong, by property; a string if it is refused.

    Args:
        seed: of the network, the images and the mask.
        thorough: whether hidden garbage and the same function written otherwise are tried in both executions, or by
            turns in one of them.
    """
    network = Network(seed)
    draw = random.Random(seed)
    network.train(draw.random() < 0.5)
    patch = draw.choice([1, 2, 4, 8])
    grid = [g * 8 // patch for g in GRID]
    size = [g * patch for g in grid]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, *size, generator=generator, dtype=torch.float64)
    cells = math.prod(grid)
    order = torch.rand(BATCH, cells, generator=generator).argsort(1)[
        :, : max(1, round(cells * draw.choice([0.1, 0.4])))
    ]
    visible = torch.zeros(BATCH, cells, dtype=torch.bool).scatter(1, order, True).view(BATCH, *grid)
    hidden = ~mask_at(visible, size).unsqueeze(1)
    twin = copy.deepcopy(network)
    twin.bias_after = True
    try:
        packed = result(network, images, visible, SparseExecution)
        reference = result(network, images, visible, MaskedDenseExecution)  # more of it may be in doubt
    except UnsupportedOperation as error:
        return str(error)
    found = {}
    every = torch.ones_like(visible)
    found["packed is masked-dense"] = deviation(packed, reference)
    ordinary = result(network, images, None)
    found["nothing hidden"] = deviation(result(network, images, every, SparseExecution), ordinary)
    both = (("packed", SparseExecution, packed), ("masked-dense", MaskedDenseExecution, reference))
    planted = draw.choice([1e200, math.nan])
    for name, kind, own in both if thorough else both[seed % 2 :][:1]:
        found[f"{name}: the same function"] = deviation(result(twin, images, visible, kind), own)
        garbage = torch.where(hidden, planted, images)
        found[f"{name}: {planted} hidden"] = deviation(result(network, garbage, visible, kind), own)
    if all(g.isfinite().all() for g in ordinary.gradients):
        for name, _, own in both:
            found[f"{name}: gradients"] = 0.0 if all(g.isfinite().all() for g in own.gradients) else math.inf
    return {what: value for what, value in found.items() if not value < 1e-7}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in range(arguments.start, arguments.start + arguments.count):
        try:
            found: dict[str, float] | str = faults(seed)
        except RuntimeError as error:
            found = {str(error): math.inf}
        outcomes["refused" if isinstance(found, str) else "wrong" if found else "right"] += 1
        if found:
            print(seed, Network(seed).names, found if isinstance(found, dict) else found[:200], flush=True)
    print(dict(outcomes))
    return int(outcomes["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
