"""Fine-tuning: what is trained, scored and published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoints.run_folder import RunFolder
from ..data.labels import LabelledImages
from ..data.loader import load
from ..data.sampler import Positions
from ..data.sources.base import Subset
from ..reporting.report.page import write_report
from ..training.errors import RunStopped, explained
from ..training.estimate import estimate
from ..training.loop import Evaluation, Training
from ..training.optim import build_optimizer
from ..training.step import StepResult, Trainer
from ..utils.distributed import gather, share
from ..utils.io import write_json
from .classifier import Classifier
from .config import FinetuneConfig
from .layer_decay import decayed_groups
from .model_file import save_classifier
from .objective import classification_loss
from .prepare import described_labels
from .scores import Predictions, Score, draw_mistakes, predict_source
from .views import AugmentedView, LabelledBatch, LabelledViews, collate, mix


class ClassifierTrainer(Trainer[nn.Module, LabelledBatch]):
    """Reduces the loss of a classifier, and keeps a moving average of its weights."""

    def __init__(
        self, config: FinetuneConfig, classifier: Classifier, classes: int, images: int, fabric: Fabric
    ) -> None:
        classifier.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolves faster
        decay = config.optimizer.ema
        self.average = None
        if decay:  # at first the mean of all weights so far
            self.average = ModelEmaV3(classifier.module, decay=decay, use_warmup=True, warmup_power=1.0)
        optimizer = build_optimizer(decayed_groups(classifier, config.optimizer.layer_decay), config.optimizer)
        super().__init__(config, classifier.module, optimizer, images, fabric)
        if self.average is not None:
            self.average.module.to(fabric.device)
        self.settings, self.classes = config, classes

    @property
    def scored(self) -> nn.Module:
        """The network whose weights are scored and kept."""
        return self.model if self.average is None else self.average.module

    def loss(self, batch: LabelledBatch) -> Tensor:
        """Of mixed images."""
        device = self.fabric.device
        images = batch.images.to(device, non_blocking=True)
        images, targets = mix(images, batch.labels.to(device, non_blocking=True), self.settings.augment, self.classes)
        images = images.contiguous(memory_format=torch.channels_last)  # as the weights are
        return classification_loss(self.wrapped(images), targets, self.settings.objective)

    def train_step(self, batches: Iterator[LabelledBatch]) -> StepResult:
        """A step, which the average follows."""
        result = super().train_step(batches)
        if self.average is not None:
            self.average.update(self.model, step=self.step)
        return result

    def state(self) -> dict[str, Any]:
        """With the average."""
        average = None if self.average is None else self.average.module.state_dict()
        return {**super().state(), "average": average}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state, see :meth:`~sparkmim.training.step.Trainer.load`."""
        super().load(state)
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])


