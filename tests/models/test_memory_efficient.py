"""ReLU6 that keeps one map, and activations that are computed again in backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sparkmim import SparK, random_visible
from sparkmim.models.config import DecoderBlock
from sparkmim.models.memory_efficient import checkpointed, relu6

# --- ReLU6 ----------------------------------------------------------------------------------------------------------


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


def test_relu6_equals_torchs() -> None:
    number, value, grad = kept(relu6)
    _, wanted, wanted_grad = kept(F.relu6)
    assert number == 1
    assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)
    assert_close(grad, wanted_grad, rtol=0, atol=0, equal_nan=True)


def test_relu6_works_in_place() -> None:
    x = torch.randn(5, requires_grad=True) * 9
    y = relu6(x)
    assert y.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("ordinary", [False, True])
def test_torchs_relu6_keeps_a_copy(ordinary: bool) -> None:
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


# --- checkpointed ---------------------------------------------------------------------------------------------------


class Part(nn.Module):
    """Norm, activation, convolution, and how often the latter two have run."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.conv = nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 3, padding=1)
        self.calls = {"act": 0, "conv": 0}
        self.act.register_forward_hook(lambda *_: self.count("act"))
        self.conv.register_forward_hook(lambda *_: self.count("conv"))

    def count(self, name: str) -> None:
        self.calls[name] += 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.act(self.norm(x)))
        return out


def kept_bytes(function: object, x: Tensor) -> tuple[int, Tensor]:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(x)  # type: ignore[operator]
    return sum(sizes.values()), out


def test_values_gradients_and_statistics_are_the_same() -> None:
    torch.manual_seed(0)
    plain = Part().double()
    again = copy.deepcopy(plain)
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    wanted, ours = plain(x), checkpointed(again.forward, y, again.norm)
    for out in (wanted, ours):
        (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    assert torch.equal(ours, wanted)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(y.grad, x.grad)
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)
    assert again.norm.num_batches_tracked == 1


def test_less_is_kept_and_the_convolution_runs_once() -> None:
    part = Part()
    x = torch.randn(8, 4, 32, 32, requires_grad=True)
    plain, _ = kept_bytes(part, x)
    less, out = kept_bytes(lambda x: checkpointed(part.forward, x, part.norm), x)
    assert less < 0.5 * plain
    part.calls = {"act": 0, "conv": 0}
    out.sum().backward()
    assert part.calls == {"act": 1, "conv": 0}


def test_without_gradients() -> None:
    part = Part().eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(checkpointed(part.forward, x, part.norm), part(x))


# --- SparK.set_memory_efficient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["unet", "convnext"])
def test_a_decoder_that_keeps_its_maps_gives_the_same_numbers(block: DecoderBlock) -> None:
    torch.manual_seed(0)
    model = SparK(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 4, 4)), decoder_width=32, decoder_block=block)
    model = model.double()
    images, visible = torch.randn(2, 3, 32, 32, dtype=torch.float64), random_visible(2, (2, 2), 0.5)
    found = []
    for enable in (True, False):
        twin = copy.deepcopy(model)
        twin.set_memory_efficient(enable)
        size, loss = kept_bytes(lambda x, twin=twin: twin(x, visible).loss, images)
        loss.backward()
        gradients = [p.grad for p in twin.parameters() if p.grad is not None]
        found.append((size, loss, gradients, [b.clone() for b in twin.buffers()]))
    (less, loss, gradients, buffers), (more, *others) = found
    assert more > less
    assert_close([loss, gradients, buffers], others, rtol=0, atol=0)
