"""Training: configuration, loop, and the run folder that loses nothing."""

from .config import PretrainConfig, RunConfig, differences, documented_fields
from .failures import RunStopped
from .loop import Evaluation, Outcome, Training
from .optimizer import OptimizerConfig, build_optimizer
from .pretraining import Monitor, Pretraining
from .run_folder import BrokenCheckpoint, RunFolder, read_checkpoint
from .schedule import ScheduleConfig, learning_rate, weight_decay

__all__ = [
    "BrokenCheckpoint",
    "Evaluation",
    "Monitor",
    "OptimizerConfig",
    "Outcome",
    "PretrainConfig",
    "Pretraining",
    "RunConfig",
    "RunFolder",
    "RunStopped",
    "ScheduleConfig",
    "Training",
    "build_optimizer",
    "differences",
    "documented_fields",
    "learning_rate",
    "read_checkpoint",
    "weight_decay",
]
