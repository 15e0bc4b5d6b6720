"""What a training needs to know of the thing it trains: :class:`TrainingTask`, and how a run of it is prepared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..checkpoints.run_folder import Contents, RunFolder
from ..data.sampler import Positions
from ..data.seeding import Stream
from ..data.sources.base import ImageSource
from .config import TrainingConfig
from .optim import param_groups_weight_decay


class NumberedBatch(Protocol):
    """A batch that knows which images it shows."""

    @property
    def indices(self) -> list[int]:
        """Return the images' numbers."""

    @property
    def broken(self) -> list[tuple[int, str]]:
        """Return number and error of each image that could not be read."""


BatchT = TypeVar("BatchT", bound=NumberedBatch)
ConfigT = TypeVar("ConfigT", bound=Any)  # a Configuration that is a TrainingConfig
DataT = TypeVar("DataT")


class Evaluator(NamedTuple):
    """Something to measure between steps.

    Attributes:
        epochs: between two evaluations; there is one after the last step as well, and none shortly before.
        measure: returns finite numbers by name, the same in all processes, which call it together.
    """

    epochs: float
    measure: Callable[[], dict[str, float]]

    @property
    def name(self) -> str:
        """Return by what a checkpoint knows it."""
        return self.measure.__name__


class TrainingTask(ABC, Generic[BatchT]):
    """One process's part of a training: its model, batches, loss, evaluators, and the files made of a checkpoint.

    Args:
        config: of the training.
        model: what is trained, on the CPU; its module stays the same object when it is moved and wrapped.
        source: images to train on.
        run: the folder to write to.
        fabric: device, precision and processes, launched.

    Attributes:
        evaluators: what to measure between steps.
        pictures: how many times over the run to call :meth:`draw`.
        repeats: views of each image in a step.
        step: steps done, kept up to date by the training loop.
        steps: steps in all, likewise.
    """

    views: Dataset[BatchT]

    def __init__(
        self, config: TrainingConfig, model: nn.Module, source: ImageSource, run: RunFolder, fabric: Fabric
    ) -> None:
        self.config, self.model, self.source, self.run, self.fabric = config, model, source, run, fabric
        self.evaluators: Sequence[Evaluator] = []
        self.pictures = 0
        self.repeats = 1
        self.step = self.steps = 0

    @property
    def micro_batch(self) -> int:
        """Images that this process takes at a time."""
        return self.config.run.batch_size // (self.config.run.accumulate * self.fabric.world_size)

    def param_groups(self) -> list[dict[str, object]]:
        """Return the trainable parameters in groups for the optimizer."""
        return param_groups_weight_decay(self.model.named_parameters())

    @abstractmethod
    def batches(self, positions: Positions) -> DataLoader[BatchT]:
        """Return the batches to train on."""

    @abstractmethod
    def blank_batch(self, images: int) -> BatchT:
        """Return a batch of blank images, to time a step with."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: BatchT) -> Tensor:
        """Return the loss of a micro-batch.

        Args:
            model: as it is called in training, which sees to precision and the gradients of other processes.
            batch: on the CPU.
        """

    def after_step(self) -> None:
        """Follow the model after each update, as averages of weights do."""

    def watch(self) -> dict[str, float]:
        """Return further numbers for a line of metrics; called by the first process, between steps."""
        return {}

    def draw(self) -> None:
        """Draw what the model does now; the first process's work."""

    @abstractmethod
    def publish(self) -> None:
        """Write what is made of a checkpoint; all processes' work."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model's and the optimizer's state."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint's state, see :meth:`state`."""


@dataclass(frozen=True, kw_only=True)
class Preparation(Generic[ConfigT, DataT]):
    """A run that can begin: everything validated, nothing written.

    Attributes:
        recipe: its name.
        config: every value resolved.
        data: the images, as the kind of training reads them.
        run: the folder.
        found: in the folder, when it was looked into.
        state: of the checkpoint to continue from; None for a new run.
        resume: "auto", "never", or the checkpoint file that the user has named.
        goes_back: the state is of the file that the user has named, and becomes the newest one of the folder.
        unreadable: newer checkpoints of the folder, which cannot be read.
        warnings: for the user.
    """

    recipe: str
    config: ConfigT
    data: DataT
    run: RunFolder
    found: Contents
    state: dict[str, Any] | None
    resume: str = "auto"
    goes_back: bool = False
    unreadable: Sequence[Path] = ()
    warnings: Sequence[str] = ()


class TrainingKind(ABC, Generic[ConfigT, DataT]):
    """A kind of training, pretraining or fine-tuning: its configuration, recipes and images, and the task it builds.

    Attributes:
        command: that starts it.
        recorded_as: what `config.json` calls it; None for pretraining.
        config_type: class of its configuration.
        default_recipe: of a new run.
        weights_stream: of the randomness of the initial weights.
        weights_remedy: how to start from the weights of a run of this kind.
        not_this_kind: completes "CHECKPOINT is ..." for the checkpoint of a run of another kind.
    """

    command: str
    recorded_as: str | None
    config_type: type[ConfigT]
    default_recipe: str
    weights_stream: Stream
    weights_remedy: str
    not_this_kind: str

    @abstractmethod
    def resolve(self, recipe: str, chosen: Mapping[str, Any], processes: int) -> tuple[ConfigT, DataT]:
        """Return the configuration that a recipe makes of a situation, and its images.

        Args:
            recipe: a name, or `FILE.py:FUNCTION`.
            chosen: normalized fields that the user has set, by flat name; they take precedence.
            processes: that train together.

        Raises:
            ValueError: naming what is wrong and what to do.
        """

    def describes_a_run(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether fields, by flat name, are enough for a recipe to begin a run by."""
        return "model" in chosen

    def complete(self, chosen: Mapping[str, Any], recorded: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the user's fields with what a run that is resumed says of them.

        Args:
            chosen: normalized fields, by flat name.
            recorded: the run's configuration; empty for a new run.
        """
        return chosen

    def require_effects(self, chosen: Mapping[str, Any], config: ConfigT) -> None:
        """Raise for settings of the user's that change nothing beside the others.

        Raises:
            ValueError: naming the setting, and what it takes.
        """

    @abstractmethod
    def read_data(self, config: ConfigT) -> DataT:
        """Return the images of a configuration."""

    @abstractmethod
    def fingerprints(self, data: DataT) -> dict[str, str]:
        """Return, for each set of images by its name in `config.json`, what identifies it."""

    def watched(self) -> dict[str, str]:
        """Return, by name, what identifies images that do not train; :meth:`validate` has found them."""
        return {}

    @abstractmethod
    def validate(self, ready: Preparation[ConfigT, DataT], processes: int) -> None:
        """Raise for what would go wrong later.

        Raises:
            ValueError: naming the thing, the value and the remedy.
        """

    @abstractmethod
    def build(self, ready: Preparation[ConfigT, DataT], fabric: Fabric) -> TrainingTask[Any]:
        """Return the task of a run; torch's global generator is seeded for the initial weights."""

    def check(self, ready: Preparation[ConfigT, DataT], task: Any) -> None:
        """Check what takes the built model, after the plan is shown and before anything is written.

        Raises:
            ValueError: naming the thing, the value and the remedy.
        """

    @abstractmethod
    def describe(self, ready: Preparation[ConfigT, DataT], task: Any) -> dict[str, str]:
        """Return the plan of a run: label to text."""

    def validate_values(self, chosen: Mapping[str, Any]) -> None:
        """Raise for values that make no sense whatever the others are, beyond their fields' ranges.

        Raises:
            ValueError: naming the field, what it must be, and what it is.
        """
