"""Constants that are repeated to the shape of a map are the same everywhere, in every execution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run

SPREAD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "expand_as": lambda net, x: x * net.k.expand_as(x),
    "expand, a shape": lambda net, x: x * net.k.expand(x.shape),
    "expand, sizes": lambda net, x: x * net.p.expand(*x.size()),
    "expand, samples": lambda net, x: x * net.p.expand(x.shape[0], -1, -1, -1),
    "expand, all by -1": lambda net, x: x * net.p.expand(x.shape[0], -1, x.size(2), x.size(-1)),
    "expand, groups": lambda net, x: (
        x * net.p.view(1, 2, 4, 1, 1).expand(x.shape[0], 2, 4, x.shape[2], x.shape[3]).reshape(x.shape)
    ),
    "of maps": lambda net, x: x[:, :1].expand(-1, 8, -1, -1) * torch.broadcast_to(x[:, :1], x.shape),
    "broadcast_to": lambda net, x: x * torch.broadcast_to(net.k, x.shape) + net.p.broadcast_to(x.shape),
    "broadcast_to, by name": lambda net, x: x * torch.broadcast_to(net.k, size=x.shape),
    "broadcast_tensors": lambda net, x: torch.mul(*torch.broadcast_tensors(x, net.k)),
    "broadcast_tensors, the other way": lambda net, x: torch.mul(*torch.broadcast_tensors(net.k, x)),
    "broadcast_tensors, channels": lambda net, x: torch.mul(*torch.broadcast_tensors(x[:, :1], net.p)),
    "broadcast_tensors, per image": lambda net, x: torch.add(*torch.broadcast_tensors(x.mean((2, 3), True), x)),
    "a number": lambda net, x: x * net.s.expand_as(x) + net.s.expand(x.shape),
    "computed": lambda net, x: x / net.k.abs().add(1e-3).sqrt().view(1, 8, 1, 1).expand_as(x),
    "the larger": lambda net, x: x / torch.max(net.k.abs().expand(x.shape) + 0.1, x.mean((2, 3), keepdim=True)),
    "copied": lambda net, x: x * net.k.expand(x.shape).contiguous().reshape(x.shape),
    "made": lambda net, x: x + torch.zeros(x.shape) + net.k.new_ones(x.shape) * net.k.new_full(x.shape, 2.0),
    "repeat": lambda net, x: x * net.k.repeat(x.shape[0], 1, x.shape[2], x.shape[3]),
    "repeat, channels": lambda net, x: x * net.k[:, :4].repeat(x.shape[0], 2, x.shape[2], x.shape[3]),
    "tile": lambda net, x: x * net.k.tile((x.shape[0], 1, x.shape[2], x.shape[3])),
    "where": lambda net, x: torch.where(net.k.expand(x.shape) > 0, x, 0.1 * x),
    "cat": lambda net, x: torch.cat([x[:, :4], net.k.expand(x.shape)[:, 4:] * x[:, 4:]], 1),
}


class Network(nn.Module):
    def __init__(self, combine: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stage1, self.stage2 = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
        )
        self.p, self.s, self.combine = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.tensor(0.5)), combine
        self.register_buffer("k", torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x).relu())
        x = self.combine(self, x).relu()
        out: Tensor = self.stage2(x)
        return out


@pytest.mark.parametrize("combine", SPREAD.values(), ids=SPREAD.keys())
def test_constant_repeated_to_a_map(combine: Callable[[Any, Tensor], Tensor]) -> None:
    report = Backbone(Network(combine)).check(patch_size=8, grid=(2, 3), modes=("train",), batch=2)
    assert report.passed, report


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_table_of_positions_is_refused(execution: Any) -> None:
    table = torch.randn(1, 8, 8, 8)
    grid = PatchGrid(random_visible(2, (4, 4), 0.5, torch.Generator().manual_seed(0)), 8)
    for combine in (
        lambda net, x: x + table.expand(x.shape),
        lambda net, x: x + torch.broadcast_to(table, x.shape),
        lambda net, x: x + table.repeat(x.shape[0], 1, 1, 1),
        lambda net, x: torch.add(*torch.broadcast_tensors(x, table)),
    ):
        network = Network(combine)
        with pytest.raises((UnsupportedOperation, RuntimeError)):
            run(execution(grid), network, torch.randn(2, 3, 32, 32), network)


COMPILED = ["expand, a shape", "broadcast_to", "expand, samples"]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("execution", ["packed", "masked-dense"])
def test_compiled(execution: Any) -> None:
    """Sizes that a compiler tells are those of the tensors at hand."""

    def combine(net: Any, x: Tensor) -> Tensor:
        for name in COMPILED:
            x = SPREAD[name](net, x)
        return x

    model = SparK(Network(combine), patch_size=8, decoder_width=8, execution=execution)
    images, visible = torch.randn(2, 3, 32, 32), random_visible(2, (4, 4), 0.6)
    wanted = model(images, visible).loss
    model.compile(backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(model(images, visible).loss, wanted)
