"""Recipes of detection: for tens to thousands of images, and the paper's for COCO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...training.config import ScheduleConfig
from ...training.recipes import divisible, power_of_two
from ...training.schedule import steps_of
from ..config import INSTANCE, DetectionConfig, DetectionSettings, NetworkConfig
from ..recipe_parts import Situation, completed, data_of, optimizer_of, run_of
from .anchors import RATIOS, anchor_ratios, anchor_sizes, default_sizes
from .network import is_one_stage
from .pyramid import pyramid_strides

LONGEST, LONGEST_OF_PAPER = 640, 1088
"""Pixels of the longer side of a view, at most. The paper's shorter side of 800 is 1,067 of COCO's 640 x 480 pixels."""

VIEWS = (5_000, 60_000)
"""Views shown in all, at least and at most."""

COCO_IMAGES, PAPER_STEPS, PAPER_BATCH = 118_287, 90_000, 16
"""Images of COCO 2017 to train on, and the paper's schedule 1x."""


def small_detection(situation: Situation) -> DetectionConfig:
    """Fit everything to tens to thousands of images.

    - Views: the whole image fits in, its longer side at most 640 pixels, enlarged to them if it is smaller by less than
      half; of the images' aspect ratio if it is the same for most.
    - Batch size: a power of two that makes at least 16 steps an epoch, 2 to 16.
    - 100 views of each image, but 5,000 to 60,000 in all; a tenth of them warm-up.
    - AdamW, learning rate 5e-4 at batch size 16 and as the root of the batch size, cosine; layer decay 0.75, none from
      scratch; gradients clipped at norm 1.
    - Anchors by the strides and the boxes of the training images.
    - The average of the weights over about the last tenth of the steps is scored and kept.
    """
    images = situation.images
    batch_size = situation.choice("batch_size", divisible(power_of_two(images / 16, 2, 16, images), situation.parts))
    least, most = VIEWS
    epochs = situation.choice("epochs", float(max(1, round(min(most, max(least, 100 * images)) / images))))
    steps = steps_of(epochs, images, batch_size)
    size = view_size(situation, LONGEST)
    config = DetectionConfig(
        model=_network(situation),
        data=replace(data_of(situation, crop_scale=(1.0, 1.0)), image_size=size, crop="native"),
        detection=_settings(situation, size, zoom=(0.6, 1.6), jitter=0.25),
        optimizer=optimizer_of(situation, lr=5e-4 * math.sqrt(batch_size / 16), steps=steps),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=epochs / 10),
        run=replace(
            run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps), val_every=max(1.0, epochs / 25)
        ),
    )
    return completed(situation, config)


def paper_detection(situation: Situation) -> DetectionConfig:
    """Return the paper's settings for COCO, schedule 1x: 90,000 steps of 16 images, 12.2 epochs.

    Source: the official `downstream_d2/configs/coco_R_50_FPN_CONV_1x_moco_adam.yaml`, `lr_decay.py`. AdamW, learning
    rate 2.5e-4 for 16 images and as the batch size, layer decay 0.6, weight decay 1e-4, 1,000 steps of warm-up,
    gradients not clipped, norms in the pyramid and a box head of four convolutions, images of 60% to 112% of the size
    in which they are scored. Published, ResNet-50, Mask R-CNN: 41.6 box AP, 37.7 mask AP.

    Deviations: the learning rate falls as a cosine instead of twice by four; views are of one size, into which images
    are fitted; statistics of batch norms are those of training, not computed anew before each evaluation; the mask head
    has no norms; detections are scaled back from it.
    """
    images = situation.images
    batch_size = situation.choice("batch_size", divisible(min(PAPER_BATCH, images), situation.parts))
    epochs = situation.choice("epochs", round(PAPER_STEPS * PAPER_BATCH / COCO_IMAGES, 2))
    steps = steps_of(epochs, images, batch_size)
    size = view_size(situation, LONGEST_OF_PAPER)
    optimizer = optimizer_of(situation, lr=2.5e-4 * batch_size / PAPER_BATCH, steps=steps)
    config = DetectionConfig(
        model=_network(situation),
        data=replace(data_of(situation, crop_scale=(1.0, 1.0)), image_size=size, crop="native"),
        detection=replace(
            _settings(situation, size, zoom=(0.6, 1.12), jitter=0.0, by_boxes=False),
            head_norm=situation.choice("head_norm", "none" if situation.choice("head", "") == "fcos" else "batch"),
        ),
        optimizer=replace(
            optimizer,
            weight_decay=1e-4,
            weight_decay_end=1e-4,
            clip=0.0,
            layer_decay=1.0 if situation.from_scratch else 0.6,
            ema=0.0,
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=min(epochs / 4, 1000 * batch_size / images)),
        run=replace(run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps), val_every=1.0),
    )
    return completed(situation, config)


def _network(situation: Situation) -> NetworkConfig:
    return NetworkConfig(task=situation.task, model=situation.chosen["model"], in_chans=situation.backbone.in_chans)


def _settings(
    situation: Situation, size: Sequence[int], *, zoom: tuple[float, float], jitter: float, by_boxes: bool = True
) -> DetectionSettings:
    """Return head and anchors: by the boxes of the training images, or as torchvision has them."""
    head = situation.choice("head", "mask-rcnn" if situation.task == INSTANCE else "faster-rcnn")
    strides = pyramid_strides(situation.backbone, one_stage=is_one_stage(head))
    boxes: Any = situation.targets["boxes"]
    sizes = default_sizes(strides, head)
    ratios: tuple[float, ...] = (1.0,) if head == "fcos" else RATIOS
    if by_boxes and situation.extents:
        sizes = anchor_sizes(boxes, strides, head, situation.extents, size)
        ratios = anchor_ratios(boxes, head)
    return DetectionSettings(head=head, anchor_sizes=sizes, anchor_ratios=ratios, zoom=zoom, jitter=jitter)


def view_size(situation: Situation, longest: int) -> tuple[int, ...]:
    """Return height and width of views, multiples of the network's total stride.

    Images of most aspect ratios fit in with their longer side: a view of landscapes is wide, that of both is square.
    """
    asked = situation.chosen.get("image_size")
    if asked is not None:
        return tuple(asked)
    steps = [math.lcm(*strides) for strides in zip(*situation.backbone.strides, strict=True)]
    extents = situation.extents or (longest, longest)
    side = longest if 2 * max(extents) > longest else 2 * max(extents)
    low, high = situation.targets["boxes"]["aspects"]
    sides = (side * min(1.0, high), side * min(1.0, 1 / low))
    return tuple(max(step, -(-round(extent) // step) * step) for extent, step in zip(sides, steps, strict=True))
