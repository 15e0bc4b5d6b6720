"""Recipes of fine-tuning: functions from a situation to a complete configuration. The user's choices take precedence.

A recipe of your own is a function of the same kind in a file, `--recipe FILE.py:FUNCTION`; it may start from one here:

```python
from sparkmim.transfer.recipes import Situation, small_data

def gentle(situation: Situation):
    return small_data(situation).replace({"layer_decay": 0.5})
```
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..models.factory import takes_drop_path
from ..training.config import ScheduleConfig
from ..training.recipes import divisible, power_of_two
from ..training.schedule import steps_of
from .config import (
    CLASSIFICATION,
    DETECTION,
    INSTANCE,
    SEGMENTATION,
    AugmentConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    LossConfig,
    NetworkConfig,
    TransferConfig,
)
from .detection.recipe import paper_detection, small_detection
from .recipe_parts import Situation as Situation
from .recipe_parts import completed, data_of, optimizer_of, run_of
from .segmentation.recipe import paper_segmentation, small_segmentation

Recipe = Callable[[Situation], TransferConfig]


def small_data(situation: Situation) -> TransferConfig:
    """Fit everything to hundreds to thousands of images.

    - Batch size: a power of two that makes at least 16 steps an epoch, 8 to 128, or what the processes can share below
      it.
    - Epochs: 100,000 views in all, but every image at least 30 and at most 200 times; a tenth of them warm-up.
    - AdamW, learning rate 3e-3 (networks of batch norm) or 1e-3 (others) at batch size 64 and as the root of the batch
      size, cosine; layer decay 0.75, none from scratch; gradients clipped at norm 1. 3e-3 against 1e-3 is worth 6.4
      points from an encoder and 4.6 from scratch, to a ResNet-18 of 614 images (docs/results/clothing.md).
    - Random resized crops from a third of the area on, flips, label smoothing 0.1.
    - The average of the weights over about the last tenth of the steps is scored and kept.

    For segmentation see :func:`~sparkmim.transfer.segmentation.recipe.small_segmentation`, for detection
    :func:`~sparkmim.transfer.detection.recipe.small_detection`.
    """
    if situation.task in (DETECTION, INSTANCE):
        return small_detection(situation)
    if situation.task == SEGMENTATION:
        return small_segmentation(situation)
    batch_size = situation.choice(
        "batch_size", divisible(power_of_two(situation.images / 16, 8, 128, situation.images), situation.parts)
    )
    epochs = situation.choice("epochs", float(min(200, max(30, round(100_000 / situation.images)))))
    steps = steps_of(epochs, situation.images, batch_size)
    lr = 3e-3 if situation.normalized_by_batch else 1e-3
    config = _config(
        situation,
        model=NetworkConfig(task=situation.task, model=situation.chosen["model"], in_chans=situation.backbone.in_chans),
        data=data_of(situation, crop_scale=(0.35, 1.0)),
        optimizer=optimizer_of(situation, lr=lr * math.sqrt(batch_size / 64), steps=steps),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=epochs / 10),
        run=run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps),
    )
    return completed(situation, config)


def paper(situation: Situation) -> TransferConfig:
    """Return the paper's settings for ImageNet, by the kind of norm and the number of parameters instead of the name.

    Source: the official `downstream_imagenet/arg.py`, `data.py`, `util.py`. Published ImageNet top-1: ResNet-50 80.6,
    ResNet-200 83.1, ConvNeXt-B 84.8. Three deviations make what users report to diverge (LAMB for ResNet-50, learning
    rate 1.6e-2) begin gently: gradients are clipped at norm 1 (the official code does not clip), LAMB corrects the bias
    of its averages, and it adapts the step only where it decays weights, as timm's does by default. Batches of other
    sizes scale the learning rate, and warm-up is never shorter than 100 steps or a quarter of the run. The average of
    the weights warms up too, and images are scored to their edge (the official code cuts 5% off).

    For detection see :func:`~sparkmim.transfer.detection.recipe.paper_detection`, for segmentation
    :func:`~sparkmim.transfer.segmentation.recipe.paper_segmentation`.

    Raises:
        ValueError: for another task than these.
    """
    if situation.task in (DETECTION, INSTANCE):
        return paper_detection(situation)
    if situation.task == SEGMENTATION:
        return paper_segmentation(situation)
    if situation.task != CLASSIFICATION:
        raise ValueError(
            f"recipe paper is for classification, segmentation and detection, not for --task {situation.task}; use "
            "small-data"
        )
    small = situation.millions <= 35
    if situation.normalized_by_batch:
        batch_size = situation.choice("batch_size", divisible(min(2048, situation.images), situation.parts))
        epochs, warmup, base, kind, decay = 300.0, 5.0, 2e-3 if small else 1e-3, "lamb", 0.02
        layer_decay, mixup, repeats, drop_path = 0.7 if small else 0.8, 0.1, 1, 0.05 if small else 0.2
    else:
        size = sum(situation.millions > limit for limit in (70, 140))
        batch_size = situation.choice("batch_size", divisible(min(4096, situation.images), situation.parts))
        epochs, warmup, base, kind, decay = (
            (400.0, 400.0, 200.0)[size],
            (20.0, 20.0, 10.0)[size],
            (2e-4, 1e-4, 1e-4)[size],
            "adamw",
            (0.01, 0.01, 0.02)[size],
        )
        layer_decay, mixup, repeats, drop_path = 0.7, 0.8, 3, (0.3, 0.4, 0.5)[size]
    epochs = situation.choice("epochs", epochs)
    steps = steps_of(epochs, situation.images, batch_size)
    warmup = min(epochs / 4, max(warmup, 100 * batch_size / situation.images))
    config = FinetuneConfig(
        model=NetworkConfig(
            model=situation.chosen["model"],
            in_chans=situation.backbone.in_chans,
            drop_path=drop_path if takes_drop_path(situation.chosen["model"]) else 0.0,
        ),
        data=data_of(situation, crop_scale=(0.08, 1.0)),
        augment=AugmentConfig(policy="trivial", erasing=0.25, mixup=mixup, cutmix=1.0, repeats=repeats),
        objective=LossConfig(loss="binary" if kind == "lamb" else "cross-entropy"),
        optimizer=FinetuneOptimizerConfig(
            optimizer="lamb" if kind == "lamb" else "adamw",
            lr=base * batch_size / 256,
            betas=(0.9, 0.999),
            eps=1e-6 if kind == "lamb" else 1e-8,
            weight_decay=decay,
            weight_decay_end=decay,
            clip=1.0,
            layer_decay=1.0 if situation.from_scratch else layer_decay,
            ema=0.9999,
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=warmup),
        run=run_of(situation, batch_size=batch_size, epochs=epochs, steps=steps),
    )
    return completed(situation, config)


RECIPES: dict[str, Recipe] = {"small-data": small_data, "paper": paper}


def _config(situation: Situation, **groups: Any) -> TransferConfig:
    """Return a configuration of some groups; the augmentations and loss of a classification are the defaults."""
    if situation.task == CLASSIFICATION:
        return FinetuneConfig(augment=AugmentConfig(), objective=LossConfig(), **groups)
    return TransferConfig(**groups)
