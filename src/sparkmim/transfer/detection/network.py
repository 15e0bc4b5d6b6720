"""torchvision's detectors on the pyramid of any backbone: Faster R-CNN, Mask R-CNN, RetinaNet and FCOS.

They keep torchvision's modules and the names of its parameters. Images are normalized and brought to size by the views
that this package makes; the detectors' own preparation is replaced by padding to whole positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ...models.backbone import Backbone
from ..config import DetectionSettings
from .anchors import default_sizes
from .pyramid import Anchors, PyramidBackbone, pyramid_strides, roi_pool

COLUMNS = 6
"""Of a detection: left, top, right, bottom edge, score, number of the class from 1; those of its mask follow."""

MASK_SIDE = 28
"""Positions of a predicted mask along a side, within its box."""

LEAST_SCORE = 0.05
"""Of a detection: torchvision's."""

OVERLAP = {"fcos": 0.6}
"""Intersection over union from which on the lower of two boxes of a class is dropped, where it is not 0.5:
torchvision's."""

OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Sizes of RetinaNet's anchors on a level, relative to the smallest."""

Targets = list[dict[str, Tensor]]


class Padded(GeneralizedRCNNTransform):  # type: ignore[misc] # torchvision is not annotated
    """Pad images, which are normalized and of one size, to whole positions of each map.

    Args:
        divisor: what the sides of padded images are multiples of.
    """

    def __init__(self, divisor: Sequence[int]) -> None:
        super().__init__(1, 1, [0.0], [1.0])
        self.divisor = tuple(divisor)

    def forward(self, images: Any, targets: Targets | None = None) -> tuple[ImageList, Targets | None]:
        """Return padded images and the same targets."""
        size = tuple(images.shape[2:])
        down, across = (-extent % step for extent, step in zip(size, self.divisor, strict=True))
        return ImageList(F.pad(images, (0, across, 0, down)), [size] * len(images)), targets

    def postprocess(self, result: list[dict[str, Tensor]], image_shapes: Any, original: Any) -> list[dict[str, Tensor]]:
        """Return detections as they are: boxes in pixels of the view, masks within their boxes."""
        return result


class Detector:
    """Make a detector of torchvision's take a batch of views: losses in training, else a row for each detection."""

    training: bool
    rows: int

    def forward(
        self, images: Float[Tensor, "batch channel height width"], targets: Targets | None = None
    ) -> dict[str, Tensor] | Float[Tensor, "batch detection column"]:
        """Return the losses by name in training, else detections in the order of their scores.

        Args:
            images: normalized.
            targets: of training, for each image `boxes` `(N, 4)`, `labels` `(N,)` from 1, and `masks` `(N, H, W)` of
                Mask R-CNN; without, as a step is timed, a box in the middle.

        Returns:
            Of detections the columns of :data:`COLUMNS`; those that there are not have the class 0.
        """
        if self.training:
            own = middle_boxes(images, self) if targets is None else targets
            losses: dict[str, Tensor] = super().forward(images, own)  # type: ignore[misc]
            return losses
        return self.as_rows(self.detect(images))

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return torchvision's detections, in evaluation mode."""
        found: list[dict[str, Tensor]] = super().forward(images)  # type: ignore[misc]
        return found

    def as_rows(self, found: Sequence[dict[str, Tensor]]) -> Tensor:
        """Return detections as rows."""
        rows = []
        for one in found:
            order = one["scores"].argsort(descending=True, stable=True)[: self.rows]
            parts = [one["boxes"], one["scores"][:, None], one["labels"][:, None].float()]
            parts += [one["masks"].flatten(1)] if "masks" in one else []
            own = torch.cat(parts, 1)[order]
            rows.append(F.pad(own, (0, 0, 0, self.rows - len(own))))
        return torch.stack(rows)


class FasterRCNNDetector(Detector, FasterRCNN):  # type: ignore[misc]
    """Faster R-CNN (Ren et al., 2015; FPN: Lin et al., 2017)."""


class MaskRCNNDetector(Detector, MaskRCNN):  # type: ignore[misc]
    """Mask R-CNN (He et al., 2017)."""


class RetinaNetDetector(Detector, RetinaNet):  # type: ignore[misc]
    """RetinaNet (Lin et al., 2017)."""


class FCOSDetector(Detector, FCOS):  # type: ignore[misc]
    """FCOS (Tian et al., 2019)."""


def middle_boxes(images: Tensor, module: object) -> Targets:
    """Return targets of a box in the middle of each image."""
    height, width = images.shape[2:]
    box = images.new_tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], dtype=torch.float32)
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64, device=images.device)}
    if isinstance(module, MaskRCNN):
        target["masks"] = torch.ones(1, height, width, dtype=torch.uint8, device=images.device)
    return [target] * len(images)


