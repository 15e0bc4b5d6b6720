"""Recipes of pretraining: functions from a situation to a complete configuration. The user's choices take precedence.

A recipe of your own is a function of the same kind in a file, `--recipe FILE.py:FUNCTION`; it may start from one here:

```python
from sparkmim.recipes import Situation, paper

def short(situation: Situation):
    config = paper(situation)
    return config.replace({"epochs": 100, "warmup_epochs": 5})
```
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch

from ..checkpoints.encoder import input_of_weights
from ..data.config import DataConfig, files_of
from ..data.kinds import Kind
from ..data.sources.base import ImageSource
from ..data.statistics import input_statistics
from ..models.config import ModelConfig
from ..models.decoder import upsampling_steps
from ..models.factory import takes_drop_path
from ..models.masking import random_visible
from ..models.spark import SparK
from ..objectives.distill import is_distilled
from ..training.compile import compilation
from ..training.config import OptimizerConfig, Precision, ScheduleConfig
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
from .config import PretrainConfig, RunConfig
from .kinds import FRAMES, is_normalized, kind_of_source, median_extents
from .model import ModelBuilder
from .volumes import LARGEST_CROP, crop_size, crops_that_fit

IMAGE_SIZE = 224
"""Pixels of a view where none are asked for, brought to a multiple of the patch size."""


CLIP_SIZE = 112
"""Pixels of a clip's frames, likewise: those of the networks of torchvision.models.video."""

LARGEST_SIGNAL = 256
"""Most patches of a view of a signal where no size is asked for."""

LENGTHS: dict[Kind, tuple[int, int, int, float, float]] = {
    "images": (64, 8, 4096, 40e6, 100),
    "signals": (64, 8, 4096, 40e6, 100),
    "clips": (16, 2, 64, 4e6, 50),
    "volumes": (16, 2, 8, 5e5, 10),
}
"""By kind of data: steps of an epoch, the smallest and the largest batch, and views in all but the fewest of each."""

FAST_DECODER_WIDTH = 256
"""Width of the decoder in the recipe `fast`, a third of the paper's: a ninth of its arithmetic."""


PAPER_LR, PAPER_STEPS = 3.2e-3, 500_000
"""Peak learning rate and number of steps of the paper's training: 1600 epochs of 1.28 million images by 4096."""


@dataclass(frozen=True, kw_only=True)
class Situation(CommonSituation):
    """What a recipe may look at: what :class:`CommonSituation` has, and the images.

    Attributes:
        source: the images to train on.
        builder: builds the run's networks and models, each once.
    """

    source: ImageSource
    builder: ModelBuilder = field(default_factory=ModelBuilder)

    @property
    def images(self) -> int:
        """Number of images to train on."""
        return len(self.source)

    @property
    def kind(self) -> Kind:
        """What they are: images, signals, volumes or clips."""
        return kind_of_source(self.source, self.backbone.dims)


Recipe = Callable[[Situation], PretrainConfig]


def auto(situation: Situation) -> PretrainConfig:
    """Fit everything to the number of images, their size and the device.

    - Views of 224 pixels (the nearest multiple of the patch size and the total stride). Crops of volumes are as large
      as most volumes are, up to 160 voxels a side, if two of them fit into memory, else smaller; those of signals as
      long as most signals are, up to 256 patches. Clips are of 112 pixels and of 16 frames, or as many as most have.
    - Batch size: a power of two that makes at least 64 steps an epoch, 8 to 4096, or what the processes can share below
      it. What does not fit into memory at once is accumulated.
      Of volumes, 2 to 8; of clips, 2 to 64.
    - The paper's decoder; for all but images as wide as the deepest feature map, for it would take nearly all the time
      in 3-D, and the networks of signals are narrow.
    - Epochs: 40 million views in all, but every image at least 100 and at most 800 times; half a million crops of
      volumes, 10 to 800 of each; four million views of clips, 50 to 800 of each.
    - Warm-up: a twentieth of the epochs, at most 40.
    - LAMB. Its learning rate is about the relative change of a layer in a step, so shorter runs need a higher one:
      3.2e-3, the paper's, for its 500,000 steps, growing with the sixth root as steps grow fewer, up to 1e-2, the best
      of those tried for 480 steps of 32 images (docs/guides/pretraining.md).
    - bf16-mixed where the device computes it natively, 32 elsewhere; compiled on CUDA if the run is long.
    """
    if is_distilled(situation.choice("objective", "pixels")):
        return distillation(situation)
    images = situation.images
    share, least, most, views, fewest = LENGTHS[situation.kind]
    batch_size = situation.choice(
        "batch_size", divisible(power_of_two(images / share, least, most, images), situation.parts)
    )
    epochs = situation.choice("epochs", float(min(800, max(fewest, round(views / images)))))
    steps = steps_of(epochs, images, batch_size)
    return _complete(
        situation,
        image_size=_default_size(situation),
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=min(40.0, epochs / 20),
        lr=float(f"{min(1e-2, PAPER_LR * max(1.0, PAPER_STEPS / steps) ** (1 / 6)):.2g}"),
        precision=native_precision(situation.device),
        drop_path=0.0,
        crop_scale=(0.67, 1.0),
        decoder_width=768 if situation.kind == "images" else _narrow_decoder_width(situation),
    )


