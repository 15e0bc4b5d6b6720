"""What eager refuses is refused compiled, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import UnsupportedOperation


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.down, self.function = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.stem(x)))


def model(function: Callable[[Tensor], Tensor]) -> SparK:
    torch.manual_seed(0)
    return SparK(Backbone(Between(function), stages=["stem", "down"]), decoder_width=16)


REFUSED = {
    "product with a size": lambda x: x * x.shape[2],
    "mean by hand": lambda x: x + x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]),
    "branch": lambda x: x * 2 if x.shape[2] > 12 else x,
    "branch on the batch": lambda x: x * 2 if len(x) == 3 else x,
    "no rule": lambda x: x.roll(1, 2),
}


def never_compiled(graph: object, inputs: object) -> None:
    raise AssertionError("compiled what should have been refused")


@pytest.fixture(autouse=True)
def no_memory() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused_or_right(function: Callable[[Tensor], Tensor]) -> None:
    """Right where Dynamo itself can be: never another number than eagerly."""
    images, visible = torch.randn(3, 3, 64, 64), random_visible(3, (8, 8), 0.6)
    eager, compiled = model(function).eval(), model(function).eval()
    compiled.compile(backend="eager")
    with torch.no_grad():
        try:
            wanted = eager(images, visible).loss
        except UnsupportedOperation:
            with pytest.raises(UnsupportedOperation):
                compiled(images, visible)
            return
        try:
            found = compiled(images, visible).loss
        except UnsupportedOperation:
            return
    torch.testing.assert_close(found, wanted)


def test_each_shape_is_checked() -> None:
    """A branch that only large maps take is found when they come."""
    compiled = model(lambda x: x * 2 if x.shape[2] > 12 else x).eval()
    compiled.compile(backend=never_compiled)
    with torch.no_grad():
        with pytest.raises(UnsupportedOperation, match="decides by the sizes of its maps"):
            compiled(torch.randn(2, 3, 64, 64))


def test_nothing_is_changed_by_the_eager_passes() -> None:
    made = SparK(Backbone(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(0.1))), decoder_width=16)
    made._compiled_call_impl = None
    made.compile(backend="eager")
    made._compiled_call_impl.compiled = lambda images: None  # type: ignore[union-attr, attr-defined]
    state, random = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    made(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in made.state_dict().items())
