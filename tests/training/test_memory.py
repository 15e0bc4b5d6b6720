"""How many images fit into memory: told from as few as can be, for a few large ones may be all that fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparkmim.training.memory import SLACK, STATE_BYTES, images_that_fit, kept_bytes

CHANNELS, SIZE = 4, 16


def network(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(), *more)


@pytest.mark.parametrize("pooled", [False, True], ids=["maps", "one value for each channel"])
def test_as_few_images_as_can_be_are_tried(pooled: bool) -> None:
    model = network(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(CHANNELS)) if pooled else network()
    tried: list[int] = []

    def inputs(images: int) -> tuple[Tensor]:
        tried.append(images)
        return (torch.zeros(images, 3, SIZE, SIZE),)

    memory = 2**24
    fits = images_that_fit(model, inputs, "32", memory)
    assert tried == ([1, 2, 3] if pooled else [1, 2])
    two, eight = (kept_bytes(model, (torch.zeros(n, 3, SIZE, SIZE),), "32") for n in (2, 8))
    each = (eight - two) / 6
    assert each >= 4 * SIZE**2 * (3 + CHANNELS)  # the convolution keeps what it takes, the ReLU what it gives
    state = STATE_BYTES * sum(p.numel() for p in model.parameters()) + SLACK * (two - 2 * each)
    assert fits == int((memory - state) / (SLACK * each)) > 100
    assert images_that_fit(model, inputs, "32", 100) == 0


def test_what_is_no_matter_of_few_images_is_raised() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("of other images")

    with pytest.raises(ValueError, match="of other images"):
        images_that_fit(Refuses(), lambda images: (torch.zeros(images, 3, SIZE, SIZE),), "32", 2**20)
