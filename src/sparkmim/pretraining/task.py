"""Pretraining: what is trained, shown and published."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ..checkpoints.encoder import save_encoder
from ..checkpoints.run_folder import RunFolder
from ..data.loader import Batch, MaskedViews, training_batches
from ..data.normalize import Normalise
from ..data.sampler import Positions
from ..data.sources.base import ImageSource
from ..data.views import evaluation_view, training_view
from ..models.masking import random_visible
from ..models.spark import SparK
from ..reporting.report.page import write_report
from ..training.errors import explained
from ..training.estimate import estimate
from ..training.loop import Evaluation, Training
from ..training.optim import build_optimizer, parameter_groups
from ..training.step import Trainer
from .config import PretrainConfig
from .evaluators import draw, held_out_loss


class MaskedTrainer(Trainer[SparK, Batch]):
    """Reduces the loss of hidden patches.

    Attributes:
        normalise: makes the network's input of a batch's images, on the device.
    """

    def __init__(
        self, config: PretrainConfig, model: SparK, optimizer: torch.optim.Optimizer, images: int, fabric: Fabric
    ) -> None:
        super().__init__(config, model, optimizer, images, fabric)
        self.normalise = Normalise(config.data, fabric.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over hidden patches."""
        loss: Tensor = self.wrapped(self.normalise(batch.images), batch.visible).loss
        return loss


Monitor = Callable[[Trainer[SparK, Batch]], dict[str, float]]
"""Measures a model in training, which it leaves as it was; the same finite numbers, by name, in all processes."""


class Pretraining(Training):
    """One process's part of a pretraining.

    Args:
        config: what to do.
        model: what to train.
        source: images to train on.
        held_out: images for the held-out loss.
        monitor: measures something else about the model in training, all processes' work, every `monitor_every` epochs.
        run: where to write.
        fabric: device, precision and processes, launched.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: SparK,
        source: ImageSource,
        held_out: ImageSource | None,
        monitor: Monitor | None,
        run: RunFolder,
        fabric: Fabric,
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        optimizer = build_optimizer(parameter_groups(model), config.optimizer)
        self.masked_trainer = trainer = MaskedTrainer(config, model, optimizer, len(source), fabric)
        super().__init__(config, trainer, source, run, fabric, state, after_step)
        self.settings, self.model = config, trainer.model
        self.pictures, self.evaluations = config.run.pictures, []
        self.views = self._views(source, train=True)
        self.shown = self._views(held_out or source, train=False)
        if held_out is not None:
            self.evaluations.append(Evaluation(config.run.val_every, self.held_out_loss))
        if monitor is not None:
            self.evaluations.append(Evaluation(config.run.monitor_every, lambda: monitor(trainer)))

    def _views(self, source: ImageSource, *, train: bool) -> MaskedViews:
        model, data = self.settings.model, self.settings.data
        grid = self.model.grid_shape(data.image_size)
        view = training_view(data) if train else evaluation_view(data)
        return MaskedViews(source, view, model.in_chans, grid, model.mask_ratio, self.settings.run.seed)

    def batches(self, positions: Positions) -> DataLoader[Batch]:
        """Masked views."""
        pinned = self.fabric.device.type == "cuda"
        return training_batches(self.views, positions, self.settings.data.workers, pin_memory=pinned)

    def estimate(self) -> list[str]:
        """How long the run will take, in lines for the user."""
        model, trainer = self.settings.model, self.trainer
        size = self.settings.data.image_size
        images = torch.zeros(trainer.micro_batch, model.in_chans, *size, dtype=torch.uint8)
        blank = Batch(images, random_visible(len(images), self.views.grid, model.mask_ratio), [], [])
        with explained(trainer, self.run):
            return estimate(trainer, self.views, self.positions(), blank)

    def held_out_loss(self) -> dict[str, float]:
        """The loss of held-out images."""
        return {"val_loss": held_out_loss(self.masked_trainer, self.shown, self.masked_trainer.normalise)}

    def draw(self) -> None:
        """Reconstructions."""
        draw(
            self.masked_trainer,
            self.shown,
            self.masked_trainer.normalise,
            self.run.reconstructions / f"step-{self.trainer.step:09}.png",
        )

    def publish(self) -> None:
        """Encoder and report."""
        if self.fabric.is_global_zero:
            save_encoder(self.model.encoder, self.run.encoder, encoder_metadata(self.settings, self.trainer.step))
            write_report(self.run.root)


def encoder_metadata(config: PretrainConfig, step: int) -> dict[str, str]:
    """What the encoder's file says of itself: enough to build the network and to prepare its input."""
    model, data = config.model, config.data
    described = {
        "model": model.model,
        "stages": model.stages,
        "in_chans": model.in_chans,
        "image_size": data.image_size,
        "crop": data.crop,
        "flip": data.flip,
        "mean": data.mean,
        "std": data.std,
        "step": step,
    }
    return {"sparkmim": json.dumps(described)}
