"""Tensors that descend from the input by ways the engine cannot trace are refused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    BLOCKS,
    REFUSED,
    Function,
    Gate,
    Host,
    all_visible,
    assert_names_the_ways_out,
    cases,
    constant,
    images_of,
    outcome_of,
    random_grid,
    refusal,
    right_or_refused,
)
from sparkmim.sparse import SparseExecution, UnsupportedOperation, run


def neighbors(x: Tensor) -> Tensor:
    """What an engine that does not see it gets wrong."""
    return F.avg_pool2d(x, 3, 1, 1)


class Neighbors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1)


class WithoutFunctions(torch.autograd.Function):
    """A custom function whose forward is out of sight, as that of an extension in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return neighbors(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbors(grad)


class WithFunctions(torch.autograd.Function):
    """A custom function whose forward is seen, but not its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbors(grad)


class Same(torch.autograd.Function):
    """The input itself, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbors(grad)


class InPlace(torch.autograd.Function):
    """Writes its input, as activated batch norm does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        with torch._C.DisableTorchFunction():
            x.copy_(neighbors(x))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbors(grad)


def in_a_thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(neighbors(x)))
    thread.start()
    thread.join()
    return found[0]


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Neighbors())


def scripted_function() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(neighbors)


def traced() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Neighbors(), torch.zeros(2, 8, 4, 4, dtype=torch.float64), check_trace=False)


HIDDEN = {
    "scripted": scripted(),
    "scripted_function": scripted_function(),
    "traced": traced(),
    "function_out_of_sight": WithoutFunctions.apply,
    "function_in_sight": WithFunctions.apply,
    "function_of_the_same": Same.apply,
    "parameter": lambda x: neighbors(nn.Parameter(x)),
    "constructor": lambda x: neighbors(torch.DoubleTensor(x)),
    "vmap": torch.vmap(neighbors),
    "thread": in_a_thread,
    "data_through_another_tensor": lambda x: neighbors(torch._C._autograd._get_data_attr(x)),  # type: ignore[attr-defined]
}

LED_BACK = {
    "alone": lambda hidden, x: hidden,
    "added": lambda hidden, x: x + hidden,
    "convolved": lambda hidden, x: F.conv2d(hidden, constant(8, 8, 3, 3), padding=1),
    "concatenated": lambda hidden, x: torch.cat([x, hidden], 1),
    "gate": lambda hidden, x: x * F.adaptive_avg_pool2d(hidden, 1),
    "written": lambda hidden, x: (x * 1).copy_(hidden),
}


@BLOCKS
@pytest.mark.parametrize("back", LED_BACK)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_is_hidden_is_refused(hidden: str, back: str, block: tuple[int, int]) -> None:
    """Whatever the engine cannot trace, its result must not find a way back into the network."""

    def part(x: Tensor) -> Tensor:
        return LED_BACK[back](HIDDEN[hidden](x), x)

    assert outcome_of(part, block) == REFUSED
    refusal(part, block)


@pytest.mark.parametrize("hidden", ["scripted", "function_out_of_sight", "thread"])
@pytest.mark.parametrize("reduced", ["number", "channels"])
def test_constant_from_out_of_sight(hidden: str, reduced: str) -> None:
    """What is the same for all samples and positions looks like a weight, but descends from the input."""

    def part(x: Tensor) -> Tensor:
        y = HIDDEN[hidden](x)
        return x * (y.mean() if reduced == "number" else y.mean((0, 2, 3), keepdim=True))

    assert outcome_of(part, (4, 4)) == REFUSED


class HiddenStatistic(torch.autograd.Function):
    """The mean of all samples and positions, which looks like a weight, `(1, C, 1, 1)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x.mean((0, 2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@cases(
    {
        "multiplied": lambda x: x * HiddenStatistic.apply(x),
        "in_a_list": lambda x: x * torch.cat([HiddenStatistic.apply(x)]),
        "in_a_list_with_a_constant": lambda x: x * torch.stack([HiddenStatistic.apply(x), constant(1, 8, 1, 1)]).sum(0),
        "weight_of_a_convolution": lambda x: F.conv2d(x, HiddenStatistic.apply(x).view(8, 1, 1, 1), groups=8),
        "bias_of_a_convolution": lambda x: F.conv2d(x, constant(8, 8, 1, 1), HiddenStatistic.apply(x).flatten()),
        "weight_of_a_linear_map": lambda x: F.linear(
            x.permute(0, 2, 3, 1), HiddenStatistic.apply(x).flatten().diag()
        ).permute(0, 3, 1, 2),
        "factor_of_a_product": lambda x: (x.permute(0, 2, 3, 1) @ HiddenStatistic.apply(x).flatten().diag()).permute(
            0, 3, 1, 2
        ),
        "weight_of_a_norm": lambda x: F.group_norm(x, 2, HiddenStatistic.apply(x).flatten()),
        "weight_of_an_activation": lambda x: F.prelu(x, HiddenStatistic.apply(x).flatten()),
    }
)
def test_statistic_from_out_of_sight_is_refused(case: Function) -> None:
    assert "by a way that is not traced" in refusal(case, (4, 4))


@cases(
    {
        "chunk": lambda x, w: x * w.chunk(2)[0] + w.chunk(2)[1],
        "split": lambda x, w: F.conv2d(x, w.view(16, 1, 1, 1).split(8)[1], groups=8),
        "unbind": lambda x, w: x * w.view(2, 8, 1, 1).unbind(0)[1],
        "iteration": lambda x, w: sum(x * part for part in w.view(2, 8, 1, 1)),
        "std_mean": lambda x, w: x * torch.std_mean(w)[0],
        "max": lambda x, w: x * w.view(2, 8, 1, 1).max(0).values,
        "list": lambda x, w: x * torch.cat([w[:4], w[12:]]),
    }
)
def test_results_of_parameters_are_constants(case: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Those that come in tuples too."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(constant(16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return case(x, self.weight)

    assert right_or_refused(Scaled(), (4, 4))


def test_parameters_may_be_results() -> None:
    """Those that `torch.func.functional_call` puts in the place of a network's own: of a meta-learner, say."""
    network, grid = Host(Gate()), random_grid()
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return run(SparseExecution(grid), self.network, x)[0]

    own = {name: parameter.detach() for name, parameter in Packed().named_parameters()}
    expected = Packed()(images_of((4, 4)))
    replaced = {name: value * gain for name, value in own.items()}
    found = torch.func.functional_call(Packed(), replaced, (images_of((4, 4)),))
    torch.testing.assert_close(found, expected)
    (along_gain,) = torch.autograd.grad(found.square().sum(), gain)
    of_each = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
    total = sum(
        (g * own[f"network.{name}"]).sum() for (name, _), g in zip(network.named_parameters(), of_each, strict=True)
    )
    torch.testing.assert_close(along_gain, total)


def test_custom_function_is_refused_without_gradients_too() -> None:
    with torch.no_grad():
        refusal(lambda x: x + WithoutFunctions.apply(x), (4, 4))


def test_custom_function_that_writes_its_input() -> None:
    """It gives back the very tensor it was given, which the engine takes for what it was."""
    grid, network = all_visible(), Host(lambda x: InPlace.apply(x * 1) * 2)
    with pytest.raises((UnsupportedOperation, SystemError)):  # torch hides an exception of ours while it wraps its own
        run(SparseExecution(grid), network, images_of((4, 4)))


class Remembers(nn.Module):
    def __init__(self, keep: Function) -> None:
        super().__init__()
        self.keep, self.kept = keep, None

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.kept is None else x + self.kept
        self.kept = self.keep(x)
        return out


@BLOCKS
@cases(
    {
        "map": lambda x: x,
        "detached": lambda x: x.detach() * 0.9,
        "gate": lambda x: x.mean((2, 3), keepdim=True),
    }
)
def test_tensor_of_an_earlier_pass(case: Function, block: tuple[int, int]) -> None:
    network = Host(Remembers(case))
    run(SparseExecution(random_grid()), network, images_of(block))
    with pytest.raises(UnsupportedOperation, match="another pass") as caught:
        run(SparseExecution(random_grid()), network, images_of(block))
    assert "in module 'stages.1'" in str(caught.value)
    assert_names_the_ways_out(str(caught.value))
