"""Checkpointed parts are computed again under the same execution, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine_helpers import (
    BLOCKS,
    CHANNELS,
    Gate,
    Host,
    assert_close,
    assert_names_the_ways_out,
    conv,
    images_of,
    random_grid,
    values_and_gradients,
)
from sparkmim.sparse import Execution, MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run


class Checkpointed(nn.Module):
    """`inner` computed again in backward: the module, or a method that calls what it does."""

    def __init__(self, inner: nn.Module, method: bool, **kwargs: Any) -> None:
        super().__init__()
        self.inner, self.method, self.kwargs = inner, method, kwargs

    def called(self, x: Tensor) -> Tensor:
        return self.inner.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.called if self.method else self.inner, x, **self.kwargs)


RECOMPUTED = {
    "gate": Gate,
    "conv": lambda: conv(3, padding=1),
    "depthwise": lambda: conv(7, padding=3, groups=CHANNELS),
    "max_pool": lambda: nn.MaxPool2d(3, 1, 1),
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "group_norm": lambda: nn.GroupNorm(2, CHANNELS, dtype=torch.float64),
    "instance_norm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True, dtype=torch.float64),
    "two_gates": lambda: nn.Sequential(Gate(), nn.Sigmoid(), Gate()),
    "gate_and_conv": lambda: nn.Sequential(Gate(), conv(3, padding=1), Gate()),
}


@pytest.fixture(params=["module", "method"])
def method(request: pytest.FixtureRequest) -> bool:
    return request.param == "method"


@BLOCKS
@pytest.mark.parametrize("inner", RECOMPUTED)
@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_reentrant_checkpoint_is_refused(
    inner: str, execution: Callable[[PatchGrid], Execution], method: bool, block: tuple[int, int]
) -> None:
    network = Host(Checkpointed(RECOMPUTED[inner](), method, use_reentrant=True))
    with pytest.raises(UnsupportedOperation, match="use_reentrant=False") as caught:
        run(execution(random_grid()), network, images_of(block))
    assert_names_the_ways_out(str(caught.value))


@BLOCKS
@pytest.mark.parametrize("inner", RECOMPUTED)
@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_recomputation_is_right(
    inner: str, execution: Callable[[PatchGrid], Execution], method: bool, block: tuple[int, int]
) -> None:
    """In backward the execution is over: what is computed again must not be computed as if nothing were hidden."""
    grid = random_grid()
    part = RECOMPUTED[inner]()

    def found(network: nn.Module) -> list[Tensor]:
        def answer(images: Tensor) -> Tensor:
            return run(execution(grid), network, images)[0]

        return values_and_gradients(answer, images_of(block), network)

    network = Host(Checkpointed(part, method, use_reentrant=False))
    assert_close(found(network), found(Host(part)), "recomputed")


def test_checkpoint_without_gradients() -> None:
    """Nothing is computed again: both kinds do no harm."""
    grid = random_grid()
    with torch.no_grad():
        expected = run(SparseExecution(grid), Host(Gate()), images_of((4, 4)))[0]
        for reentrant in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = Host(Checkpointed(Gate(), False, use_reentrant=reentrant))
                torch.testing.assert_close(run(SparseExecution(grid), network, images_of((4, 4)))[0], expected)
