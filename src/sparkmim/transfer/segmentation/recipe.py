"""The recipes of segmentation: for tens to thousands of images or volumes, and the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...data.config import VolumeConfig
from ...models.backbone import Backbone
from ...models.factory import code_of, load_backbone, takes_drop_path
from ...models.own_decoder import find_decoder
from ...training.config import ScheduleConfig
from ...training.recipes import divisible, power_of_two
from ...training.schedule import steps_of
from ..config import NetworkConfig, SegmentationConfig, SegmentationSettings
from ..recipe_parts import Situation, completed, data_of, optimizer_of, run_of

LARGEST_CROP = 128
"""Most voxels of a crop along an axis: nnU-Net's, about."""

VIEWS = (8_000, 60_000)
"""Crops shown in all, at least and at most."""

PAPER_BATCH, PAPER_STEPS, PAPER_WARMUP = 16, 90_000, 1_000
"""Crops of a batch, steps, and steps of warm-up: those of the paper's fine-tuning on COCO, schedule 1x."""


def small_segmentation(situation: Situation) -> SegmentationConfig:
    """Fit everything to tens to thousands of images or volumes.

    - Crops: as large as the encoder has seen, and no larger than most images, in whole positions of the deepest map; of
      volumes up to 128 voxels a side, as most of them are large.
    - Batch size: of images a power of two that makes at least 16 steps an epoch, 2 to 16; of volumes 2.
    - 200 crops of each image, but 8,000 to 60,000 in all; a tenth of them warm-up.
    - AdamW, learning rate 1e-3 at batch size 16 for images and 2 for volumes, as the root of the batch size, cosine;
      layer decay 0.75, none from scratch; gradients clipped at norm 1.
    - Head: the network's own decoder if it has one, else a U-Net's. Cross entropy and Dice.
    - The average of the weights over about the last tenth of the steps is scored and kept.
    """
    volumes = situation.backbone.dims == 3
    images = situation.images
    fitting = divisible(min(2, images) if volumes else power_of_two(images / 16, 2, 16, images), situation.parts)
    batch_size = situation.choice("batch_size", fitting)
    least, most = VIEWS
    epochs = situation.choice("epochs", float(max(1, round(min(most, max(least, 200 * images)) / images))))
    steps = steps_of(epochs, images, batch_size)
    lr = 1e-3 * math.sqrt(batch_size / (2 if volumes else 16))
    decoder = own_decoder(situation)
    data = data_of(situation, crop_scale=(1.0, 1.0))
    config = SegmentationConfig(
        model=NetworkConfig(task=situation.task, model=situation.chosen["model"], in_chans=situation.backbone.in_chans),
        data=replace(data, image_size=crop_size(situation), crop="native"),
        segmentation=SegmentationSettings(head="own" if decoder else "unet"),
        volumes=VolumeConfig(),
        optimizer=optimizer_of(situation, lr=lr, steps=steps),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=epochs / 10),
        run=replace(
            run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps), val_every=max(1.0, epochs / 25)
        ),
    )
    return completed(situation, config)


def paper_segmentation(situation: Situation) -> SegmentationConfig:
    """Return the paper's settings for COCO, on crops: the paper itself has no semantic segmentation.

    90,000 steps of 16 crops; AdamW, learning rates for 16 images and as the batch size. Networks of batch norm: 2.5e-4,
    layer decay 0.6, weight decay 1e-4, 1,000 steps of warm-up. Others: 2e-4, layer decay 0.65, weight decay 0.05, and
    stochastic depth of 0.5 where a network takes it. Gradients are not clipped, images are enlarged by 0.6 to 1.12
    and flipped, and the weights themselves are kept, not their average. From scratch there is no layer decay.

    Source: the official `downstream_d2/configs/coco_R_50_FPN_CONV_1x_moco_adam.yaml` and
    `downstream_mmdet/configs/convnext_spark`. This project's choices: a feature pyramid of 256 channels with cross
    entropy in place of Mask R-CNN, a cosine in place of steps, crops of the size that the encoder has seen.
    """
    images = situation.images
    batch_size = situation.choice("batch_size", divisible(min(PAPER_BATCH, images), situation.parts))
    epochs = situation.choice("epochs", round(PAPER_STEPS * batch_size / images, 2))
    steps = steps_of(epochs, images, batch_size)
    by_batch = situation.normalized_by_batch
    lr, layer_decay, weight_decay = (2.5e-4, 0.6, 1e-4) if by_batch else (2e-4, 0.65, 0.05)
    model = situation.chosen["model"]
    config = SegmentationConfig(
        model=NetworkConfig(
            task=situation.task,
            model=model,
            in_chans=situation.backbone.in_chans,
            drop_path=0.5 if not by_batch and takes_drop_path(model) else 0.0,
        ),
        data=replace(data_of(situation, crop_scale=(1.0, 1.0)), image_size=crop_size(situation), crop="native"),
        segmentation=SegmentationSettings(head="fpn", decoder_width=256, loss="ce", zoom=(0.6, 1.12), jitter=0.0),
        volumes=VolumeConfig(),
        optimizer=replace(
            optimizer_of(situation, lr=lr * batch_size / PAPER_BATCH, steps=steps),
            weight_decay=weight_decay,
            weight_decay_end=weight_decay,
            clip=0.0,
            layer_decay=1.0 if situation.from_scratch else layer_decay,
            ema=0.0,
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=min(epochs / 4, PAPER_WARMUP * batch_size / images)),
        run=replace(
            run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps), val_every=max(1.0, epochs / 25)
        ),
    )
    return completed(situation, config)


def crop_size(situation: Situation) -> tuple[int, ...]:
    """Return the size of crops, a multiple of the network's total stride."""
    asked = situation.chosen.get("image_size")
    if asked is not None:
        return tuple(asked)
    backbone = situation.backbone
    divisor = [math.lcm(*strides) for strides in zip(*backbone.strides, strict=True)]
    largest: Sequence[int] = (LARGEST_CROP,) * 3 if backbone.dims == 3 else situation.view.image_size
    return tuple(
        max(step, min(extent + -extent % step, most // step * step))
        for extent, step, most in zip(situation.extents, divisor, largest, strict=True)
    )


def own_decoder(situation: Situation) -> bool:
    """Return whether the network has a decoder of its own that can be followed."""
    backbone = situation.backbone
    if not backbone.stages:  # it offers its maps as encoders do
        return False
    model = situation.chosen["model"]
    try:
        with code_of(model):
            whole: Backbone = backbone
            if situation.chosen.get("levels") is None:
                whole = load_backbone(model, situation.choice("stages", ()), backbone.in_chans, levels="all")
            find_decoder(whole)
    except ValueError:
        return False
    return True
