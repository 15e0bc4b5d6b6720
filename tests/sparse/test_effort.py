"""The check before a pretraining on volumes takes some seconds, and finds what the thorough one finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparkmim import Backbone
from sparkmim.sparse import CheckReport, effort
from sparkmim.sparse.effort import WAYS, affordable


def network(dims: int = 3) -> nn.Sequential:
    conv: Any = nn.Conv3d if dims == 3 else nn.Conv2d
    norm: Any = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
    pairs = ((1, 4), (4, 8))
    return nn.Sequential(*(nn.Sequential(conv(a, b, 3, 2, 1), norm(b), nn.ReLU()) for a, b in pairs))


def asked(backbone: Backbone) -> dict[str, Any]:
    patch_size = backbone.resolve_patch_size(None)
    known: dict[str, Any] = {"stride": backbone.strides[-1], "in_chans": backbone.in_chans}
    return affordable(backbone.module, backbone, patch_size=patch_size, **known)


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_less_time_is_less_precision_and_fewer_patches(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(network(), in_chans=1)
    assert asked(backbone) == {}
    work = effort._operations(backbone.module, backbone, [8, 8, 8], 1)
    dtype, units = WAYS[way]
    cost = 2 * effort.PASSES * units[0] * units[1] * units[2] * work / 8 / effort.RATES[dtype]
    monkeypatch.setattr(effort, "SECONDS", 1.001 * cost)
    assert asked(backbone) == ({} if way == 0 else {"dtype": dtype, "grid": units})
    report = backbone.check(modes=["train"], quick=True)
    assert report.passed
    assert report.precision == dtype
    monkeypatch.setattr(effort, "SECONDS", 0.0)
    assert asked(backbone) == {"dtype": torch.float32, "grid": (2, 2, 3)}, "the least there is"


def test_images_are_checked_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "SECONDS", 0.0)
    assert asked(Backbone(network(2), in_chans=1)) == {}


@pytest.mark.parametrize("passed", [False, True])
def test_what_fails_is_checked_again_in_float64(passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "SECONDS", 0.0)
    given: list[dict[str, Any]] = []

    def check(*_: Any, **settings: Any) -> CheckReport:
        given.append(settings)
        return CheckReport() if len(given) == 2 or passed else Failed()

    monkeypatch.setattr("sparkmim.models.backbone.check", check)
    assert Backbone(network(), in_chans=1).check(quick=True).passed
    assert [settings["dtype"] for settings in given] == [torch.float32, torch.float64][: 1 if passed else 2]
    assert {settings["grid"] for settings in given} == {(2, 2, 3)}


class Failed(CheckReport):
    passed = False
