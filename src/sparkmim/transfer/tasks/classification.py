"""Classification: one class an image, from class folders or a CSV file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.labels import LabeledImages, fold, label_share, labeled_splits, read_labeled, read_matching
from ...data.statistics import first_readable
from ...data.targets import Splits
from ...training.resume import fingerprint_of
from ...utils.specs import is_function
from ...utils.text import counted
from ..augment import AugmentedView, mix, one_hot
from ..losses import classification_loss
from ..network import Network, timm_network
from ..outputs import Outputs
from ..scores import Score, draw_mistakes
from .base import TransferTask


class Classification(TransferTask[LabeledImages]):
    """Predict one class an image. Its settings are groups of :class:`~sparkmim.transfer.config.FinetuneConfig`."""

    metric = "top1"

    def read_split(self, path: Path, option: str, train: LabeledImages | None) -> LabeledImages:
        """Return labeled images; other splits than the training images have the same classes."""
        if train is None:
            return read_labeled(path, option)
        return read_matching(path, train.classes, "the training images", option)

    def read(self, data: Any, seed: int) -> Splits[LabeledImages]:
        """Return the splits of class folders or CSV files."""
        tests = [] if data.test_data is None else [data.test_data]
        train, val, test = labeled_splits(data.data, data.val_data, tests)
        if data.folds and data.val_data is not None:
            raise ValueError("--folds and --val-data both say what to validate with; use one of them")
        if data.folds:
            train, val = fold(train, data.folds, data.fold, seed)
        elif data.fold:
            raise ValueError(f"--fold {data.fold} requires --folds")
        return Splits(label_share(train, data.label_share, seed), val, test[0] if test else None)

    def fingerprint(self, images: LabeledImages | None) -> str:
        """Return the number of images, and digests of their names and labels."""
        if images is None:
            return "none"
        names = "\0".join(images.classes[label] for label in images.labels)
        digest = hashlib.sha256(names.encode(errors="surrogateescape"))
        return f"{fingerprint_of(images.source)}, labels {digest.hexdigest()[:16]}"

    def describe(self, train: LabeledImages) -> str:
        """Return the number of images and classes."""
        counts = train.counts()
        return f"{len(train):,} of {counted(len(counts), 'class', 'classes')}, {min(counts)} to {max(counts)} of each"

    def target(self, images: LabeledImages, index: int) -> Tensor:
        """Return the number of an image's class."""
        return torch.tensor(int(images.labels[index]))

    def describe_targets(self, train: LabeledImages) -> dict[str, Any]:
        """Return the names of the classes."""
        return {"classes": list(train.classes)}

    def head(self, channels: int, targets: Mapping[str, Any]) -> nn.Module:
        """Return a linear classifier."""
        return nn.Linear(channels, len(targets["classes"]))

    def build(self, config: Any, targets: Mapping[str, Any], *, padded: bool = True) -> Network:
        """Return a timm network with timm's own classifier, or any other with a linear one on its deepest map.

        `padded` is off for networks of timm that older versions have fine-tuned, see
        :func:`~sparkmim.transfer.network.timm_network`.
        """
        if is_function(config.model):
            return super().build(config, targets)
        return timm_network(config, len(targets["classes"]), padded=padded)

    def validate(self, config: Any, train: LabeledImages, micro_batch: int) -> None:
        """Raise unless the augmentations are made for the images."""
        if config.augment.repeats > micro_batch:
            raise ValueError(
                f"--repeats {config.augment.repeats} views of an image do not fit into the {micro_batch} images that "
                "are trained on at a time; use fewer --repeats or a larger --batch-size"
            )
        policy, channels = config.augment.policy, config.model.in_chans
        if policy == "none":
            return
        if channels not in (1, 3):
            raise ValueError(f"--policy {policy} takes images of 1 or 3 channels; use --policy none")
        image = first_readable(train.source, channels, config.data, by_part=config.data.by_part).nan_to_num(0)
        low, high = image.min().item(), image.max().item()
        if image.is_floating_point() and not 0 <= low <= high <= 1:
            raise ValueError(
                f"--policy {policy} takes floating-point images for 0 to 1, and would cut off what these have beyond "
                f"({low:.4g} to {high:.4g}); use --policy none"
            )

    def repeats(self, config: Any) -> int:
        """Return the number of views of each image in a step."""
        repeats: int = config.augment.repeats
        return repeats

    def view(self, config: Any) -> AugmentedView:
        """Return a random crop and flip with the configured augmentations."""
        return AugmentedView(config.data, config.augment)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy."""
        return classification_loss(outputs, one_hot(targets, outputs.shape[1]), "cross-entropy", smoothing=0.0)

    def training_loss(
        self,
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        targets: Tensor,
        config: Any,
        described: Mapping[str, Any],
    ) -> Tensor:
        """Return the configured loss of mixed images."""
        images, mixed = mix(images, targets, config.augment, len(described["classes"]))
        return classification_loss(model(images), mixed, config.objective.loss, smoothing=config.objective.smoothing)

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of images classified correctly."""
        return {"top1": float((outputs.argmax(1) == targets).double().mean())}

    def evaluate(self, outputs: Outputs, images: LabeledImages, config: Any) -> dict[str, float]:
        """Return the loss, the share of images classified correctly, and its mean over classes."""
        score = Score.of(outputs, images, config.objective.loss)
        return {"loss": score.loss, "top1": score.top1, "mean_per_class": score.mean_per_class}

    def results(self, outputs: Outputs, images: LabeledImages, config: Any, pictures: Path) -> dict[str, Any]:
        """Return scores, confusion matrix and the worst mistakes, whose pictures are drawn."""
        mistakes = draw_mistakes(outputs, images, config.data, config.model.in_chans, pictures)
        return {**asdict(Score.of(outputs, images, config.objective.loss)), "mistakes": mistakes}
