"""The pretraining task: masked views, the loss of hidden patches, evaluators, encoder and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ..checkpoints.encoder import network_metadata, save_encoder
from ..checkpoints.run_folder import RunFolder
from ..data.loader import Batch, MaskedViews, training_batches
from ..data.normalize import Normalize
from ..data.photometric import PhotometricChange
from ..data.sampler import Positions
from ..data.sources.base import ImageSource
from ..data.teachers.maps import TeacherMaps
from ..data.views import evaluation_view, training_view
from ..evaluation.evaluators import KnnMonitor
from ..models.masking import random_visible
from ..models.spark import SparK
from ..reporting.report.page import write_report
from ..training.task import Evaluator, TrainingTask
from ..training.unreadable import UnreadableImages
from ..utils.logging import log
from ..utils.text import verb
from .config import PretrainConfig
from .evaluators import beside_images, draw_reconstructions, held_out_loss
from .kinds import preparation_of


class PretrainingTask(TrainingTask[Batch]):
    """One process's part of a pretraining.

    Args:
        config: every value resolved.
        model: what to train.
        source: images to train on.
        held_out: images for the held-out loss.
        monitor: evaluates the encoder every `monitor_every` epochs.
        run: the folder to write to.
        fabric: device, precision and processes, launched.
        taught: maps of a frozen teacher for the images to train on and the held-out ones, if there is a teacher.
    """

    model: SparK

    def __init__(
        self,
        config: PretrainConfig,
        model: SparK,
        source: ImageSource,
        held_out: ImageSource | None,
        monitor: KnnMonitor | None,
        run: RunFolder,
        fabric: Fabric,
        taught: Sequence[TeacherMaps] = (),
    ) -> None:
        super().__init__(config, model, source, run, fabric)
        self.settings, self.monitor = config, monitor
        self.normalize = Normalize(config.data, fabric.device)
        own, *others = taught or (None,)
        self.views: MaskedViews = self._views(source, own, train=True)
        self.evaluated = self._views(held_out or source, others[0] if others else own, train=False)
        self.unreadable = UnreadableImages(self.evaluated.source, run, config.data.max_broken, run.broken_held_out)
        self.pictures = config.run.pictures if model.objective.reconstructs else 0
        self.evaluators, self.warned = [], False
        if held_out is not None:
            self.evaluators.append(Evaluator(config.run.val_every, self.measure_held_out))
        if monitor is not None:
            self.evaluators.append(Evaluator(config.run.monitor_every, self.measure_monitor))

    def _views(self, source: ImageSource, teacher: TeacherMaps | None, *, train: bool) -> MaskedViews:
        model, data = self.settings.model, self.settings.data
        grid = self.model.grid_shape(data.image_size)
        rotate = self.settings.volumes.rotate
        view = training_view(data, source, rotate=rotate) if train else evaluation_view(data, source)
        seed = self.settings.run.seed
        shape = model.mask_shape
        masks = model.masks_per_image if train else 1
        return MaskedViews(
            source,
            view,
            model.in_chans,
            grid,
            model.mask_ratio,
            seed,
            shape=shape,
            masks=masks,
            teacher=teacher,
            change=PhotometricChange(data.jitter) if train and data.jitter else None,
            replace=train,
        )

    def batches(self, positions: Positions) -> DataLoader[Batch]:
        """Return masked views."""
        pinned = self.fabric.device.type == "cuda"
        return training_batches(self.views, positions, self.settings.data.workers, pin_memory=pinned)

    def blank_batch(self, images: int) -> Batch:
        """Return black images under random masks."""
        model, size = self.settings.model, self.settings.data.image_size
        blank = torch.zeros(images, model.in_chans, *size, dtype=torch.uint8)
        masks = random_visible(images * model.masks_per_image, self.views.grid, model.mask_ratio)
        return Batch(blank, masks, [], [], targets=self.model.objective.blank(images, size))

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the objective's loss of masked views."""
        loss: Tensor = model(
            self.normalize(batch.images), batch.visible, **beside_images(batch, self.fabric.device)
        ).loss
        return loss

    def after_step(self) -> None:
        """Let the objective follow the model."""
        self.model.objective.after_step(self.model, self.step / self.steps)

    def watch(self) -> dict[str, float]:
        """Return what the objective watches; the user is warned once of what goes wrong."""
        found = self.model.objective.watch()
        said = None if self.warned else self.model.objective.warning(found)
        if said is not None:
            self.warned = True
            log.warning(said)
        return found

    def measure_held_out(self) -> dict[str, float]:
        """Return the loss of held-out images."""
        loss, broken = held_out_loss(
            self.model,
            self.evaluated,
            self.normalize,
            self.fabric,
            batch_size=self.micro_batch,
            workers=self.settings.data.workers,
        )
        self.unreadable.add(broken)
        if self.unreadable.update_list(write=self.fabric.is_global_zero):
            log.info(
                f"held out: {self.unreadable.summary()} and {verb(len(self.unreadable.errors), 'are')} left out; see "
                f"{self.unreadable.path}"
            )
        return {"val_loss": loss}

    def measure_monitor(self) -> dict[str, float]:
        """Return the monitor's metrics."""
        assert self.monitor is not None
        return self.monitor(self)

    def draw(self) -> None:
        """Draw reconstructions."""
        path = self.run.reconstructions / f"step-{self.step:09}.png"
        draw_reconstructions(self.model, self.evaluated, self.normalize, self.fabric, self.settings, path)

    def publish(self) -> None:
        """Write encoder and report."""
        if self.fabric.is_global_zero:
            metadata = encoder_metadata(self.settings, self.step, preparation_of(self.source))
            save_encoder(self.model.encoder, self.run.encoder, metadata)
            for name, network in self.model.objective.networks().items():
                save_encoder(network, self.run.network(name), metadata)
            write_report(self.run.root)


def encoder_metadata(
    config: PretrainConfig, step: int, prepared: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, str]:
    """Return the metadata of the encoder's file: enough to build the network and to prepare its input."""
    model = config.model
    return network_metadata(
        model.model, model.stages, model.in_chans, config.data, step=step, levels=model.levels, **(prepared or {})
    )
