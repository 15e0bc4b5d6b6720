"""The feature pyramid of any backbone as torchvision's detectors take it, with the strides that it has."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ...models.backbone import Backbone

FINEST_OF_ONE_STAGE = 8
"""Stride of the finest map that detectors of one stage predict from; below it, they have four times the anchors."""

CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16
"""Side of a box, and the stride of the map that it is pooled from: equation 1 of the FPN paper."""


def square_strides(backbone: Backbone) -> list[int]:
    """Return the stride of each map.

    Raises:
        ValueError: if it differs between the axes.
    """
    uneven = [stride for stride in backbone.strides if len(set(stride)) > 1]
    if uneven:
        raise ValueError(
            f"the network's maps have other strides down than across ({uneven[0]}), which detectors have no boxes for; "
            "use another network"
        )
    return [stride[0] for stride in backbone.strides]


def used_levels(backbone: Backbone, *, one_stage: bool) -> list[int]:
    """Return the numbers of the maps that a detector predicts from: all, or from a stride of 8 on."""
    strides = square_strides(backbone)
    coarse = [level for level, stride in enumerate(strides) if stride >= FINEST_OF_ONE_STAGE]
    return coarse if one_stage and coarse else list(range(len(strides)))


def pyramid_strides(backbone: Backbone, *, one_stage: bool) -> list[int]:
    """Return the strides of the levels that a detector predicts from: the maps, and one or two coarser ones."""
    strides = [square_strides(backbone)[level] for level in used_levels(backbone, one_stage=one_stage)]
    last = strides[-1]
    return [*strides, 2 * last, *([4 * last] if one_stage else [])]


class PyramidBackbone(nn.Module):
    """A backbone and torchvision's feature pyramid on its maps, with the names of torchvision's `BackboneWithFPN`.

    Args:
        backbone: the network.
        width: channels of the pyramid.
        one_stage: leave out maps finer than stride 8, and add two coarser levels by convolutions instead of one by
            pooling.
        norm: of the pyramid's convolutions; None for none.
    """

    def __init__(
        self, backbone: Backbone, width: int, *, one_stage: bool, norm: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        self._backbone = backbone
        self._levels = used_levels(backbone, one_stage=one_stage)
        self.body = backbone.module
        self.fpn = FeaturePyramidNetwork(
            [backbone.channels[level] for level in self._levels],
            width,
            LastLevelP6P7(width, width) if one_stage else LastLevelMaxPool(),
            norm,
        )
        self.out_channels = width
        for name in backbone.unreached_parameters():  # several processes would wait for their gradients
            self.body.get_parameter(name).requires_grad_(False)

    @property
    def divisor(self) -> tuple[int, ...]:
        """Return what the sides of images are multiples of."""
        return tuple(math.lcm(*strides) for strides in zip(*self._backbone.strides, strict=True))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels by name, highest resolution first."""
        maps = self._backbone(images)
        chosen = OrderedDict((str(place), maps[level]) for place, level in enumerate(self._levels))
        return dict(self.fpn(chosen))


class Anchors(AnchorGenerator):  # type: ignore[misc] # torchvision is not annotated
    """torchvision's anchors at given strides; its own are the image's size by that of the map, rounded down.

    Args:
        strides: of each level.
        sizes: of the anchors of each level.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, `(N, 4)`."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        grids = [list(features.shape[-2:]) for features in feature_maps]
        everything = torch.cat(self.grid_anchors(grids, strides))
        return [everything] * len(image_list.image_sizes)


class StrideMapper:
    """Choose the level that a box is pooled from: the coarsest whose stride is at most the box's side / 14.

    For strides that double it is torchvision's `LevelMapper`.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        self.strides = tuple(strides)

    def __call__(self, boxes: Sequence[Tensor]) -> Tensor:
        """Return the number of the level of each box."""
        corners = torch.cat(list(boxes))
        sides = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])).sqrt()
        bounds = torch.tensor(self.strides[1:], device=sides.device, dtype=sides.dtype)
        wanted = sides * (CANONICAL_STRIDE / CANONICAL_SIZE)
        return (wanted[:, None] * (1 + 1e-6) >= bounds).sum(1)


def roi_pool(strides: Sequence[int], output_size: int) -> MultiScaleRoIAlign:
    """Return torchvision's pooling of boxes from maps of given strides; its own takes powers of two for granted."""
    pool = MultiScaleRoIAlign([str(place) for place in range(len(strides))], output_size, 2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = StrideMapper(strides)
    return pool