def distillation(situation: Situation) -> PretrainConfig:
    """Fit a distillation, which `auto` is where the objective is one.

    - Whole images, and no decoder, unless a mask ratio is set or pixels are predicted too.
    - Crops from 0.4 of the area on, jitter of 0.5; of volumes, crops as `auto` takes them, and no jitter.
    - Batch size: a power of two that makes at least 32 steps an epoch, 16 to 1024. What does not fit into memory at
      once is accumulated.
    - Epochs: 10 million views in all, but every image at least 30 and at most 400 times; a twentieth of them warm-up.
    - AdamW, learning rate 2e-3 at batch size 64 and as the root of the batch size, weight decay 0.05.
    """
    images = situation.images
    batch_size = situation.choice("batch_size", divisible(power_of_two(images / 32, 16, 1024, images), situation.parts))
    epochs = situation.choice("epochs", float(min(400, max(30, round(1e7 / images)))))
    alone = situation.choice("objective", "pixels") == "distill"
    lr = float(f"{2e-3 * math.sqrt(batch_size / 64):.2g}")
    return _complete(
        replace(situation, chosen={"jitter": 0.5 if alone and situation.kind == "images" else 0.0, **situation.chosen}),
        image_size=_default_size(situation),
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=epochs / 20,
        lr=lr,
        precision=native_precision(situation.device),
        drop_path=0.0,
        crop_scale=(0.4, 1.0),
        decoder_width=FAST_DECODER_WIDTH,
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, weight_decay_end=0.05
        ),
    )


def paper(situation: Situation) -> PretrainConfig:
    """Return the paper's settings for ImageNet, complete: 1600 epochs at batch size 4096, 224 pixels, 60% hidden.

    Source: the official `pretrain/utils/arg_util.py` and README. ImageNet top-1 after fine-tuning, published: ResNet-50
    80.6, ResNet-200 83.1, ConvNeXt-B 84.8. Cost, published: ResNet-50, 800 epochs, 48 h on 32 A100. The batch is
    accumulated where it does not fit into memory; batch norm then sees a part of it at a time. The rate of stochastic
    depth, which the official code looks up by model name, follows from the kind of norm and the number of parameters.
    """
    batch_size = situation.choice("batch_size", divisible(4096, situation.parts))
    return _complete(
        situation,
        image_size=(IMAGE_SIZE,) * situation.backbone.dims if _as_images(situation) else _default_size(situation),
        batch_size=batch_size,
        epochs=1600.0,
        warmup_epochs=min(40.0, situation.choice("epochs", 1600.0) / 20),
        lr=2e-4 * batch_size / 256,
        precision="32",
        drop_path=_paper_drop_path(situation),
        crop_scale=(0.67, 1.0),
        decoder_width=768,
    )


def fast(situation: Situation) -> PretrainConfig:
    """Return :func:`auto`'s settings with a decoder of a third of the width: it takes most of a step's time.

    The decoder is discarded after pretraining. In the same time the narrow one makes the better encoder
    (docs/results/clothing.md).
    """
    return auto(replace(situation, chosen={"decoder_width": FAST_DECODER_WIDTH, **situation.chosen}))


def demo(situation: Situation) -> PretrainConfig:
    """Train for minutes on a CPU: the built-in photographs at 96 pixels, over and over.

    ResNet-18 on two cores: three to four minutes. The network learns fifteen pictures by heart, which is good to look
    at, and for nothing else.
    """
    batch_size = situation.choice("batch_size", divisible(min(situation.images, 32), situation.parts))
    epochs = situation.choice("epochs", 700 * batch_size / situation.images)
    return _complete(
        situation,
        image_size=tuple(3 * u for u in _unit(situation)) if _as_images(situation) else _default_size(situation),
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=min(50 * batch_size / situation.images, epochs / 4),
        lr=1e-2,
        precision=native_precision(situation.device),
        drop_path=0.0,
        crop_scale=(0.4, 1.0),
        decoder_width=256,
    )


