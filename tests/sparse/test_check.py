"""The check itself: what it finds that only shows where training happens, and what must not mislead it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparkmim import Backbone
from sparkmim.sparse import Execution, check
from sparkmim.sparse.expectation import ExpectedNoise
from sparkmim.sparse.registry import RULES
from sparkmim.sparse.twin import GarbageAfterConvolutions

Function = Callable[[Any, Tensor], Tensor]


class Between(nn.Module):
    """A function between two convolutions; it is given the network too, whose mode it may ask for."""

    def __init__(self, function: Function, **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self, self.stem(x)))


def backbone(function: Function, **parts: nn.Module) -> Backbone:
    return Backbone(Between(function, **parts), stages=["stem", "down"])


# --- at the size of training ----------------------------------------------------------------------------------------


def unseen_shape(x: Tensor) -> tuple[int, ...]:
    """The shape that memory has, by a way that the engine does not see: there are others (NumPy, C++)."""
    with torch._C.DisableTorchFunction():
        return tuple(x.shape)


def test_a_branch_on_large_images_is_found_at_their_size() -> None:
    network = backbone(lambda net, x: x * 2 if unseen_shape(x)[2] > 32 else x)
    assert network.check().passed
    report = network.check(image_size=224)
    assert [result.check for result in report.results if not result.passed] == ["size"]
    assert "(1 image of 224 x 224)" in str(report)


def test_a_branch_on_large_batches_is_found_at_their_size() -> None:
    network = backbone(lambda net, x: x * 2 if unseen_shape(x)[0] > 200 else x)
    report = network.check(batch_size=120)
    assert [result.shape for result in report.results if not result.passed] == [(120, 16, 16)]


def test_an_ordinary_network_passes_at_each_size() -> None:
    network = backbone(lambda net, x: x.relu())
    report = network.check(image_size=(64, 96), batch_size=5, modes=["train"])
    assert report.passed
    assert [result.shape for result in report.results if result.check == "size"] == [(1, 64, 96), (5, 16, 16)]


@pytest.mark.parametrize("size", [(60, 64), (64,), (64, 64, 64), (0, 64)])
def test_a_size_that_does_not_fit_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is not divisible by 8 x 8, .* use "):
        backbone(lambda net, x: x).check(image_size=size)


# --- noise ----------------------------------------------------------------------------------------------------------


def noisy(function: Function) -> Function:
    return lambda net, x: function(net, x) if net.training else x


def stochastic_depth(x: Tensor, noise: Tensor) -> Tensor:
    return x + x * noise / 0.8


def of_halves(x: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply by noise of half the resolution, where a patch of the test is one pixel."""
    half = F.avg_pool2d(x, 2)
    return x + F.interpolate(half * noise(half).to(half), scale_factor=2)


