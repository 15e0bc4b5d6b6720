"""What recipes of fine-tuning look at, and the parts that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from ..data.config import ViewConfig, files_of
from ..models.factory import require_image_size
from ..training.config import LoopConfig
from ..training.memory import images_that_fit
from ..training.recipes import CommonSituation, native_precision, reading_processes, with_accumulation
from .config import CLASSIFICATION, FinetuneOptimizerConfig, LabeledDataConfig, TransferConfig
from .network import Network

LARGEST_CROP = 128
"""Most voxels of a crop along an axis, of volumes that a network without pretraining sees."""

ConfigT = TypeVar("ConfigT", bound=TransferConfig)


@dataclass(frozen=True, kw_only=True)
class Situation(CommonSituation):
    """What a recipe may look at: what :class:`~sparkmim.training.recipes.CommonSituation` has (`chosen` are the user's
    fields, and `model`, `encoder` and `stages`), and the images.

    Attributes:
        images: number of images to train on.
        targets: what is known of the targets, for a classification the names of the classes.
        view: how images were prepared where the encoder was trained.
        extents: median size of the images along each axis; () where a task does not tell.
        build: returns the network of a configuration, with the task's settings in it.
    """

    images: int
    targets: Mapping[str, Any]
    view: ViewConfig
    extents: tuple[int, ...] = ()
    build: Callable[[TransferConfig], Network]

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


def data_of(situation: Situation, *, crop_scale: tuple[float, float]) -> LabeledDataConfig:
    """Return how images are seen: as the encoder has seen them."""
    view = situation.view
    volumes = situation.backbone.dims == 3
    return LabeledDataConfig(
        data=situation.chosen["data"],
        image_size=volume_size(situation) if volumes and situation.extents else view.image_size,
        crop="native" if volumes else view.crop,
        crop_scale=crop_scale,
        flip=view.flip,
        mean=view.mean,
        std=view.std,
        **asdict(files_of(vars(view))),
        workers=reading_processes(situation.device, situation.cores),
    )


def volume_size(situation: Situation) -> tuple[int, ...]:
    """Return the size of crops of volumes: that which the encoder has seen, or what most volumes have.

    It is a multiple of the network's total stride, two positions of it at least, and 128 voxels a side at most, where
    the encoder has learned from nothing.
    """
    if not situation.from_scratch and situation.view.crop == "native":
        return situation.view.image_size
    strides = zip(*situation.backbone.strides, strict=True)
    steps = [math.lcm(*own) for own in strides]
    return tuple(
        max(2 * step, min(round(extent / step), LARGEST_CROP // step) * step)
        for extent, step in zip(situation.extents, steps, strict=True)
    )


def optimizer_of(situation: Situation, *, lr: float, steps: int) -> FinetuneOptimizerConfig:
    """Return AdamW with layer decay, none from scratch, and an average over about the last tenth of the steps."""
    return FinetuneOptimizerConfig(
        optimizer="adamw",
        lr=float(f"{lr:.2g}"),
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        weight_decay_end=0.05,
        clip=1.0,
        layer_decay=1.0 if situation.from_scratch else 0.75,
        ema=round(max(0.0, 1 - 10 / steps), 5),
    )


def run_of(situation: Situation, *, batch_size: int, epochs: float, steps: int) -> LoopConfig:
    """Return how a run is carried out; validation takes place at most 50 times."""
    return LoopConfig(
        batch_size=batch_size,
        precision=native_precision(situation.device),
        log_every=min(50, max(1, steps // 500)),
        val_every=max(1.0, epochs / 50),
    )


def completed(situation: Situation, config: ConfigT) -> ConfigT:
    """Return the configuration with the user's choices; what does not fit into memory at once is accumulated."""
    config = config.replace(situation.chosen)
    shape = config.model.in_chans, *config.data.image_size

    def module() -> torch.nn.Module:
        built = situation.build(config).module
        require_image_size(built, built, config.model.model, config.model.in_chans, config.data.image_size)
        return built

    def fits() -> int:
        def blank(images: int) -> tuple[torch.Tensor]:
            return (torch.zeros(images, *shape),)

        return images_that_fit(module(), blank, config.run.precision, situation.memory_bytes)

    return with_accumulation(situation, config, fits)
