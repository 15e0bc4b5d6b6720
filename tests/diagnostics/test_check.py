"""The function `check`: what it takes and returns. What the command prints: test_cli.py."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import sparkmim


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


def test_report_of_a_network_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    report = sparkmim.check(Plain(), stages=["stem", "deep"])
    assert capsys.readouterr() == ("", "")
    assert report.passed
    assert report.model == "Plain"
    assert [(level.channels, level.stride) for level in report.levels] == [(6, (2, 2)), (8, (4, 4))]
    head = 8 * 10 + 10
    assert report.parameters - report.reached == head, "pretraining does not reach the classifier"
    assert str(report).endswith("Plain works on visible patches")


def test_names_modules_and_backbones_are_the_same() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    reports = [sparkmim.check(model) for model in ("test_resnet", network, sparkmim.Backbone(network))]
    assert all(report.passed for report in reports)
    assert len({(report.levels, report.parameters, report.reached) for report in reports}) == 1


def test_a_network_that_returns_other_numbers() -> None:
    class Wrong(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.deep(x - x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3])))

    report = sparkmim.check(Wrong(), stages=["stem", "deep"], precision="float32")
    assert not report.passed
    assert str(report).endswith("Wrong does NOT work on visible patches")


def test_image_size_of_training() -> None:
    """A number or one an axis; compared at that size too."""
    for size, shape in ((32, (1, 32, 32)), ((32, 48), (1, 32, 48))):
        report = sparkmim.check(Plain(), stages=["stem", "deep"], image_size=size)
        assert report.passed
        assert report.properties.results[-1].shape == shape
    model = sparkmim.SparK(sparkmim.Backbone(Plain(), stages=["stem", "deep"]), decoder_width=16)
    shapes = [result.shape for result in model.check(32, batch_size=3, modes=["eval"]).results]
    assert shapes[-2:] == [(1, 32, 32), (3, 8, 8)]
