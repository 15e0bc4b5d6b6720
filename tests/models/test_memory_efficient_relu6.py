"""ReLU6 that keeps one map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sparkmim.models.memory_efficient import relu6


def kept(function: Callable[[Tensor], Tensor]) -> tuple[int, Tensor, Tensor]:
    """Maps kept for backward, the result and the gradient, of a map that function may write over."""
    x = torch.tensor([-1.0, 0.0, 1e-6, 3.0, 6.0, 7.0, float("nan")], dtype=torch.float64, requires_grad=True)
    places: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        places.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = function(x + 0) * 2  # the product keeps nothing
    y.backward(torch.arange(1.0, 8.0, dtype=torch.float64))
    assert x.grad is not None
    return len(places), y, x.grad


def test_numbers_are_those_of_torch() -> None:
    number, value, grad = kept(relu6)
    _, wanted, wanted_grad = kept(F.relu6)
    assert number == 1
    assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)
    assert_close(grad, wanted_grad, rtol=0, atol=0, equal_nan=True)


def test_nothing_is_copied() -> None:
    x = torch.randn(5, requires_grad=True) * 9
    y = relu6(x)
    assert y.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("ordinary", [False, True])
def test_it_is_needed(ordinary: bool) -> None:
    """With torch's own in place, the convolution behind keeps the result and the activation a copy of its input."""
    places: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        places.add(tensor.untyped_storage().data_ptr())
        return tensor

    x, weight = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = F.relu6(x + 0, inplace=True) if ordinary else relu6(x + 0)
        F.conv2d(y, weight)
    assert len(places - {weight.data_ptr()}) == 1 + ordinary