def is_one_stage(head: str) -> bool:
    """Return whether a head predicts boxes from the maps at once, without proposals."""
    return head in ("retinanet", "fcos")


def build_detector(backbone: Backbone, settings: DetectionSettings, classes: int) -> nn.Module:
    """Return a detector.

    Args:
        backbone: the network.
        settings: head, width, norm and anchors.
        classes: number of them, without the background.

    Raises:
        ValueError: for a backbone of volumes, or anchors that are not one for each level.
    """
    head, one_stage = settings.head, is_one_stage(settings.head)
    strides = pyramid_strides(backbone, one_stage=one_stage)
    sizes = settings.anchor_sizes or default_sizes(strides, head)
    if len(sizes) != len(strides):
        raise ValueError(
            f"--anchor-sizes names {len(sizes)} sizes, and --head {head} predicts from {len(strides)} levels, of "
            f"strides {', '.join(map(str, strides))}; give one for each"
        )
    norm = _norm(settings)
    body = PyramidBackbone(backbone, settings.fpn_width, one_stage=one_stage, norm=norm)
    module = _build(body, settings, strides, sizes, 1 + classes)
    module.transform = Padded(body.divisor)
    module.rows = settings.detections
    for part in predictors(module):
        part.register_forward_hook(_in_float32)
    return module


def _build(
    body: PyramidBackbone, settings: DetectionSettings, strides: Sequence[int], sizes: Sequence[float], outputs: int
) -> Any:
    head, width = settings.head, settings.fpn_width
    overlap = OVERLAP.get(head, 0.5)
    if head == "fcos":
        anchors = Anchors(strides, [(stride,) for stride in strides], (1.0,))
        return FCOSDetector(
            body,
            outputs,
            anchor_generator=anchors,
            score_thresh=LEAST_SCORE,
            nms_thresh=overlap,
            detections_per_img=settings.detections,
        )
    if head == "retinanet":
        anchors = Anchors(strides, [[size * octave for octave in OCTAVES] for size in sizes], settings.anchor_ratios)
        group = partial(nn.GroupNorm, 32) if settings.head_norm == "batch" else None
        predictor = RetinaNetHead(width, anchors.num_anchors_per_location()[0], outputs, norm_layer=group)
        return RetinaNetDetector(
            body,
            outputs,
            anchor_generator=anchors,
            head=predictor,
            score_thresh=LEAST_SCORE,
            nms_thresh=overlap,
            detections_per_img=settings.detections,
        )
    anchors = Anchors(strides, [(size,) for size in sizes], settings.anchor_ratios)
    common: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "box_roi_pool": roi_pool(strides[:-1], 7),
        "box_score_thresh": LEAST_SCORE,
        "box_nms_thresh": overlap,
        "box_detections_per_img": settings.detections,
    }
    inner = 4 * width  # 1024 for torchvision's pyramid of 256 channels
    if settings.head_norm == "batch":
        common["box_head"] = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [inner], norm_layer=nn.BatchNorm2d)
    else:
        common["box_head"] = TwoMLPHead(width * 7**2, inner)
    common["box_predictor"] = FastRCNNPredictor(inner, outputs)
    if head == "faster-rcnn":
        return FasterRCNNDetector(body, **common)
    return MaskRCNNDetector(
        body,
        mask_roi_pool=roi_pool(strides[:-1], MASK_SIDE // 2),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, outputs),
        **common,
    )


def _norm(settings: DetectionSettings) -> Callable[..., nn.Module] | None:
    return nn.BatchNorm2d if settings.head_norm == "batch" and not is_one_stage(settings.head) else None


def nms_overlap(module: Any) -> float:
    """Return the intersection over union from which on a detector drops the lower of two boxes of a class."""
    holder = module.roi_heads if hasattr(module, "roi_heads") else module
    return float(holder.nms_thresh)


def predictors(module: Any) -> list[nn.Module]:
    """Return the modules whose outputs are decoded into boxes, scores and masks."""
    if isinstance(module, (RetinaNet, FCOS)):
        return [module.head]
    own = [module.rpn.head, module.roi_heads.box_predictor]
    return [*own, module.roi_heads.mask_predictor] if isinstance(module, MaskRCNN) else own


def _in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Return outputs in float32: in bfloat16 boxes would be rounded to 2 pixels from 256 on, and to 4 from 512 on."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _in_float32(module, inputs, value) for name, value in outputs.items()}
    return type(outputs)(_in_float32(module, inputs, value) for value in outputs)
