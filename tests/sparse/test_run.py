"""What a run leaves behind, passes on and returns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    Apply,
    Function,
    Gate,
    Host,
    cases,
    conv,
    images_of,
    random_grid,
)
from sparkmim.sparse import MaskedDenseExecution, SparseExecution, UnsupportedOperation, dense_fallback, run


def test_execution_follows_the_gradient_mode_of_its_run() -> None:
    """Made with gradients and run without, or the other way round."""
    grid, network = random_grid(), Host(Gate())
    expected = run(SparseExecution(grid), network, images_of((4, 4)))[0].detach()
    made = SparseExecution(grid)
    with torch.no_grad():
        torch.testing.assert_close(run(made, network, images_of((4, 4)))[0], expected)
        made = SparseExecution(grid)
    torch.testing.assert_close(run(made, network, images_of((4, 4)))[0].detach(), expected)


def test_a_refusal_leaves_no_trace() -> None:
    network = Host(nn.Sequential(dense_fallback(conv(1)), Apply(lambda x: x.roll(1, 2))))
    images = images_of((4, 4))
    before = network(images)
    keys = set(network.state_dict())
    for execution in (SparseExecution, MaskedDenseExecution):
        with pytest.raises(UnsupportedOperation):
            run(execution(random_grid()), network, images)
    torch.testing.assert_close(network(images), before)
    assert set(network.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(hasattr(parameter, "_sparkmim_layout") for parameter in network.parameters())
    assert not torch.overrides._get_current_function_mode_stack()


def test_an_error_of_the_network_is_passed_on() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("of the network")

    with pytest.raises(KeyError, match="of the network"):
        run(SparseExecution(random_grid()), Host(broken), images_of((4, 4)))
    assert not torch.overrides._get_current_function_mode_stack()


@cases(
    {
        "constant": lambda x: torch.zeros(2, 8, 8, 12),
        "gate": lambda x: x.mean((2, 3), keepdim=True),
        "vector": lambda x: x.mean((2, 3)),
        "channels_last": lambda x: x.permute(0, 2, 3, 1),
        "space_swapped": lambda x: x.transpose(2, 3),
        "padded": lambda x: F.pad(x, (1, 1, 1, 1)),
        "three_axes": lambda x: x.mean(1),
        "number": lambda x: 1.0,
        "dictionary": lambda x: {"map": x},
        "nothing": lambda x: None,
        "nested": lambda x: [[x]],
    }
)
def test_outputs_that_are_not_maps(case: Function) -> None:
    with pytest.raises((UnsupportedOperation, TypeError)):
        run(SparseExecution(random_grid()), Host(case), images_of((4, 4)))