WITHIN_IMAGES = {
    "dropout": lambda net, x: F.dropout(x, 0.3, net.training),
    "dropout by names": lambda net, x: F.dropout(input=x, p=0.3, training=net.training, inplace=False),
    "dropout in place": lambda net, x: F.dropout(x, 0.3, net.training, inplace=True),
    "torch.dropout": lambda net, x: torch.dropout(x, 0.3, net.training),
    "torch.dropout_": lambda net, x: torch.dropout_(x, 0.3, net.training),
    "dropout2d": lambda net, x: F.dropout2d(x, 0.3, net.training),
    "dropout of a pooled gate": lambda net, x: x * F.dropout(x.mean((2, 3), keepdim=True), 0.3, net.training),
    "nn.Dropout": lambda net, x: net.part(x),
    "rand_like": noisy(lambda net, x: x + 0.1 * torch.rand_like(x)),
    "randn_like": noisy(lambda net, x: x + 0.1 * torch.randn_like(x)),
    "a multiplied randn_like": noisy(lambda net, x: x * (1 + 0.1 * torch.randn_like(x))),
    "bernoulli": noisy(lambda net, x: x * torch.bernoulli(torch.full_like(x, 0.7))),
    "bernoulli_": noisy(lambda net, x: x * torch.empty_like(x).bernoulli_(0.7)),
    "uniform_": noisy(lambda net, x: x + torch.empty_like(x).uniform_(-1, 2)),
    "normal_": noisy(lambda net, x: x + torch.empty_like(x).normal_(0.1, std=0.2)),
    "exponential_": noisy(lambda net, x: x + torch.empty_like(x).exponential_(2.0)),
    "channel noise": noisy(lambda net, x: x * torch.rand_like(x.mean((2, 3), keepdim=True))),
    "rrelu": lambda net, x: F.rrelu(x, 0.1, 0.4, net.training),
    "rrelu in place": lambda net, x: F.rrelu(x, training=net.training, inplace=True),
    "alpha_dropout": lambda net, x: F.alpha_dropout(x, 0.3, net.training),
    "feature_alpha_dropout": lambda net, x: F.feature_alpha_dropout(x, 0.3, net.training),
    "alpha_dropout of a gate": lambda net, x: x * F.alpha_dropout(x.mean((2, 3), keepdim=True), 0.3, net.training),
    "dropout2d of one channel": lambda net, x: x * F.dropout2d(x[:, :1], 0.3, net.training),
    "gumbel_softmax": noisy(lambda net, x: x * F.gumbel_softmax(x, dim=1)),
    "hard gumbel_softmax": noisy(lambda net, x: x * F.gumbel_softmax(x, 0.5, hard=True, dim=1)),
    "gumbel_softmax of a gate": noisy(lambda net, x: x * F.gumbel_softmax(x.mean((2, 3), keepdim=True), dim=1)),
    "randn of the map's size": noisy(lambda net, x: x + torch.randn(x.shape).to(x)),
    "rand of positions": noisy(lambda net, x: x * torch.rand(len(x), 1, *x.shape[2:]).to(x)),
    "normal of positions": noisy(lambda net, x: x + torch.normal(1.0, 2.0, (len(x), 1, *x.shape[2:])).to(x)),
    "randint of positions": noisy(lambda net, x: x * torch.randint(1, 4, (len(x), 1, *x.shape[2:])).to(x)),
    "rand of one-pixel patches": noisy(lambda net, x: of_halves(x, lambda y: torch.rand(len(y), 1, *y.shape[2:]))),
    "normal of one-pixel patches": noisy(
        lambda net, x: of_halves(x, lambda y: torch.normal(1.0, 2.0, size=(len(y), 1, *y.shape[2:])))
    ),
    "randint of one-pixel patches": noisy(
        lambda net, x: of_halves(x, lambda y: torch.randint(high=4, size=(len(y), 1, *y.shape[2:])))
    ),
    "in a checkpoint": lambda net, x: checkpoint(
        lambda x: F.dropout(x, 0.3, net.training).sigmoid(), x, use_reentrant=False
    ),
}


@pytest.mark.parametrize("function", WITHIN_IMAGES.values(), ids=WITHIN_IMAGES.keys())
def test_noise_within_images_does_not_mislead(function: Function) -> None:
    report = backbone(function, part=nn.Dropout(0.3)).check(grid=(2, 3), modes=["train"])
    assert report.passed, str(report)


PER_IMAGE = {
    "bernoulli_": noisy(lambda net, x: stochastic_depth(x, x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8))),
    "dropout of ones": noisy(lambda net, x: stochastic_depth(x, F.dropout(x.new_ones(len(x), 1, 1, 1), 0.2))),
    "rand_like": noisy(lambda net, x: x * torch.rand_like(x[:, :1].mean((2, 3), keepdim=True))),
    "Python's random": noisy(lambda net, x: x if random.random() < 0.5 else x * 2),
    "alpha_dropout of ones": noisy(
        lambda net, x: stochastic_depth(x, F.alpha_dropout(x.new_ones(len(x), 1, 1, 1), 0.2))
    ),
    "normal": noisy(lambda net, x: stochastic_depth(x, torch.normal(1.0, 2.0, (len(x), 1, 1, 1)).to(x))),
    "randint": noisy(lambda net, x: stochastic_depth(x, torch.randint(0, 9, (len(x), 1, 1, 1)).to(x))),
    "a number": noisy(lambda net, x: x * torch.rand(()).to(x.dtype)),
}


@pytest.mark.parametrize("function", PER_IMAGE.values(), ids=PER_IMAGE.keys())
def test_noise_per_image_is_drawn_alike(function: Function) -> None:
    """It passes, and it was drawn: in training mode the maps are not those of evaluation mode."""
    network = backbone(function)
    report = network.check(grid=(2, 3), modes=["train"])
    assert report.passed, str(report)
    images = torch.randn(8, 3, 16, 16)
    torch.manual_seed(0)
    random.seed(0)
    with ExpectedNoise():
        drawn = network.module.train()(images)
    assert not torch.allclose(drawn, network.module.eval()(images))


def test_wrong_noise_is_still_found() -> None:
    """Only what is random is replaced: a wrong number around it counts."""
    function = noisy(lambda net, x: F.dropout(x, 0.3) * unseen_shape(x)[0])
    assert not backbone(function).check(grid=(2, 3), batch=2).passed


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_expectations(draw: Callable[..., Tensor]) -> None:
    with ExpectedNoise():
        noise, number = draw(2, 3, 4), draw(5, 1, 1)
    mean = 0.5 if draw is torch.rand else 0.0
    assert torch.equal(noise, torch.full_like(noise, mean))
    assert len(set(number.flatten().tolist())) == 5


# --- nothing to compare with -----------------------------------------------------------------------------------------


