"""What recipes of every kind of training share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..models.backbone import Backbone
from ..models.decoder import densify_norm_of
from .precision import Precision


@dataclass(frozen=True, kw_only=True)
class CommonSituation:
    """What a recipe of any kind of training may look at.

    Attributes:
        backbone: the network, without a classifier.
        device: where it will be trained.
        memory_bytes: memory that is free there, for each process.
        cores: processor cores of this machine, for each process.
        processes: that train together.
        chosen: fields that are set already, by name; they override the recipe's result, which may also take them into
            account.
    """

    backbone: Backbone
    device: torch.device
    memory_bytes: int
    cores: int
    processes: int
    chosen: Mapping[str, Any]

    def choice(self, name: str, default: Any) -> Any:
        """What the user has set, else the default."""
        return self.chosen.get(name, default)

    @property
    def parts(self) -> int:
        """What a batch must divide by, as far as it is known."""
        return self.processes * max(1, self.choice("accumulate", 1))

    @property
    def normalised_by_batch(self) -> bool:
        """Whether the network's own norms are batch norms."""
        return densify_norm_of(self.backbone.module) == "batch"


def power_of_two(wanted: float, least: int, most: int, available: int) -> int:
    """The power of two below a number, within limits, and no more than there are."""
    power = 2 ** math.floor(math.log2(max(wanted, 1)))
    return min(max(power, least), most, available)


def divisible(batch_size: int, parts: int) -> int:
    """The largest number up to a batch size that divides by the parts, each of which has at least one image."""
    return max(1, batch_size // parts) * parts


def native_precision(device: torch.device) -> Precision:
    """Mixed precision where the device computes it natively."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed"
    return "32"


def reading_processes(device: torch.device, cores: int) -> int:
    """On an accelerator all cores read images; on a CPU they have the network to compute."""
    if device.type == "cpu":
        return max(1, cores // 4)
    return max(1, min(16, cores - 1))
