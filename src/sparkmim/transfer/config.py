"""The whole configuration of a fine-tuning, in groups that stand beside what they configure."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.config import ViewConfig
from ..training.config import Configuration, LoopConfig
from ..training.optim import OptimizerConfig
from ..training.schedule import ScheduleConfig
from .classifier import ClassifierConfig
from .objective import ObjectiveConfig
from .views import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(ViewConfig):
    """Which images, and which of their labels."""

    data: str
    """Class folders, a CSV file of rows `path,class`, or a folder with train, val and test folders of classes."""

    val_data: str | None = None
    """Class folders or a CSV file to validate with; val beside train if not given. The weights of the best accuracy on
    it are kept."""

    test_data: str | None = None
    """Class folders or a CSV file on which the final weights are scored, once; test beside train if not given."""

    label_share: float = 1.0
    """Share of each class's training images to use, at least one."""

    folds: int = 0
    """Cross-validation: divide the training images into so many folds, and validate with one of them."""

    fold: int = 0
    """Which fold to validate with, from 0."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """The update rule, and how it differs between layers."""

    layer_decay: float = 1.0
    """Factor of the learning rate from one group of layers to the one below it; 1 trains all layers alike."""

    ema: float = 0.0
    """Decay of a moving average of the weights (at first the mean of all), which is what is scored and kept; 0 keeps
    the weights themselves."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Configuration):
    """Everything that determines a fine-tuning, every value resolved."""

    model: ClassifierConfig
    data: LabelledDataConfig
    augment: AugmentConfig
    objective: ObjectiveConfig
    optimizer: FinetuneOptimizerConfig
    schedule: ScheduleConfig
    run: LoopConfig
