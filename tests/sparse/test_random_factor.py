"""Modules that multiply their input by numbers that they draw: stochastic depth and DropBlock, and other draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

from engine_helpers import all_visible, cases, images_of, random_grid, stem
from sparkmim.models.backbone import Backbone  # declares the classes of torchvision and timm
from sparkmim.sparse import (
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    dense_fallback,
    random_factor,
    run,
)


class Dropped(nn.Module):
    """A convolution, what drops of its result, and a pooling that looks around."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.stem, self.drop = stem(), drop

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.drop(self.stem(x)), 3, 1, 1)


BLOCKS = {
    "torchvision": lambda: torchvision.ops.DropBlock2d(0.3, 3),
    "torchvision, in place": lambda: torchvision.ops.DropBlock2d(0.3, 3, inplace=True),
    "torchvision, of nothing": lambda: torchvision.ops.DropBlock2d(0.0, 3, inplace=True),
    "timm": lambda: timm.layers.DropBlock2d(0.3, 3),
    "timm, in place": lambda: timm.layers.DropBlock2d(0.3, 3, inplace=True),
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
}


@pytest.mark.parametrize("block", [(4, 4), (2, 2)], ids=str)
@cases(BLOCKS)
def test_draws_as_the_ordinary_network(case: type, block: tuple[int, int]) -> None:
    """With the same seed the same blocks are dropped: of the whole map, whatever is visible of it."""
    network, images = Dropped(case()).train(), images_of(block)

    def drawn(execution: type, grid: PatchGrid) -> Tensor:
        torch.manual_seed(0)
        (out,) = run(execution(grid), network, images)
        return grid.unpack(out if execution is SparseExecution else grid.pack(out))

    torch.manual_seed(0)
    ordinary = network(images)
    torch.testing.assert_close(drawn(SparseExecution, all_visible()), ordinary)
    torch.testing.assert_close(drawn(MaskedDenseExecution, all_visible()), ordinary)
    torch.testing.assert_close(drawn(SparseExecution, random_grid()), drawn(MaskedDenseExecution, random_grid()))


def test_blocks_pass_the_check() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), torchvision.ops.DropBlock2d(0.3, 3), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
    )
    assert Backbone(network, stages=["0", "2"]).check().passed


def test_blocks_filled_with_noise_are_no_factor() -> None:
    """Noise is added where a block was, so the module is no factor; its functions have rules of their own."""
    network = Dropped(timm.layers.DropBlock2d(0.3, 3, with_noise=True)).train()
    (out,) = run(SparseExecution(random_grid()), network, images_of((4, 4)))
    assert out.isfinite().all()