def s3d(situation: Situation) -> PretrainConfig:
    """Return nnssl's settings for volumes: 250,000 steps of 2 crops of 160 voxels a side, 75% hidden, SGD.

    Patches are of 16 voxels, learning rate 1e-2 with polynomial decay, weight decay 3e-5, momentum 0.99, gradients
    clipped at 12. With as few volumes as a laboratory has, that shows each of them often; `auto` takes fewer steps.

    Source: nnssl (github.com/MIC-DKFZ/nnssl) and "Revisiting MAE pre-training for 3D medical image segmentation"
    (Wald et al., CVPR 2025). Theirs decays biases and norms as well, and compares values that are not normalized per
    patch: add `--objective.normalize off`.
    """
    if situation.kind != "volumes":
        raise ValueError(f"recipe s3d is for volumes, and these are {situation.kind}; use auto")
    batch_size = situation.choice("batch_size", divisible(min(2, situation.images), situation.parts))
    epochs = situation.choice("epochs", 250_000 * batch_size / situation.images)
    chosen = {"patch_size": (16,), "image_size": (LARGEST_CROP,), **situation.chosen}
    return _complete(
        replace(situation, chosen=chosen),
        image_size=(LARGEST_CROP,) * 3,
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=0.0,
        lr=1e-2,
        precision=native_precision(situation.device),
        drop_path=0.0,
        crop_scale=(0.67, 1.0),
        decoder_width=_narrow_decoder_width(situation),
        mask_ratio=0.75,
        optimizer=OptimizerConfig(
            optimizer="sgd", lr=1e-2, betas=(0.99, 0.999), weight_decay=3e-5, weight_decay_end=3e-5, clip=12.0
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=0.0, lr_end=0.0, lr_decay="polynomial"),
    )


RECIPES: dict[str, Recipe] = {"auto": auto, "paper": paper, "fast": fast, "demo": demo, "s3d": s3d}


