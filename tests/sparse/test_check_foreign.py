"""A check is about the engine: what else networks do neither stops it nor fails it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import conv_norm_relu
from sparkmim import Backbone
from sparkmim.sparse import check


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_norm_relu(3, 8, 4), conv_norm_relu(8, 16, 2)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.between(self.one(x)))  # type: ignore[no-any-return]


class SinglePrecision(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() / 2)


class WritesIntoInput(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).div_(0.5))


class Counts(Network):
    """A warm-up that counts its passes in Python."""

    steps = 0

    def between(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x * min(1.0, self.steps / 1000)


class FrozenStem(Network):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.one(x)
        return self.two(x)  # type: ignore[no-any-return]


class Checkpoints(Network):
    """Batch norm in a checkpointed part, whose statistics backward updates once more."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.two, self.one(x), use_reentrant=False)
        return out


class Locked(Network):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class OddParameters(Network):
    def __init__(self) -> None:
        super().__init__()
        self.nothing, self.phase = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(8, 1, 1, dtype=torch.cfloat))
        self.order = nn.Parameter(torch.arange(8), requires_grad=False)

    def between(self, x: Tensor) -> Tensor:
        return x * self.phase.real


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make", [SinglePrecision, WritesIntoInput, Counts, FrozenStem, Checkpoints, Locked, OddParameters]
)
def test_passes(make: Callable[[], Network]) -> None:
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = Backbone(network).check()
    assert report.passed, str(report)
    assert (report.precision == torch.float32) == (make is SinglePrecision)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert vars(network).get("steps", 0) == 0


CONVERSIONS: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "half": lambda net, x: net.two(x.half()).float(),
    "bfloat16": lambda net, x: net.two(x.bfloat16()).float(),
    "to": lambda net, x: net.two(x.to(torch.float16)).float(),
    "to a device": lambda net, x: net.two(x.to(x.device, torch.float16)).to(torch.float32),
    "type": lambda net, x: net.two(x.type("torch.HalfTensor")).type(torch.float32),
    "new tensors": lambda net, x: net.two(x.half() + torch.ones(8, 1, 1, dtype=torch.float16)).float(),
    "checkpoint": lambda net, x: checkpoint(net.two, x.half(), use_reentrant=False).float(),  # type: ignore[no-any-return]
    "back and forth": lambda net, x: x.half().float().to(x) * 2,
    "at the end": lambda net, x: x.half(),
    "single precision": lambda net, x: x.float() * 2,
}


class Converts(nn.Module):
    """A stem in float32, and a part that computes in the precision that the function between them converts to."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.one, self.function = nn.Conv2d(3, 8, 2, 2), function
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.one(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", CONVERSIONS.values(), ids=CONVERSIONS)
def test_networks_that_convert_are_checked(function: Callable[[Network, Tensor], Tensor]) -> None:
    network = Converts(function, torch.bfloat16 if function is CONVERSIONS["bfloat16"] else torch.float16)
    report = check(network, patch_size=(8, 8), shapes=[(1, 32, 32)])
    assert report.passed, str(report)
    assert report.precision == (torch.float32 if function is CONVERSIONS["single precision"] else torch.float64)


def test_conversions_do_not_hide_what_is_refused() -> None:
    report = check(Converts(lambda net, x: net.two(x.half().roll(1, 2)), torch.float16), patch_size=(8, 8))
    assert "torch.Tensor.roll cannot be carried out" in report.errors[0]


def as_half_tensor(network: Any, x: Tensor) -> Tensor:
    kind: Any = torch.HalfTensor
    return network.two(x.type(kind))


def test_a_precision_that_does_not_run_is_named() -> None:
    with pytest.raises(ValueError, match="the check computes in one precision"):
        check(Converts(as_half_tensor, torch.float16), patch_size=(8, 8))


class Causal(nn.Module):
    """Sees rows and columns before its own alone: by padding both sides and cropping, or by padding one."""

    def __init__(self, crops: bool, dilation: int = 1) -> None:
        super().__init__()
        self.crops, self.around = crops, 2 * dilation
        padding = self.around if crops else 0
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.conv = nn.Conv2d(8, 8, 3, padding=padding, dilation=dilation)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x, n = self.stem(x), self.around
        x = self.conv(x)[..., :-n, :-n] if self.crops else self.conv(F.pad(x, (n, 0, n, 0)))
        out: Tensor = self.norm(x.relu())
        return out


@pytest.mark.parametrize("crops", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("patch", [(8, 8), (2, 2)])
def test_causal_convolutions(crops: bool, dilation: int, patch: tuple[int, int]) -> None:
    report = check(Causal(crops, dilation), patch_size=patch, shapes=[(1, 32, 32)])
    assert report.passed, str(report)


class InitializedByData(Network):
    """Sets a parameter by its first batch of training (ActNorm)."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.statistic = statistic
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))
        self.register_buffer("initialized", torch.tensor(0))

    def between(self, x: Tensor) -> Tensor:
        if self.training and not self.initialized.item():
            self.shift.data.copy_(-self.statistic(x.permute(1, 0, 2, 3).reshape(8, -1)).view(8, 1, 1))
            self.initialized.fill_(1)
        return x + self.shift


def test_the_first_pass_of_training_is_checked() -> None:
    refused = InitializedByData(lambda x: x.sum(1) / 1e4)
    report = Backbone(refused).check()
    assert not report.passed
    assert "it adds up all images of the batch" in report.errors[0]
    refused(torch.randn(2, 3, 16, 16))
    assert Backbone(refused).check().passed
    answered = InitializedByData(lambda x: x.mean(1))
    assert Backbone(answered).check().passed
    assert not answered.initialized
    assert not answered.shift.any()


def test_a_copy_that_would_call_the_network_is_refused() -> None:
    network = Network()
    network.forward = lambda x, call=network.forward: call(x)  # type: ignore[method-assign, misc]
    with pytest.raises(ValueError, match="a copy of Network would call the network itself"):
        Backbone(network).check()


def test_parameters_without_values_are_refused() -> None:
    with torch.device("meta"):
        network = Network()
    backbone = Backbone(network)
    with pytest.raises(ValueError, match=r"on the device meta .*to_empty"):
        backbone.check()
