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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..data.config import ViewConfig, files_of
from ..models.factory import require_image_size, takes_drop_path
from ..training.config import LoopConfig, ScheduleConfig
from ..training.memory import images_that_fit
from ..training.recipes import (
    CommonSituation,
    divisible,
    native_precision,
    power_of_two,
    reading_processes,
    with_accumulation,
)
from ..training.schedule import steps_of
from .config import (
    CLASSIFICATION,
    AugmentConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    LabeledDataConfig,
    LossConfig,
    NetworkConfig,
    TransferConfig,
)
from .network import Network


@dataclass(frozen=True, kw_only=True)
class Situation(CommonSituation):
    """What a recipe may look at: what :class:`~sparkmim.training.recipes.CommonSituation` has (`chosen` are the user's
    fields, and `model`, `encoder` and `stages`), and the images.

    Attributes:
        images: number of images to train on.
        targets: what is known of the targets, for a classification the names of the classes.
        view: how images were prepared where the encoder was trained.
        extents: median size of the images along each axis; () where a task does not tell.
        build: returns the network of a configuration, given a seed.
    """

    images: int
    targets: Mapping[str, Any]
    view: ViewConfig
    extents: tuple[int, ...] = ()
    build: Callable[[NetworkConfig, int], Network]

    @property
    def task(self) -> str:
        """What is trained for."""
        return str(self.choice("task", CLASSIFICATION))

    @property
    def from_scratch(self) -> bool:
        """Whether the encoder's weights are random."""
        return bool(self.chosen["encoder"] == "none")

    @property
    def millions(self) -> float:
        """Number of the encoder's parameters, in millions."""
        return sum(p.numel() for p in self.backbone.module.parameters()) / 1e6


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
    """
    batch_size = situation.choice(
        "batch_size", divisible(power_of_two(situation.images / 16, 8, 128, situation.images), situation.parts)
    )
    epochs = situation.choice("epochs", float(min(200, max(30, round(100_000 / situation.images)))))
    steps = steps_of(epochs, situation.images, batch_size)
    lr = 3e-3 if situation.normalized_by_batch else 1e-3
    config = _config(
        situation,
        model=NetworkConfig(task=situation.task, model=situation.chosen["model"], in_chans=situation.backbone.in_chans),
        data=_data(situation, crop_scale=(0.35, 1.0)),
        optimizer=FinetuneOptimizerConfig(
            optimizer="adamw",
            lr=float(f"{lr * math.sqrt(batch_size / 64):.2g}"),
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.05,
            weight_decay_end=0.05,
            clip=1.0,
            layer_decay=1.0 if situation.from_scratch else 0.75,
            ema=round(max(0.0, 1 - 10 / steps), 5),
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=epochs / 10),
        run=_run(situation, batch_size=batch_size, epochs=epochs, steps=steps),
    )
    return _completed(situation, config)


def paper(situation: Situation) -> TransferConfig:
    """Return the paper's settings for ImageNet, by the kind of norm and the number of parameters instead of the name.

    Source: the official `downstream_imagenet/arg.py`, `data.py`, `util.py`. Published ImageNet top-1: ResNet-50 80.6,
    ResNet-200 83.1, ConvNeXt-B 84.8. Three deviations make what users report to diverge (LAMB for ResNet-50, learning
    rate 1.6e-2) begin gently: gradients are clipped at norm 1 (the official code does not clip), LAMB corrects the bias
    of its averages, and it adapts the step only where it decays weights, as timm's does by default. Batches of other
    sizes scale the learning rate, and warm-up is never shorter than 100 steps or a quarter of the run. The average of
    the weights warms up too, and images are scored to their edge (the official code cuts 5% off).

    Raises:
        ValueError: for another task than classification.
    """
    if situation.task != CLASSIFICATION:
        raise ValueError(f"recipe paper is for classification, not for --task {situation.task}; use small-data")
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
        data=_data(situation, crop_scale=(0.08, 1.0)),
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
        run=_run(situation, batch_size=batch_size, epochs=epochs, steps=steps),
    )
    return _completed(situation, config)


RECIPES: dict[str, Recipe] = {"small-data": small_data, "paper": paper}


def _config(situation: Situation, **groups: Any) -> TransferConfig:
    """Return a configuration of some groups; the augmentations and loss of a classification are the defaults."""
    if situation.task == CLASSIFICATION:
        return FinetuneConfig(augment=AugmentConfig(), objective=LossConfig(), **groups)
    return TransferConfig(**groups)


def _data(situation: Situation, *, crop_scale: tuple[float, float]) -> LabeledDataConfig:
    view = situation.view
    return LabeledDataConfig(
        data=situation.chosen["data"],
        image_size=view.image_size,
        crop=view.crop,
        crop_scale=crop_scale,
        flip=view.flip,
        mean=view.mean,
        std=view.std,
        **asdict(files_of(vars(view))),
        workers=reading_processes(situation.device, situation.cores),
    )


def _run(situation: Situation, *, batch_size: int, epochs: float, steps: int) -> LoopConfig:
    return LoopConfig(
        batch_size=batch_size,
        precision=native_precision(situation.device),
        log_every=min(50, max(1, steps // 500)),
        val_every=max(1.0, epochs / 50),
    )


def _completed(situation: Situation, config: TransferConfig) -> TransferConfig:
    """Return the configuration with the user's choices; what does not fit into memory at once is accumulated."""
    config = config.replace(situation.chosen)
    shape = config.model.in_chans, *config.data.image_size

    def module() -> torch.nn.Module:
        built = situation.build(config.model, config.run.seed).module
        require_image_size(built, built, config.model.model, config.model.in_chans, config.data.image_size)
        return built

    def fits() -> int:
        def blank(images: int) -> tuple[torch.Tensor]:
            return (torch.zeros(images, *shape),)

        return images_that_fit(module(), blank, config.run.precision, situation.memory_bytes)

    return with_accumulation(situation, config, fits)