def dropped(x: Tensor) -> Tensor:
    return x.new_empty(len(x), 1, 1, 1).bernoulli_(0.01)


NOT_FINITE = {
    "0 / 0 of a dropped image": noisy(lambda net, x: F.normalize(x * dropped(x), dim=1, eps=0)),
    "infinite gradients": noisy(lambda net, x: (x.relu() * 0).sqrt()),
    "everywhere": lambda net, x: (x - 100).log(),
}


@pytest.mark.parametrize("function", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_a_network_that_is_not_finite_by_itself_is_named_as_the_cause(function: Function) -> None:
    report = backbone(function).check(grid=(2, 3), batch=2, modes=["train"])
    assert not report.passed
    assert all("the network by itself" in (result.error or "") for result in report.results), str(report)


def test_what_is_not_finite_on_patches_alone_is_a_wrong_number() -> None:
    function = noisy(lambda net, x: x * (float("nan") if unseen_shape(x)[0] > 2 else 1))
    report = backbone(function).check(grid=(2, 3), batch=2, modes=["train"])
    assert not report.passed
    assert not report.errors


# --- nothing is left behind -----------------------------------------------------------------------------------------


def test_generators_are_left_as_they_were() -> None:
    network = Between(lambda net, x: F.dropout(x))
    states = torch.get_rng_state(), random.getstate()
    check(network, patch_size=(8, 8), grid=(2, 2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


# --- hidden positions -----------------------------------------------------------------------------------------------


class Coarse(nn.Module):
    """A map of stride 8, whose positions hold several patches of 4 pixels, and a part after it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.down, self.part = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1, bias=False), part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.down(self.stem(x)))


SEES_NOTHING = {
    "convolution": lambda: nn.Conv2d(8, 8, 3, 2, 1),
    "pooling": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)),
    "norm": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2, groups=2), nn.Conv2d(4, 8, 4, 4)),
}


@pytest.mark.parametrize("make", SEES_NOTHING.values(), ids=SEES_NOTHING.keys())
def test_garbage_at_hidden_positions_changes_nothing(make: Callable[[], nn.Module]) -> None:
    report = Backbone(Coarse(make()), stages=["stem", "down", "part"]).check(4)
    assert report.passed, str(report)
    assert [result.mode for result in report.results if result.check == "hidden"] == ["eval", "train"]


def test_a_part_that_reads_hidden_positions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed and in the reference alike, so that they agree with each other."""

    def rolled(execution: Execution, func: Any, x: Tensor, *args: Any) -> Tensor:
        return execution.mark(func(x, *args), execution.require_map(func, x))

    monkeypatch.setitem(RULES, Tensor.roll, {"CoarseExecution": rolled, "MaskedDenseExecution": rolled})
    network = Coarse(nn.Conv2d(8, 8, 3, 2, 1))
    network.down.register_forward_hook(lambda module, args, output: output.roll(1, 2))
    report = Backbone(network, stages=["stem", "part"]).check(4)
    failed = {result.check for result in report.results if not result.passed}
    assert "hidden" in failed
    assert "oracle" not in failed


def test_a_twin_is_the_same_function() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.ConvTranspose2d(8, 4, 2, 2, groups=2, output_padding=1),
    ).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with GarbageAfterConvolutions():
        twin = network(images)
    torch.testing.assert_close(twin, network(images))


def test_empty_parameters() -> None:
    """As a layer for no classes has them."""
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
    network.register_parameter("classifier", nn.Parameter(torch.empty(0, 4)))
    assert check(network, patch_size=(4, 4)).passed


# --- rounding -------------------------------------------------------------------------------------------------------


def chaotic(times: int) -> Function:
    """The logistic map, each application of which doubles what rounding did before it."""

    def function(network: Any, x: Tensor) -> Tensor:
        x = torch.sigmoid(network.mix(x))
        for _ in range(times):
            x = 4 * x * (1 - x)
        return x

    return function


def test_rounding_that_the_network_amplifies_is_no_fault() -> None:
    report = backbone(chaotic(22), mix=nn.Conv2d(8, 8, 3, padding=1)).check()
    assert report.passed, str(report)
    assert report.deviation > 1e-8
    assert "rounding of the images alone changes the network by" in str(report)


def test_a_small_fault_is_not_taken_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(execution: Execution, func: Any, x: Tensor) -> Tensor:
        return execution.mark(func(x) * (1 + 1e-7), execution.require_map(func, x))

    monkeypatch.setitem(RULES, torch.tanh, {**RULES[torch.tanh], "SparseExecution": nearly})
    report = backbone(lambda network, x: torch.tanh(x)).check()
    failed = {result.check for result in report.results if not result.passed}
    assert failed == {"identity", "crop", "oracle"}
    assert report.deviation < 1e-6
