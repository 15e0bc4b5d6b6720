"""What an encoder is worth while it is being pretrained."""

from __future__ import annotations

import numpy as np
import torch
from lightning_fabric import Fabric

from ..data import Batch, Subset
from ..data.statistics import first_readable
from ..features import pooled_features
from ..spark import SparK
from ..train import PretrainConfig, RunStopped
from ..train.gather import gather
from ..train.metrics import tell
from ..train.step import Trainer
from .frozen import LabelledFeatures
from .knn import accuracy, best_neighbours, knn_predictions, leave_one_out
from .labels import LabelledImages, read_splits


class KnnMonitor:
    """k-NN accuracy on the features of the encoder as it is, of the deepest map, without hidden patches.

    The number of neighbours is the one that classifies the training images best, each by all others. With validation
    images it is their accuracy that counts, otherwise that of the training images. In float32 whatever the run's
    precision, as `sparkmim knn` measures it of the same images.

    Args:
        train: images whose classes are known to the others.
        val: images to classify; none: those of `train`, each by all others.
    """

    def __init__(self, train: LabelledImages, val: LabelledImages | None) -> None:
        self.train, self.val = train, val
        self.skipped = 0

    def __str__(self) -> str:
        if self.val is None:
            return f"k-NN, each of {len(self.train):,} labelled images by all others"
        return f"k-NN, {len(self.val):,} labelled images by {len(self.train):,} others"

    def __call__(self, trainer: Trainer[SparK, Batch]) -> dict[str, float]:
        """Shares of images classified correctly; all processes share the reading and get the same numbers.

        Raises:
            RunStopped: if hardly any of the images can be read.
        """
        model, classes = trainer.model, len(self.train.classes)
        model.eval()
        train = self._features(trainer, self.train)
        val = None if self.val is None else self._features(trainer, self.val)
        model.train()
        images = len(self.train) + (0 if self.val is None else len(self.val))
        skipped = images - len(train) - (0 if val is None else len(val))
        if skipped > self.skipped and trainer.fabric.is_global_zero:
            tell(f"k-NN: {skipped} of {images} labelled images cannot be read and are left out")
        self.skipped = skipped
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

    def _features(self, trainer: Trainer[SparK, Batch], images: LabelledImages) -> LabelledFeatures:
        """Of the images that can be read, in order."""
        fabric: Fabric = trainer.fabric
        data = trainer.config.data
        own = np.arange(fabric.global_rank, len(images), fabric.world_size)
        found = pooled_features(
            trainer.model.backbone,
            Subset(images.source, own),
            data,
            batch_size=trainer.micro_batch,
            workers=data.workers,
            device=fabric.device,
        )
        parts = gather(fabric, (own[found.indices], found.values))
        indices = np.concatenate([part for part, _ in parts])
        order = np.argsort(indices)
        values = torch.cat([part for _, part in parts])[torch.from_numpy(order)]
        return LabelledFeatures(values, torch.from_numpy(images.labels[indices[order]]))


def find_monitor(config: PretrainConfig) -> KnnMonitor | None:
    """The monitor of a configuration, its images found.

    Raises:
        ValueError: if there are none, or their labels make no sense.
    """
    where = config.data.monitor_data
    if config.run.monitor == "none":
        if where is not None:
            raise ValueError("--monitor-data without a monitor; give --monitor knn too")
        return None
    if where is None:
        raise ValueError("--monitor knn of which images? --monitor-data takes a folder of class folders, or a CSV file")
    train, val = read_splits(where, option="--monitor-data")
    for labelled in (train, val):
        if labelled is not None:
            first_readable(labelled.source, config.model.in_chans)
    return KnnMonitor(train, val)
