"""Measure how a mask vanishes in a convolutional network (paper, figures 1 and 3).

Zeros in hidden patches do not persist: each convolution mixes visible neighbors into them, until no layer shows what
was hidden; and they shift the distribution of the input. Neither happens on visible patches only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...models.backbone import Backbone
from ...sparse import PatchGrid, SparseExecution, mask_at, run
from ...utils.hooks import record_calls

NEGLIGIBLE = 1e-6
"""Differences below this share of a map's largest value are rounding."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Output of a convolution at one of its calls, computed densely and sparsely.

    Attributes:
        name: name of the convolution in the network.
        visible: visible positions, at the map's resolution.
        dense: effect of the image on each position when an ordinary network sees zeros in hidden patches: the mean over
            channels of the absolute difference from the output for an image of zeros.
        sparse: mean absolute value over channels when only visible patches are computed; zero elsewhere.
    """

    name: str
    visible: Bool[Tensor, "*size"]
    dense: Float[Tensor, "*size"]
    sparse: Float[Tensor, "*size"]

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
        """Measure over all positions and channels."""
        std, mean = torch.std_mean(values.flatten(), correction=0)
        return cls(values.flatten(), float(mean), float(std))


class Vanishing(NamedTuple):
    """A mask followed through a network.

    Attributes:
        image: `(C, H, W)` or `(C, X, Y, Z)`, normalized.
        visible: `(rows, columns)` or one axis more, True = visible.
        layers: calls of convolutions with a kernel larger than 1, in their order; those whose every position holds a
            visible patch, where patches are smaller than the total stride, are left out.
        full: values of the whole image.
        shown: values of the visible patches, the input of a sparse network.
        zeroed: values of the image with zeros in hidden patches, the input of a dense network.
    """

    image: Float[Tensor, "channel *size"]
    visible: Bool[Tensor, "*grid"]
    layers: list[Layer]
    full: InputValues
    shown: InputValues
    zeroed: InputValues

    def reordered(self, axes: Sequence[int]) -> Vanishing:
        """Return the same with the spatial axes in another order."""
        layers = [
            Layer(layer.name, *(values.permute(*axes) for values in (layer.visible, layer.dense, layer.sparse)))
            for layer in self.layers
        ]
        image = self.image.permute(0, *(1 + axis for axis in axes))
        return self._replace(image=image, visible=self.visible.permute(*axes), layers=layers)


@torch.no_grad()
def vanishing(backbone: Backbone, image: Float[Tensor, "channel *size"], visible: Bool[Tensor, "*grid"]) -> Vanishing:
    """Follow a mask through a network.

    Args:
        backbone: the network, in evaluation mode.
        image: normalized image or volume.
        visible: True = visible; patches and total stride divide the image.

    Raises:
        UnsupportedOperation: if the network does not work on visible patches.
        ValueError: if it has no convolution with a kernel larger than 1, or no map a hidden position.
    """
    images = image.unsqueeze(0)
    grid = PatchGrid(visible.unsqueeze(0), int(visible.sum()))
    zeroed = grid.unpack(grid.pack(images))
    ordinary = _convolutions(backbone, lambda: backbone(zeroed))
    blank = _convolutions(backbone, lambda: backbone(torch.zeros_like(images)))
    packed = _convolutions(backbone, lambda: run(SparseExecution(grid), backbone.module, images, backbone))
    if not ordinary:
        raise ValueError(f"{type(backbone.module).__name__} has no convolution with a kernel larger than 1")
    layers = []
    for (name, dense), (_, nothing), (_, patches) in zip(ordinary, blank, packed, strict=True):
        shown = mask_at(visible.unsqueeze(0), dense.shape[2:])[0]
        if shown.all():
            continue
        carried = (dense - nothing).abs().mean(1)[0]
        layers.append(Layer(name, shown, carried, grid.at(dense.shape[2:]).unpack(patches).abs().mean(1)[0]))
    if not layers:
        raise ValueError(
            "no map has a position that is hidden; use larger patches (--patch-size) or a larger --mask-ratio"
        )
    return Vanishing(
        image, visible, layers, InputValues.of(images), InputValues.of(grid.pack(images)), InputValues.of(zeroed)
    )


def open_branches(network: nn.Module) -> None:
    """Enable the residual branches of an untrained network.

    Some networks initialize a branch to almost zero, by a last norm's weight of 0 or a layer scale of 1e-6. Such
    vectors are set to 1, as the figure would otherwise not show these branches.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and not name.endswith("bias") and parameter.abs().max() < 1e-3:
                parameter.fill_(1.0)


def _convolutions(backbone: Backbone, run: Callable[[], object]) -> list[tuple[str, Tensor]]:
    """Return names and outputs of convolutions with a kernel larger than 1, in the order of their calls."""
    convolutions = (
        (name, module)
        for name, module in backbone.module.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and max(module.kernel_size) > 1
    )
    # Prepended, because the backbone's own hook of the last stage ends the pass.
    with record_calls(convolutions, lambda call: (call.name, call.output.clone()), prepend=True) as outputs:
        run()
    return outputs
