"""Modules that cannot be traced are refused by their path before anything runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparkmim import Backbone
from sparkmim.sparse import dense_fallback

warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def traced(module: nn.Module, *shape: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, torch.zeros(shape))


def stem() -> nn.Module:
    return nn.Conv2d(3, 8, 4, 4)


def down() -> nn.Module:
    return nn.Conv2d(8, 8, 3, 2, 1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a scripted part": (lambda: nn.Sequential(stem(), scripted(down())), "module '1' of Sequential is a scripted"),
    "a traced part": (lambda: nn.Sequential(stem(), traced(down(), 1, 8, 4, 4)), "module '1' of Sequential"),
    "a part of a part": (lambda: nn.Sequential(stem(), nn.Sequential(nn.ReLU(), scripted(down()))), "module '1.1'"),
    "all of it": (lambda: scripted(nn.Sequential(stem(), down())), "the network is a scripted or traced one"),
    "a lazy part": (lambda: nn.Sequential(stem(), nn.LazyConv2d(8, 3, 2, 1)), "parameter '1.weight' of Sequential"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("stages", [None, ["0", "1"]], ids=["found", "named"])
@pytest.mark.parametrize(("make", "named"), NETWORKS.values(), ids=NETWORKS.keys())
def test_refused_by_path(make: Callable[[], nn.Module], named: str, stages: list[str] | None) -> None:
    with pytest.raises(ValueError, match=named):
        Backbone(make(), stages)


class Calls(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.part(x)


def test_remedies_work() -> None:
    on_the_whole_map = nn.Sequential(stem(), dense_fallback(Calls(scripted(nn.Conv2d(8, 8, 3, 2, 1)))))
    assert Backbone(on_the_whole_map).check(grid=(2, 3), modes=["train"]).results[0].passed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(stem(), nn.LazyConv2d(8, 3, 2, 1))
    lazy(torch.zeros(1, 3, 32, 32))
    assert Backbone(lazy).check(grid=(2, 3), modes=["train"]).passed