def _complete(
    situation: Situation,
    *,
    image_size: tuple[int, ...],
    batch_size: int,
    epochs: float,
    warmup_epochs: float,
    lr: float,
    precision: Precision,
    drop_path: float,
    crop_scale: tuple[float, float],
    decoder_width: int,
    mask_ratio: float = 0.6,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
) -> PretrainConfig:
    """Return a configuration of the parts that the recipes share; the user's choices take precedence."""
    in_chans = situation.backbone.in_chans
    mean, std = _mean_std(situation)
    steps = steps_of(situation.choice("epochs", epochs), situation.images, batch_size)
    kind = situation.kind
    if situation.choice("objective", "pixels") == "distill":
        mask_ratio = 0.0  # of whole images, unless the user masks them
    crops = kind in ("volumes", "signals")
    config = PretrainConfig(
        model=ModelConfig(
            model=situation.chosen["model"],
            in_chans=in_chans,
            patch_size=_patch_size(situation),
            mask_ratio=mask_ratio,
            drop_path=drop_path,
            decoder_width=decoder_width,
        ),
        data=DataConfig(
            image_size=image_size,
            crop="native" if crops else "resized",
            flip=kind != "signals",  # backwards in time they are others
            crop_scale=crop_scale,
            mean=mean,
            std=std,
            workers=reading_processes(situation.device, situation.cores),
        ),
        optimizer=optimizer
        or OptimizerConfig(lr=lr, betas=(0.9, 0.95) if situation.normalized_by_batch else (0.9, 0.999)),
        schedule=schedule or ScheduleConfig(epochs=epochs, warmup_epochs=warmup_epochs),
        run=RunConfig(
            batch_size=batch_size,
            precision=precision,
            compile=compilation(situation.device, steps, situation.processes),
            log_every=min(50, max(1, steps // 1000)),
        ),
    ).replace(situation.chosen)
    if not crops:
        return _keeping_what_fits(
            situation, with_accumulation(situation, config, lambda: _images_that_fit(situation, config))
        )
    crops_of = cache(partial(_crops_that_fit, situation, config))  # the network is run once for both
    if "image_size" not in situation.chosen:
        unit = _unit(situation)
        largest = LARGEST_CROP if kind == "volumes" else LARGEST_SIGNAL * unit[0]
        wanted = tuple(min(e, largest) for e in image_size)
        config = config.replace({"image_size": crop_size(wanted, unit, crops_of(), largest)})
    size = config.data.image_size
    _model(situation, config).grid_shape(size)  # raises for a size that does not fit
    return with_accumulation(situation, config, lambda: crops_of()(size))


def _as_images(situation: Situation) -> bool:
    """Return whether views have the sizes of images: those of images, and those of volumes, which are cut to fit."""
    return situation.kind in ("images", "volumes")


def _default_size(situation: Situation) -> tuple[int, ...]:
    """Return the size of views where none is asked for; that of volumes and signals is cut to fit into memory."""
    unit = _unit(situation)
    if situation.kind == "clips":
        return (situation.choice("frames", FRAMES), *(max(1, round(CLIP_SIZE / u)) * u for u in unit[1:]))
    if situation.kind == "images":
        return tuple(max(1, round(IMAGE_SIZE / u)) * u for u in unit)
    return median_extents(situation.source)


def _model(situation: Situation, config: PretrainConfig) -> SparK:
    return situation.builder.model(config.model, config.objective, config.run.seed)


def _crops_that_fit(situation: Situation, config: PretrainConfig) -> Callable[[tuple[int, ...]], int]:
    model, precision = config.model, config.run.precision
    return crops_that_fit(
        _model(situation, config), model.in_chans, model.mask_ratio, precision, situation.memory_bytes
    )


def _images_that_fit(situation: Situation, config: PretrainConfig) -> int:
    """Return how many views of images fit into memory."""
    model, size = config.model, config.data.image_size
    built = _model(situation, config)

    def inputs(images: int) -> tuple[Any, ...]:
        visible = random_visible(images * model.masks_per_image, built.grid_shape(size), model.mask_ratio)
        blank = built.objective.blank(images, size)
        return torch.zeros(images, model.in_chans, *size), visible, *([] if blank is None else [blank])

    return images_that_fit(built, inputs, config.run.precision, situation.memory_bytes)


def _keeping_what_fits(situation: Situation, config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with the decoder's maps kept, on a GPU where the micro-batches fit with them too."""
    asked = "memory_efficient" in situation.chosen or config.model.decoder != "unet"
    if asked or situation.device.type != "cuda" or config.run.batch_size % situation.processes:
        return config
    micro_batch = config.run.batch_size // situation.processes // config.run.accumulate
    model = _model(situation, config)
    model.set_memory_efficient(False)
    fits = _images_that_fit(situation, config)
    model.set_memory_efficient(True)
    return config.replace({"memory_efficient": False}) if fits >= micro_batch else config


def _patch_size(situation: Situation) -> tuple[int, ...]:
    return situation.backbone.resolve_patch_size(situation.choice("patch_size", None))


def _narrow_decoder_width(situation: Situation) -> int:
    """Return the channels of the deepest map, within limits: the paper's width would take nearly all the time in 3-D.

    The width is halved at each step up: at least one channel is left, of signals four.
    """
    backbone = situation.backbone
    left = 4 if situation.kind == "signals" else 1
    least = left * 2 ** len(upsampling_steps(backbone.strides[::-1]))
    return max(min(768, max(32, backbone.channels[-1])), least)


def _unit(situation: Situation) -> tuple[int, ...]:
    """Return what the size of images must be a multiple of."""
    return situation.backbone.size_divisor(_patch_size(situation))


def _mean_std(situation: Situation) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what the weights that the run starts from were trained with, if that is known.

    Else those of ImageNet for RGB of 8 bits, and measured ones for all other images.
    """
    channels = situation.backbone.in_chans
    if {"mean", "std"} <= situation.chosen.keys():
        return situation.chosen["mean"], situation.chosen["std"]
    known = input_of_weights(situation.choice("init", "none"), situation.backbone)
    if {"mean", "std"} <= known.keys():
        return tuple(known["mean"]), tuple(known["std"])
    if is_normalized(situation.source):
        return (0.0,) * channels, (1.0,) * channels
    found = input_statistics(situation.source, channels, files_of(situation.chosen))
    return found.mean, found.std


def _paper_drop_path(situation: Situation) -> float:
    """Return the rate for ResNet-50, 101, 152, 200 (0.05, 0.08, 0.10, 0.15) or ConvNeXt-S, B, L (0.2, 0.3, 0.4).

    They are distinguished by the kind of norm and the number of parameters.
    """
    if not takes_drop_path(situation.chosen["model"]):
        return 0.0
    millions = sum(p.numel() for p in situation.backbone.module.parameters()) / 1e6
    table = [(20, 0.0), (35, 0.05), (50, 0.08), (61, 0.10), (math.inf, 0.15)]
    if not situation.normalized_by_batch:
        table = [(20, 0.0), (40, 0.1), (70, 0.2), (140, 0.3), (math.inf, 0.4)]
    return next(rate for limit, rate in table if millions <= limit)