def test_a_class_is_declared() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(1, 1, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
            return x * F.interpolate(noise, scale_factor=2)

    network, images = Dropped(Halves()).train(), images_of((4, 4))
    with pytest.raises(UnsupportedOperation):
        run(SparseExecution(all_visible()), network, images)
    random_factor(Halves, of_positions=True)
    torch.manual_seed(0)
    (out,) = run(SparseExecution(all_visible()), network, images)
    torch.manual_seed(0)
    torch.testing.assert_close(all_visible().unpack(out), network(images))


# --- draws with rules of their own ------------------------------------------------------------------------------------


class Draw(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x[:, :1].expand(-1, 8, -1, -1) * 0 + 1)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("block", [(4, 4), (1, 1)], ids=str)
def test_alpha_dropout(block: tuple[int, int]) -> None:
    """Values are those of torch's: kept and dropped ones, each position by itself."""
    torch.manual_seed(0)
    (out,) = run(SparseExecution(random_grid(64)), Draw(nn.AlphaDropout(0.3)), images_of(block, 64))
    values = F.alpha_dropout(torch.ones(10_000, dtype=torch.float64), 0.3, training=True).unique()
    torch.testing.assert_close(out.unique(), values)
    kept = (out == out.max()).double().mean().item()
    assert math.isclose(kept, 0.7, abs_tol=4 * math.sqrt(0.21 / out.numel()))


@pytest.mark.parametrize("block", [(4, 4), (1, 1)], ids=str)
def test_feature_alpha_dropout(block: tuple[int, int]) -> None:
    """A channel of an image is dropped in all its patches, or in none."""
    grid = random_grid(64)
    torch.manual_seed(0)
    (out,) = run(SparseExecution(grid), Draw(nn.FeatureAlphaDropout(0.3)), images_of(block, 64))
    patches = grid.by_image(out)
    assert torch.equal(patches, patches[:, :1, :, :1, :1].expand_as(patches))
    torch.testing.assert_close(
        out.unique(), F.alpha_dropout(torch.ones(10_000, dtype=torch.float64), 0.3, training=True).unique()
    )


def test_alpha_dropout_of_nothing() -> None:
    for module in (nn.AlphaDropout(0.5).eval(), nn.FeatureAlphaDropout(0.0), nn.AlphaDropout(0.0)):
        (out,) = run(SparseExecution(random_grid()), Draw(module), images_of((4, 4)))
        assert torch.equal(out, torch.ones_like(out))


def test_alpha_dropout_of_gates() -> None:
    grid = random_grid(16)

    def gate(x: Tensor) -> Tensor:
        return x * F.alpha_dropout(x.mean((2, 3), keepdim=True), 0.5, training=True)

    (out,) = run(SparseExecution(grid), Draw(gate), images_of((4, 4), 16))
    patches = grid.by_image(out)
    assert torch.equal(patches, patches[:, :1, :, :1, :1].expand_as(patches))
    assert len(out.unique()) > 1


def test_gumbel_softmax() -> None:
    def choose(x: Tensor) -> Tensor:
        return F.gumbel_softmax(x, hard=True, dim=1)

    (out,) = run(SparseExecution(random_grid()), Draw(choose), images_of((4, 4)))
    torch.testing.assert_close(out.sum(1), torch.ones_like(out[:, 0]))
    assert len(out.argmax(1).unique()) > 1
    with pytest.raises(UnsupportedOperation):
        run(SparseExecution(random_grid()), Draw(lambda x: F.gumbel_softmax(x, dim=2)), images_of((4, 4)))


FACTORIES = {
    "rand": lambda n, like: torch.rand(n, 1, 1, 1, dtype=like.dtype) + 0.5,
    "empty": lambda n, like: torch.empty(n, 1, 1, 1, dtype=like.dtype).bernoulli_(0.5),
    "randint": lambda n, like: torch.randint(0, 3, (n, 1, 1, 1)).to(like.dtype),
    "normal": lambda n, like: torch.normal(0.0, 1.0, (n, 1, 1, 1)).to(like.dtype),
    "full": lambda n, like: torch.full((n, 1, 1, 1), 0.5, dtype=like.dtype),
    "new_empty": lambda n, like: like.new_empty(n, 1, 1, 1).bernoulli_(0.5),
    "ones": lambda n, like: F.dropout(torch.ones(n, 1, 1, 1, dtype=like.dtype), 0.5),
}
"""What draws or makes a number for each of `n` images."""


@pytest.mark.parametrize("opaque", [False, True], ids=["factor", "dense_fallback"])
@cases(FACTORIES)
def test_what_an_opaque_module_makes_is_ordinary(case: Any, opaque: bool) -> None:
    """Also after the network has read a size, when tensors of as many rows as there are images are traced outside."""

    class Drop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * case(x.shape[0], x)

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape)

    drop = dense_fallback(Drop()) if opaque else random_factor(Drop)()
    network, images = Dropped(nn.Sequential(Reads(), drop, Reads())).train(), images_of((4, 4))
    torch.manual_seed(0)
    ordinary = network(images)
    for execution in (SparseExecution, MaskedDenseExecution):
        torch.manual_seed(0)
        (out,) = run(execution(all_visible()), network, images)
        torch.testing.assert_close(all_visible().unpack(out) if execution is SparseExecution else out, ordinary)