class Finetuning(Training):
    """One process's part of a fine-tuning.

    Args:
        config: what to do.
        classifier: what to train, with the weights to start from.
        train: images to train on.
        val: images to validate with: the weights of the best accuracy on them are kept; the last ones without.
        test: images on which the weights that are kept are scored.
        run: where to write.
        fabric: device, precision and processes, launched.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    pictures = 0

    def __init__(
        self,
        config: FinetuneConfig,
        classifier: Classifier,
        train: LabelledImages,
        val: LabelledImages | None,
        test: LabelledImages | None,
        run: RunFolder,
        fabric: Fabric,
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        trainer = ClassifierTrainer(config, classifier, len(train.classes), len(train), fabric)
        super().__init__(config, trainer, train.source, run, fabric, state, after_step)
        self.settings, self.classifier_trainer = config, trainer
        self.labelled, self.val, self.test = train, val, test
        self.evaluations = [] if val is None else [Evaluation(config.run.val_every, self.validate)]
        self.repeats = config.augment.repeats
        view = AugmentedView(config.data, config.augment)
        self.views = LabelledViews(train, view, config.model.in_chans, config.run.seed)
        self.scored_on = described_labels(val)
        best: dict[str, Any] | None = None if state is None else state["best"]
        alike = best is not None and best.get("images", self.scored_on) == self.scored_on  # older ones do not say
        self.best = best if alike else None

    def batches(self, positions: Positions) -> DataLoader[LabelledBatch]:
        """Augmented views."""
        return load(
            self.views,
            positions,
            self.settings.data.workers,
            collate,
            pin_memory=self.fabric.device.type == "cuda",
        )

    def estimate(self) -> list[str]:
        """How long the run will take, in lines for the user."""
        count = self.trainer.micro_batch
        images = torch.zeros(count, self.settings.model.in_chans, *self.settings.data.image_size)
        blank = LabelledBatch(images, torch.zeros(count, dtype=torch.int64), [], [])
        with explained(self.trainer, self.run):
            return estimate(self.trainer, self.views, self.positions(), blank)

    def validate(self) -> dict[str, float]:
        """Scores of the validation images; the best weights so far are kept."""
        assert self.val is not None
        score = Score.of(self._predict(self.val), self.val, self.settings.objective)
        if self.best is None or score.top1 >= self.best["top1"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self._weights().items()}
            self.best = {"top1": score.top1, "step": self.trainer.step, "model": weights, "images": self.scored_on}
        return {"val_loss": score.loss, "val_top1": score.top1, "val_mean_per_class": score.mean_per_class}

    def draw(self) -> None:
        """Nothing; mistakes are drawn at the end."""

    def state(self) -> dict[str, Any]:
        """The best weights so far."""
        return {"best": self.best}

    def publish(self) -> None:
        """The classifier, and at the end its scores, and the report."""
        scored = self.classifier_trainer.scored
        step = self.trainer.step
        if self.best is not None:
            step = self.best["step"]
        weights = self._weights() if self.best is None else self.best["model"]
        if self.fabric.is_global_zero:
            save_classifier(weights, self.run.classifier, self.settings, self.labelled.classes, step)
        if self.trainer.step == self.trainer.steps:
            if self.best is not None:
                scored.load_state_dict(weights)
            self._conclude(step)
        if self.fabric.is_global_zero:
            write_report(self.run.root)

    def _conclude(self, step: int) -> None:
        """Score the weights that are kept."""
        average = self.classifier_trainer.average is not None
        results: dict[str, Any] = {
            "classes": self.labelled.classes,
            "weights": {"step": step, "average": average},
            "train": {"images": len(self.labelled), "per_class": self.labelled.counts()},
        }
        for name, labelled in (("validation", self.val), ("test", self.test)):
            if labelled is not None:
                predictions = self._predict(labelled)
                if self.fabric.is_global_zero:
                    data, channels = self.settings.data, self.settings.model.in_chans
                    mistakes = draw_mistakes(predictions, labelled, data, channels, self.run.mistakes / name)
                    score = Score.of(predictions, labelled, self.settings.objective)
                    unreadable = {labelled.source.name(i): " ".join(e.split()) for i, e in sorted(predictions.broken)}
                    results[name] = {**asdict(score), "unreadable": unreadable, "mistakes": mistakes}
        if self.fabric.is_global_zero:
            write_json(self.run.results, results)

    def _weights(self) -> dict[str, Tensor]:
        return self.classifier_trainer.scored.state_dict()

    def _predict(self, labelled: LabelledImages) -> Predictions:
        """All processes share the work and get the same predictions, those of the first one's weights.

        Raises:
            RunStopped: if none of the images can be read.
        """
        fabric, data = self.fabric, self.settings.data
        share(fabric, self.classifier_trainer.scored.buffers())  # on CPUs each has batch norm statistics of its own
        own = np.arange(fabric.global_rank, len(labelled), fabric.world_size)
        part = predict_source(
            self.classifier_trainer.scored,
            Subset(labelled.source, own),
            data,
            self.settings.model.in_chans,
            batch_size=self.trainer.micro_batch,
            workers=data.workers,
            device=fabric.device,
            autocast=fabric.autocast,
        )
        mine = Predictions(part.logits, own[part.indices].tolist(), [(int(own[i]), e) for i, e in part.broken])
        parts = gather(fabric, mine)
        broken = [error for p in parts for error in p.broken]
        if len(broken) == len(labelled):
            raise RunStopped(f"none of {len(labelled)} images to be scored can be read; {broken[0][1]}")
        return Predictions(
            torch.cat([p.logits for p in parts if p.indices]),
            [index for p in parts for index in p.indices],
            broken,
        )
