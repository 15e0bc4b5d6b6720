"""A network of your own for every command.

    sparkmim check examples/custom_network.py:network
    sparkmim pretrain --model examples/custom_network.py:network --data FOLDER --output runs/custom

The command line calls the function without arguments. It returns a module, whose feature maps are found by running it,
or a `sparkmim.Backbone`, which names them.
"""

from __future__ import annotations

from torch import Tensor, nn

import sparkmim


class Block(nn.Module):
    """A residual block with a squeeze-excite gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return x + y * self.gate(y)


class Network(nn.Module):
    """Four stages of strides 4 to 32, and a classifier, which pretraining leaves untrained."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 192), depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        before, stride = 3, 4
        for width in widths:
            down = nn.Conv2d(before, width, stride, stride)
            self.stages.append(nn.Sequential(down, *(Block(width) for _ in range(depth))))
            before, stride = width, 2
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))


def network() -> sparkmim.Backbone:
    """Build the network, and name the modules whose outputs are its feature maps."""
    return sparkmim.Backbone(Network(), stages=[f"stages.{number}" for number in range(4)])
