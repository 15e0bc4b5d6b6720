"""k-NN accuracy of the encoder during pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from ..data.labels import LabeledImages
from ..data.sources.base import Subset, fingerprint
from ..models.spark import SparK
from ..training.errors import RunStopped
from ..training.task import TrainingTask
from ..utils.distributed import gather_results
from ..utils.logging import log
from ..utils.text import counted, printable, verb
from .features import pooled_features
from .frozen import LabeledFeatures
from .knn import accuracy, best_neighbours, knn_predictions, leave_one_out


class KnnMonitor:
    """Measure k-NN accuracy with the current encoder's features of whole images, from its last feature map.

    k is the one with the highest leave-one-out accuracy on the training images. The accuracy is that on the validation
    images, or leave-one-out without any. Features are float32 whatever the run's precision, so that `sparkmim knn`
    measures the same.

    Args:
        train: labeled images that vote.
        val: images to classify; None for those of `train`, each by all others.
    """

    def __init__(self, train: LabeledImages, val: LabeledImages | None) -> None:
        self.train, self.val = train, val
        self.skipped: dict[str, str] = {}  # errors of images that could not be read, by name

    def __str__(self) -> str:
        if self.val is None:
            return f"k-NN, each of {counted(len(self.train), 'labeled image')} by all others"
        return f"k-NN, {counted(len(self.val), 'labeled image')} by {counted(len(self.train), 'other')}"

    def fingerprint(self) -> str:
        """Return the numbers of images and digests of their names."""
        sets = [images for images in (self.train, self.val) if images is not None]
        return ", ".join(f"{len(images)} ({fingerprint(images.source)})" for images in sets)

    def __call__(self, trainer: TrainingTask[Any]) -> dict[str, float]:
        """Return shares of images classified correctly; all ranks share the reading and get the same numbers.

        Raises:
            RunStopped: if too few of the images can be read.
        """
        model, classes = trainer.model, len(self.train.classes)
        model.eval()
        train = self._features(trainer, self.train)
        val = None if self.val is None else self._features(trainer, self.val)
        model.train()
        within = leave_one_out(train.values, train.labels, classes=classes)
        if not within or (val is not None and not len(val)):
            raise RunStopped(
                "the images of --monitor-data can no longer be read; resume with others, or --monitor none"
            )
        chosen = best_neighbours(within)
        score = within[chosen]
        if val is not None:
            predicted = knn_predictions(val.values, train.values, train.labels, (chosen,), classes=classes)[chosen]
            score = accuracy(predicted, val.labels)
        return {"knn_top1": score.top1, "knn_mean_per_class": score.class_mean}

    def _features(self, trainer: TrainingTask[Any], images: LabeledImages) -> LabeledFeatures:
        """Return the features of the images that can be read, in order."""
        fabric: Fabric = trainer.fabric
        assert isinstance(trainer.model, SparK)
        backbone = trainer.model.backbone
        data = trainer.config.data
        own = np.arange(fabric.global_rank, len(images), fabric.world_size)

        def own_features() -> tuple[np.ndarray, torch.Tensor, list[tuple[int, str]]]:
            found = pooled_features(
                backbone,
                Subset(images.source, own),
                data,
                batch_size=trainer.micro_batch,
                workers=data.workers,
                device=fabric.device,
            )
            broken = [(int(own[index]), error) for index, error in found.broken]
            return own[found.indices], found.values, broken

        parts = gather_results(fabric, own_features)
        self._list(images, [pair for _, _, part in parts for pair in part])
        indices = np.concatenate([part for part, _, _ in parts])
        order = np.argsort(indices)
        values = torch.cat([part for _, part, _ in parts])[torch.from_numpy(order)]
        return LabeledFeatures(values, torch.from_numpy(images.labels[indices[order]]))

    def _list(self, images: LabeledImages, broken: Sequence[tuple[int, str]]) -> None:
        """Log the images that could not be read, each once."""
        errors = {images.source.name(index): error for index, error in sorted(broken)}
        new = errors.keys() - self.skipped.keys()
        self.skipped |= errors
        for name in sorted(new):
            log.warning(f"k-NN: skipped {printable(name)}: {errors[name]}")
        if new:
            total = len(self.train) + (0 if self.val is None else len(self.val))
            log.info(
                f"k-NN: {len(self.skipped)} of {total} labeled images cannot be read and "
                f"{verb(len(self.skipped), 'are')} left out"
            )
