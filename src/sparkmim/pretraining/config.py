"""The configuration of a pretraining, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.config import DataConfig
from ..models.config import ModelConfig
from ..training.config import Configuration, LoopConfig
from ..training.optim import OptimizerConfig
from ..training.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """How a pretraining is carried out."""

    pictures: int = 10
    """How many times over the run to draw reconstructions; 0 never."""

    monitor: Literal["none", "knn"] = "none"
    """What the encoder is worth so far: knn classifies the labelled images of --monitor-data by their neighbours."""

    monitor_every: float = 10.0
    """Epochs between two times that the monitor looks; it does after the last step as well."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Configuration):
    """Everything that determines a pretraining, every value resolved."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig
