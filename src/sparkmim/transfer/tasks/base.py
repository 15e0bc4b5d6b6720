"""What a transfer task is: targets read, a head, a loss, a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...checkpoints.encoder import TrainedEncoder
from ...data.config import ViewConfig
from ...data.seeding import Stream, keyed_generator
from ...data.targets import ImagesT, Splits, split_paths
from ...data.volumes.opening import Stores
from ...training.resume import fingerprint_of
from ...utils.fields import NoSettings
from ...utils.specs import find_plugin
from ...utils.text import counted
from ..network import Network, load_config_backbone, pooled_network
from ..outputs import Outputs, compute_outputs
from ..views import ImageView, NormalizedView, TargetBatch, TargetViews, blank_targets


class TransferTask(ABC, Generic[ImagesT]):
    """Decide what a network is fine-tuned for: how targets are read, predicted, compared and scored.

    A subclass in a file is all it takes: in a module of `sparkmim.transfer.tasks`, where its name is the module's, or
    in a file of one's own (`--task FILE.py:CLASS`). Fields of `settings_type`, a frozen dataclass with a default and a
    text below each field, are flags: `--task.FIELD`.

    Args:
        settings: an instance of `settings_type`.

    Attributes:
        metric: name of the score that chooses the weights to keep, among those of :meth:`score`.
        greater_is_better: whether larger scores are better ones.
        dims: numbers of spatial axes of the images that the task is for.
        whole_images: whether images are read as a whole even if views are windows at their own resolution.
        stores: prepares volumes, where the task is for them.
        axes: number of spatial axes of what the network takes.
        channels: of what the network takes; None if it is not known yet.
    """

    settings_type: ClassVar[type[Any]] = NoSettings
    metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    dims: ClassVar[tuple[int, ...]] = (2,)
    whole_images: ClassVar[bool] = False
    stores: Stores | None = None
    axes: int = 2
    channels: int | None = None

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the task with its settings among a configuration's fields, by flat name; others keep defaults."""
        own = {name.removeprefix("task."): value for name, value in values.items() if name.startswith("task.")}
        return cls(cls.settings_type(**own))

    def decisive(self) -> dict[str, Any]:
        """Return the fields, by flat name, that decide which images and targets are read."""
        return {f"task.{name}": value for name, value in asdict(self.settings).items()}

    def defaults(self, encoder: TrainedEncoder) -> dict[str, Any]:
        """Return fields, by flat name, that follow from an encoder where the user sets none."""
        return {}

    def require_dims(self, dims: int, network: str, data: str) -> None:
        """Raise unless the task is for images of so many axes, those that a network takes.

        Raises:
            ValueError: naming the network.
        """
        if dims not in self.dims:
            raise ValueError(
                f"{network} takes data of {dims} axes, and the task {type(self).__name__} those of "
                f"{' or '.join(map(str, self.dims))}; name another network, or --task classification or segmentation"
            )

    def effects(self, config: Any) -> dict[str, tuple[bool, str]]:
        """Return, for fields by flat name, whether they have an effect, and what it takes to have one."""
        return {}

    def extents(self, train: ImagesT) -> tuple[int, ...]:
        """Return the median size of the training images along each axis, () if a recipe need not know it."""
        return ()

    def input_statistics(
        self, train: ImagesT, encoder: TrainedEncoder
    ) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and deviation of each channel; None for those of the encoder, or measured ones."""
        return None

    def describe_training(self, config: Any) -> list[str]:
        """Return augmentations and loss in words, for the plan of a run."""
        return []

    def describe_lines(self, train: ImagesT, config: Any) -> dict[str, str]:
        """Return further lines of the plan: label to text."""
        return {}

    def in_chans(self, data: str, encoder: str) -> int | None:
        """Return the channels of a network that starts from random weights, None to leave them to it."""
        return None

    # --- images and targets -------------------------------------------------------------------------------------

    @abstractmethod
    def read_split(self, path: Path, option: str, train: ImagesT | None) -> ImagesT:
        """Return the images of a folder or table with their targets.

        Args:
            path: the folder or file.
            option: that named it, for messages.
            train: the training images, when others are read.

        Raises:
            ValueError: naming what is wrong with the data.
        """

    def read(self, data: Any, seed: int) -> Splits[ImagesT]:
        """Return the splits of a data set.

        Args:
            data: a :class:`~sparkmim.transfer.config.LabeledDataConfig`.
            seed: of shares and folds.

        Raises:
            ValueError: as for :meth:`read_split`, and for choices that contradict each other.
        """
        if data.folds and data.val_data is not None:
            raise ValueError("--folds and --val-data both say what to validate with; use one of them")
        if data.fold and not data.folds:
            raise ValueError(f"--fold {data.fold} requires --folds")
        paths = split_paths(data.data, data.val_data, data.test_data)
        train = self.read_split(paths.train, "--data", None)
        val = None if paths.val is None else self.read_split(paths.val, "--val-data", train)
        test = None if paths.test is None else self.read_split(paths.test, "--test-data", train)
        if data.folds:
            train, val = self.fold(train, data.folds, data.fold, seed)
        return Splits(self.share(train, data.label_share, seed), val, test)

    def share(self, images: ImagesT, share: float, seed: int) -> ImagesT:
        """Return a share of the training images; larger shares contain smaller ones."""
        order = torch.randperm(len(images), generator=keyed_generator(seed, Stream.LABEL_SHARE)).numpy()
        return images.subset(np.sort(order[: max(1, round(share * len(images)))]))

    def fold(self, images: ImagesT, folds: int, index: int, seed: int) -> tuple[ImagesT, ImagesT]:
        """Return what to train on and what to validate with in one fold of a cross-validation.

        Raises:
            ValueError: if there is no such fold, or fewer images than folds.
        """
        if not index < folds <= len(images):
            raise ValueError(f"--fold {index} of --folds {folds} does not exist for {counted(len(images), 'image')}")
        order = torch.randperm(len(images), generator=keyed_generator(seed, Stream.FOLDS)).numpy()
        held_out = np.sort(order[index::folds])
        return images.subset(np.setdiff1d(np.arange(len(images)), held_out)), images.subset(held_out)

    def fingerprint(self, images: ImagesT | None) -> str:
        """Return what identifies images and targets, so that a run is resumed with the same ones."""
        if images is None:
            return "none"
        digest = getattr(images, "digest", None)
        return fingerprint_of(images.source) + ("" if digest is None else f", targets {digest()}")

    def describe(self, train: ImagesT) -> str:
        """Return what the plan of a run says of the training images."""
        return f"{len(train):,}"

    @abstractmethod
    def target(self, images: ImagesT, index: int) -> Tensor:
        """Return the target of an image, without a batch's axis."""

    def describe_targets(self, train: ImagesT) -> dict[str, Any]:
        """Return what the head must know of the targets, as plain values: saved with the weights."""
        return {}

    # --- the network --------------------------------------------------------------------------------------------

    @abstractmethod
    def head(self, channels: int, targets: Mapping[str, Any]) -> nn.Module:
        """Return the head, from pooled features `(B, channels)` to outputs.

        Args:
            channels: of the network's deepest map.
            targets: see :meth:`describe_targets`.
        """

    def build(self, config: Any, targets: Mapping[str, Any]) -> Network:
        """Return the network with its head, with random weights.

        Args:
            config: a :class:`~sparkmim.transfer.config.NetworkConfig`.
            targets: see :meth:`describe_targets`.
        """
        backbone = load_config_backbone(config)
        return pooled_network(backbone, self.head(backbone.channels[-1], targets))

    # --- training -----------------------------------------------------------------------------------------------

    def validate(self, config: Any, train: ImagesT, micro_batch: int) -> None:
        """Raise for settings that do not fit the images.

        Args:
            config: of the run.
            train: the training images.
            micro_batch: images that are trained on at a time.

        Raises:
            ValueError: naming the thing, the value and the remedy.
        """

    def repeats(self, config: Any) -> int:
        """Return the number of views of each image in a step."""
        return 1

    def view(self, config: Any) -> ImageView:
        """Return how training images are cut and changed: a random crop and flip, normalized."""
        data: ViewConfig = config.data
        return NormalizedView(data)

    def views(self, train: ImagesT, config: Any) -> Dataset[TargetBatch]:
        """Return the views to train on with their targets, looked up by epoch and index."""
        target = partial(self.target, train)
        return TargetViews(train.source, target, self.view(config), config.model.in_chans, config.run.seed)

    def blank_target(self, train: ImagesT, config: Any) -> Tensor:
        """Return a target of the shape of those of training, to time a step with."""
        return self.target(train, 0)

    def blank_targets(self, train: ImagesT, config: Any, images: int) -> Any:
        """Return targets of as many blank images."""
        return blank_targets(self.blank_target(train, config), images)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    def training_loss(
        self,
        model: Callable[..., Any],
        images: Tensor,
        targets: Any,
        config: Any,
        described: Mapping[str, Any],
    ) -> Tensor:
        """Return the loss of a batch in training, where images may be mixed first.

        Args:
            model: as it is called in training: with the images, and whatever else its module takes.
            images: `(B, C, H, W)`, normalized, on the device.
            targets: likewise on the device.
            config: of the run.
            described: see :meth:`describe_targets`.
        """
        return self.loss(model(images), targets)

    # --- evaluation ---------------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return finite scores by name, :attr:`metric` among them, of outputs and targets of all images of a split."""

    def outputs(
        self,
        module: nn.Module,
        images: ImagesT,
        data: ViewConfig,
        channels: int,
        targets: Mapping[str, Any],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Outputs:
        """Return what a network says of images, a row each, in float32: what :meth:`evaluate` takes.

        Args:
            module: on the device.
            images: with their targets.
            data: how images are seen.
            channels: of the images.
            targets: see :meth:`describe_targets`.
            batch_size: images, or pieces of them, at a time.
            workers: processes that read images.
            device: where to compute.
        """
        return compute_outputs(
            module, images.source, data, channels, batch_size=batch_size, workers=workers, device=device
        )

    def pictures(
        self,
        module: nn.Module,
        outputs: Outputs,
        images: ImagesT,
        config: Any,
        targets: Mapping[str, Any],
        folder: Path,
        device: torch.device,
    ) -> dict[str, Any]:
        """Draw pictures of a split at the end, and return what `results.json` says of them.

        Args:
            module: on the device, in evaluation mode.
            outputs: of :meth:`outputs`, for all images.
            images: with their targets.
            config: of the run.
            targets: see :meth:`describe_targets`.
            folder: for the pictures.
            device: where to compute.
        """
        return {}

    def targets_of(self, images: ImagesT, indices: list[int]) -> Tensor:
        """Return the targets of some images."""
        return torch.stack([self.target(images, index) for index in indices])

    def evaluate(self, outputs: Outputs, images: ImagesT, config: Any) -> dict[str, float]:
        """Return the loss and the scores of a network's outputs for a split."""
        targets = self.targets_of(images, outputs.indices)
        return {"loss": float(self.loss(outputs.values, targets)), **self.score(outputs.values, targets)}

    def results(self, outputs: Outputs, images: ImagesT, config: Any, pictures: Path) -> dict[str, Any]:
        """Return what `results.json` says of a split at the end.

        Args:
            outputs: of the network.
            images: with their targets.
            config: of the run.
            pictures: folder for pictures of the split.
        """
        counts = {"images": len(outputs.indices), "broken": len(outputs.broken)}
        return {**counts, **self.evaluate(outputs, images, config)}

    def is_better(self, score: float, best: float) -> bool:
        """Return whether a score is at least as good as the best one."""
        return score >= best if self.greater_is_better else score <= best

    def predictions(self, outputs: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """Return what a table of predictions shows of outputs, `(images, columns)`.

        Args:
            outputs: one row an image.
            targets: see :meth:`describe_targets`.
        """
        return outputs


def find_task(name: str) -> type[TransferTask[Any]]:
    """Return a task's class by name: of a module here, `FILE.py:CLASS`, `MODULE:CLASS`, or an installed plug-in.

    Raises:
        ValueError: for an unknown name.
    """
    return find_plugin(name, "sparkmim.transfer.tasks", TransferTask, "--task")
