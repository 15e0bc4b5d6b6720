"""Networks whose strides, sizes or forward passes are odd are measured exactly, or refused with what to do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import conv_norm_relu
from sparkmim import Backbone


def strided(strides: list[int], dims: int, padded: bool) -> nn.Sequential:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    kernels = [2 * (s // 2) + 1 if padded else s for s in strides]
    return nn.Sequential(
        *[
            kind(3 if i == 0 else 2, 2, k, s, (k - 1) // 2 if padded else 0)
            for i, (k, s) in enumerate(zip(kernels, strides, strict=True))
        ]
    )


@pytest.mark.parametrize("seed", range(12))
def test_strides_of_any_factors(seed: int) -> None:
    """Of primes too, which none of a few fixed sizes would divide: 7 * 7 * 9 = 441, or 11 * 11 = 121 beside 120."""
    draw = random.Random(seed)
    dims = draw.choice([1, 1, 2, 2, 3])
    most = {1: 1000, 2: 200, 3: 40}[dims]
    strides: list[int] = []
    while len(strides) < 4:
        factor = draw.choice([2, 3, 4, 5, 7, 9, 11, 13])
        if math.prod(strides) * factor > most:
            break
        strides.append(factor)
    network = strided(strides, dims, padded=draw.random() < 0.5)
    wanted = [(math.prod(strides[: n + 1]),) * dims for n in range(len(strides))]
    assert Backbone(network).strides == wanted
    assert Backbone(network, [str(n) for n in range(len(strides))]).strides == wanted


class Picky(nn.Module):
    """A network of stride 8 that refuses some images, before or after its first map."""

    def __init__(self, refuses: Callable[[tuple[int, ...]], bool]) -> None:
        super().__init__()
        self.one, self.two = conv_norm_relu(3, 4, 4), conv_norm_relu(4, 8, 2)
        self.refuses = refuses

    def forward(self, x: Tensor) -> Tensor:
        if self.refuses(tuple(x.shape[2:])):
            raise RuntimeError(f"wrong input shape {tuple(x.shape[2:])}")
        return self.two(self.one(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "refuses",
    [lambda size: any(s % 32 for s in size), lambda size: any(s % 64 for s in size), lambda size: max(size) > 512],
    ids=["32", "64", "large"],
)
def test_sizes_that_a_network_takes(refuses: Callable[[tuple[int, ...]], bool]) -> None:
    for stages in (None, ["one", "two"]):
        backbone = Backbone(Picky(refuses), stages)
        assert backbone.strides == [(4, 4), (8, 8)]
        assert not backbone.unreached_parameters()
    assert backbone.check(patch_size=64, modes=["eval"], grid=(2, 2)).passed


def test_multiples_that_the_check_cannot_know() -> None:
    backbone = Backbone(Picky(lambda size: any(s % 32 for s in size)))
    with pytest.raises(
        ValueError, match=r"Picky does not run on the images of the check, 24 x 32 .*use a patch size of"
    ):
        backbone.check()
    assert backbone.check(patch_size=32, modes=["eval"]).passed


class Needy(Picky):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return self.two(self.one(x) + other)  # type: ignore[no-any-return]


class Growing(Picky):
    """Makes a part when it first runs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if not hasattr(self, "extra"):
            self.extra = nn.Conv2d(x.shape[1], x.shape[1], 1)
        return self.two(self.extra(x))  # type: ignore[no-any-return]


class Without(Picky):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "square images": (lambda: Picky(lambda size: len(set(size)) > 1), "runs on images of .*but not on others.*wrong"),
    "one size": (lambda: Picky(lambda size: size != (224, 224)), "before it computes a map, so .*pass the part"),
    "two inputs": (lambda: Needy(bool), "does not run on images alone .*missing 1 .*'other'.*wrap it in a module"),
    "parameters made": (lambda: Growing(bool), r"makes parameters in its forward pass \(extra.weight.*run the network"),
    "no gradients": (lambda: Without(bool), "depends on any of its parameters.*no_grad"),
    "exported": (
        lambda: torch.export.export(conv_norm_relu(3, 4, 2).eval(), (torch.zeros(2, 3, 32, 32),)).module(),
        "the network is an exported program.*pass the module that it was made of",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_to_do(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Backbone(make())


def test_what_is_made_when_run_once() -> None:
    network = Growing(bool)
    network(torch.zeros(1, 3, 32, 32))
    assert Backbone(network).check(modes=["train"]).passed


class Formats(Picky):
    """Fails on tensors without values, in a way that does not name them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        self.seen = f"{x[0, 0, 0, 0]:.3f}"
        return self.two(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stages", [None, ["one", "two"]])
def test_errors_of_tensors_without_values_are_not_the_networks(stages: list[str] | None) -> None:
    backbone = Backbone(Formats(bool), stages)
    assert backbone.strides == [(4, 4), (8, 8)]
    assert backbone.notes == []
