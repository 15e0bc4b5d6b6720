"""Parts shared by recipes of every kind of training. A recipe is a function from a situation to a configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..models.backbone import Backbone
from ..models.densify import densify_norm_of
from ..utils.distributed import local_processes
from ..utils.specs import load_object
from .config import Precision, TrainingConfig
from .memory import micro_batches

RecipeT = TypeVar("RecipeT", bound=Callable[..., Any])
TrainingConfigT = TypeVar("TrainingConfigT", bound=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class CommonSituation:
    """What a recipe of any kind of training may look at.

    Attributes:
        backbone: the network, without a classifier.
        device: where it will be trained.
        memory_bytes: free memory there, for each process.
        cores: processor cores of this machine, for each process.
        processes: that train together.
        chosen: fields that the user has set, by flat name; they override the recipe's result, which may also take them
            into account.
    """

    backbone: Backbone
    device: torch.device
    memory_bytes: int
    cores: int
    processes: int
    chosen: Mapping[str, Any]

    def choice(self, name: str, default: Any) -> Any:
        """Return what the user has set, else the default."""
        return self.chosen.get(name, default)

    @property
    def parts(self) -> int:
        """What a batch must divide by, as far as it is known."""
        return self.processes * max(1, self.choice("accumulate", 1))

    @property
    def normalized_by_batch(self) -> bool:
        """Whether the network's own norms are batch norms."""
        return densify_norm_of(self.backbone.module) == "batch"


def find_recipe(name: str, recipes: Mapping[str, RecipeT]) -> RecipeT:
    """Return a recipe by name, or the function of a file.

    Raises:
        ValueError: for an unknown one.
    """
    if name in recipes:
        return recipes[name]
    if ".py:" in name:
        return load_object(name)  # type: ignore[no-any-return]
    raise ValueError(f"there is no recipe {name!r}; use one of {', '.join(recipes)}, or FILE.py:FUNCTION")


def with_accumulation(
    situation: CommonSituation,
    config: TrainingConfigT,
    fits: Callable[[], int],
) -> TrainingConfigT:
    """Return the configuration with the fewest micro-batches that fit into memory and divide the batch.

    Nothing is changed where the user has chosen them, or where the batch does not divide among the processes, which is
    reported elsewhere.

    Args:
        situation: of the recipe.
        config: complete but for `accumulate`.
        fits: returns how many images fit, if it is needed.
    """
    batch, processes = config.run.batch_size, situation.processes
    if "accumulate" in situation.chosen or batch % processes:
        return config
    return config.replace({"accumulate": micro_batches(batch // processes, fits())})


def cores_per_process() -> int:
    """Return the number of this machine's processor cores, for each process."""
    return max(1, (os.cpu_count() or 1) // local_processes())


def power_of_two(wanted: float, least: int, most: int, available: int) -> int:
    """Return the largest power of two up to a number, within limits, and no more than there are."""
    power = 2 ** math.floor(math.log2(max(wanted, 1)))
    return min(max(power, least), most, available)


def divisible(batch_size: int, parts: int) -> int:
    """Return the largest number up to a batch size that divides by the parts, each of at least one image."""
    return max(1, batch_size // parts) * parts


def native_precision(device: torch.device) -> Precision:
    """Return mixed precision where the device computes it natively."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed"
    return "32"


def reading_processes(device: torch.device, cores: int) -> int:
    """Return how many processes read images: on an accelerator all cores, on a CPU those the network can spare."""
    if device.type == "cpu":
        return max(1, cores // 4)
    return max(1, min(16, cores - 1))
