"""Classification: one class an image, from class folders or a CSV file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...checkpoints.encoder import TrainedEncoder
from ...data.config import VolumeConfig
from ...data.labels import LabeledImages, fold, label_share, labeled_splits, read_labeled, read_matching
from ...data.sources.base import ImageSource
from ...data.statistics import first_readable
from ...data.targets import Splits
from ...data.volumes.base import Cases
from ...data.volumes.opening import Stores, are_volumes, prepared_as
from ...data.volumes.preparing import Preparation
from ...data.volumes.store import PreparedVolumes
from ...pretraining.volumes import described, is_normalized, median_extents, require_few_unreadable
from ...training.resume import fingerprint_of
from ...utils.logging import log
from ...utils.specs import is_function
from ...utils.text import counted, printable
from ..augment import AugmentedView, mix, one_hot
from ..losses import classification_loss
from ..network import Network, timm_network
from ..outputs import Outputs
from ..scores import Score, draw_mistakes
from ..volumes import settings_of_volumes
from .base import TransferTask


class Classification(TransferTask[LabeledImages]):
    """Predict one class an image. Its settings are groups of :class:`~sparkmim.transfer.config.FinetuneConfig`."""

    metric = "top1"
    dims = (2, 3)

    def __init__(self, settings: Any, volumes: VolumeConfig | None = None) -> None:
        super().__init__(settings)
        self.volumes = VolumeConfig() if volumes is None else volumes

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the task with its settings among a configuration's fields, by flat name."""
        names = [field.name for field in fields(VolumeConfig) if field.name in values]
        return cls(cls.settings_type(), VolumeConfig(**{name: values[name] for name in names}))

    def decisive(self) -> dict[str, Any]:
        """Return how volumes are prepared, of which nothing matters to images."""
        return asdict(self.volumes) if self.axes == 3 else {}

    def defaults(self, encoder: TrainedEncoder) -> dict[str, Any]:
        """Return how the volumes that an encoder has learned from were prepared."""
        return settings_of_volumes(encoder)

    def in_chans(self, data: str, encoder: str) -> int | None:
        """Return the channels of volumes, where a network starts from random weights."""
        if encoder != "none" or not (Path(data).expanduser().is_dir() and are_volumes(data)):
            return None
        return self._stores.channels(data)

    @property
    def _stores(self) -> Stores:
        return Stores() if self.stores is None else self.stores

    @property
    def _unprepared(self) -> Preparation | None:
        """How labeled volumes are read before it is known how they are prepared; None for images."""
        return Preparation.nothing(self.channels or 1) if self.axes == 3 else None

    def _prepared(
        self, images: LabeledImages | None, path: Any, option: str, train: LabeledImages | None
    ) -> LabeledImages | None:
        """Return labeled volumes, prepared as the settings say, or as those to train on; images as they are."""
        if images is None or self.axes != 3:
            return images
        stores, like = self._stores, None if train is None else train.source
        address = f"{path}-{option.strip('-')}"  # a split may lie in the folder or the table of another one

        def open_cases(cases: Cases) -> ImageSource:
            stores.name_cases(address, cases)
            return stores.open(address, self.volumes, like, option)

        found = images.prepared(open_cases)
        if len(found) < len(images):
            assert isinstance(found.source, PreparedVolumes)
            name, reason = found.source.unreadable[0]
            log.warning(
                f"{len(images) - len(found):,} of {len(images):,} volumes of {option} cannot be read and are left out; "
                f"{printable(name)}: {reason}"
            )
        return found

    def read_split(self, path: Path, option: str, train: LabeledImages | None) -> LabeledImages:
        """Return labeled images; other splits than the training images have the same classes."""
        if train is None:
            read = read_labeled(path, option, self._unprepared)
        else:
            read = read_matching(path, train.classes, "the training images", option, self._unprepared)
        prepared = self._prepared(read, path, option, train)
        assert prepared is not None
        return prepared

    def read(self, data: Any, seed: int) -> Splits[LabeledImages]:
        """Return the splits of class folders or CSV files; volumes are prepared."""
        tests = [] if data.test_data is None else [data.test_data]
        read = labeled_splits(data.data, data.val_data, tests, self._unprepared)
        train = self._prepared(read.train, data.data, "--data", None)
        assert train is not None
        val = self._prepared(read.val, data.val_data or data.data, "--val-data", train)
        test = [self._prepared(part, data.test_data or data.data, "--test-data", train) for part in read.test]
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
        """Return the names of the classes, and how volumes were prepared."""
        preparation = prepared_as(train.source)
        volumes = {} if preparation is None else {"volumes": preparation.as_json()}
        return {"classes": list(train.classes), **volumes}

    def extents(self, train: LabeledImages) -> tuple[int, ...]:
        """Return the median size of volumes along each axis; of images a recipe need not know it."""
        return () if prepared_as(train.source) is None else median_extents(train.source)

    def input_statistics(
        self, train: LabeledImages, encoder: TrainedEncoder
    ) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return 0 and 1 for volumes that were normalized when they were prepared."""
        if encoder.statistics_known or not is_normalized(train.source):
            return None
        channels = encoder.backbone.in_chans
        return (0.0,) * channels, (1.0,) * channels

    def effects(self, config: Any) -> dict[str, tuple[bool, str]]:
        """Return that settings of volumes have no effect on images."""
        volumes = len(config.data.image_size) == 3, "on images; it is for volumes"
        return {field.name: volumes for field in fields(VolumeConfig)}

    def describe_lines(self, train: LabeledImages, config: Any) -> dict[str, str]:
        """Return how volumes were prepared."""
        return described(train.source)

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
        if len(config.data.image_size) == 3:
            self._validate_volumes(config, train)
            return
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

    def _validate_volumes(self, config: Any, train: LabeledImages) -> None:
        """Raise unless the augmentations are made for volumes, and few of these are unreadable."""
        augment = config.augment
        given = {"--policy": augment.policy != "none", "--erasing": augment.erasing > 0}
        given |= {"--mixup": augment.mixup > 0, "--cutmix": augment.cutmix > 0}
        for flag in (flag for flag, on in given.items() if on):
            raise ValueError(
                f"{flag} changes images of two dimensions, and --data holds volumes; leave it out, or take --recipe "
                "small-data, which does not set it. --flip and --rotate change volumes"
            )
        if config.data.crop == "resized":
            raise ValueError("--crop resized is for images; volumes are resampled once (--spacing): use --crop native")
        require_few_unreadable(train.source, config.data.max_broken)

    def repeats(self, config: Any) -> int:
        """Return the number of views of each image in a step."""
        repeats: int = config.augment.repeats
        return repeats

    def view(self, config: Any) -> AugmentedView:
        """Return a random crop and flip with the configured augmentations."""
        return AugmentedView(config.data, config.augment, rotate=self.volumes.rotate)

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
        mistakes = draw_mistakes(
            outputs, images, config.data, config.model.in_chans, pictures, self.volumes.orientation
        )
        return {**asdict(Score.of(outputs, images, config.objective.loss)), "mistakes": mistakes}
