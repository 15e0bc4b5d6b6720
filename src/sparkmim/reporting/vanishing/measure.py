"""What becomes of a mask in a convolutional network (paper, figures 1 and 3).

Hidden pixels that are merely set to zero do not stay hidden: every convolution lets visible neighbours flow into them,
until no layer knows what was hidden; and the zeros shift the distribution of the input. On visible patches alone
neither happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...models.backbone import Backbone
from ...sparse import PatchGrid, SparseExecution, mask_at, run
from ...utils.hooks import record_calls

NEGLIGIBLE = 1e-6
"""Share of a map's largest value below which a difference is rounding."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The map that a convolution gives at one of its uses, under both kinds of convolution.

    Attributes:
        name: of the convolution in the network.
        visible: where patches are visible, at the map's resolution.
        dense: how much of the image each position carries when an ordinary network sees the image with zeros: the mean
            over channels of the absolute difference from the map of an image of zeros.
        sparse: the mean absolute value when only visible patches are computed; zero elsewhere.
    """

    name: str
    visible: Bool[Tensor, "height width"]
    dense: Float[Tensor, "height width"]
    sparse: Float[Tensor, "height width"]

    @property
    def dense_share(self) -> float:
        """Share of the hidden positions that visible pixels have reached under dense convolution."""
        return self._reached(self.dense)

    @property
    def sparse_share(self) -> float:
        """Share of the hidden positions that are not zero under sparse convolution."""
        return self._reached(self.sparse)

    def _reached(self, values: Tensor) -> float:
        return float((values > NEGLIGIBLE * values.max())[~self.visible].float().mean())


class InputValues(NamedTuple):
    """Values of the network's input, and their mean and standard deviation."""

    values: Float[Tensor, "value"]
    mean: float
    std: float

    @classmethod
    def of(cls, values: Tensor) -> InputValues:
        """Measured, over all positions and channels."""
        std, mean = torch.std_mean(values.flatten(), correction=0)
        return cls(values.flatten(), float(mean), float(std))


class Vanishing(NamedTuple):
    """The fate of one image's mask.

    Attributes:
        image: `(C, H, W)`, in the network's normalised space.
        visible: `(rows, columns)`, True = visible.
        layers: one for each convolution that reaches beyond a position, in the order in which they run.
        full: values of the whole image.
        shown: values of the visible patches alone, which a sparse network sees.
        zeroed: values of the image with zeros where it is hidden, which a dense network sees.
    """

    image: Float[Tensor, "channel height width"]
    visible: Bool[Tensor, "rows columns"]
    layers: list[Layer]
    full: InputValues
    shown: InputValues
    zeroed: InputValues


@torch.no_grad()
def vanishing(
    backbone: Backbone, image: Float[Tensor, "channel height width"], visible: Bool[Tensor, "rows columns"]
) -> Vanishing:
    """Follow a mask through a network.

    Args:
        backbone: the network, in evaluation mode.
        image: in the network's normalised space.
        visible: True = visible; its grid divides the image, as the total stride does.

    Raises:
        UnsupportedOperation: if the network does not work on visible patches.
        ValueError: if it has no convolution that reaches beyond a position.
    """
    images = image.unsqueeze(0)
    grid = PatchGrid(visible.unsqueeze(0), int(visible.sum()))
    zeroed = grid.unpack(grid.pack(images))
    ordinary = _convolutions(backbone, lambda: backbone(zeroed))
    blank = _convolutions(backbone, lambda: backbone(torch.zeros_like(images)))
    packed = _convolutions(backbone, lambda: run(SparseExecution(grid), backbone.module, images, backbone))
    if not ordinary:
        raise ValueError(f"{type(backbone.module).__name__} has no convolution that reaches beyond a position")
    layers = []
    for (name, dense), (_, nothing), (_, patches) in zip(ordinary, blank, packed, strict=True):
        shown = mask_at(visible.unsqueeze(0), dense.shape[2:])[0]
        carried = (dense - nothing).abs().mean(1)[0]
        layers.append(Layer(name, shown, carried, grid.at(dense.shape[2:]).unpack(patches).abs().mean(1)[0]))
    return Vanishing(
        image, visible, layers, InputValues.of(images), InputValues.of(grid.pack(images)), InputValues.of(zeroed)
    )


def open_branches(network: nn.Module) -> None:
    """Let the residual branches of an untrained network count.

    Some networks begin with branches that are switched off, for training to switch on: the last norm's weight is 0, or
    a layer scale 1e-6. Such vectors are set to 1; nothing would be seen of those branches otherwise.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and not name.endswith("bias") and parameter.abs().max() < 1e-3:
                parameter.fill_(1.0)


def _convolutions(backbone: Backbone, run: Callable[[], object]) -> list[tuple[str, Tensor]]:
    """Names and outputs of the convolutions with a kernel larger than 1 that a pass runs, in their order."""
    convolutions = (
        (name, module)
        for name, module in backbone.module.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and max(module.kernel_size) > 1
    )
    # Prepended, because the backbone's own hook of the last stage ends the pass.
    with record_calls(convolutions, lambda call: (call.name, call.output.clone()), prepend=True) as outputs:
        run()
    return outputs
