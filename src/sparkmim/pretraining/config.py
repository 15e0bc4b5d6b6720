"""The configuration of a pretraining, in groups. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.config import ClipConfig, DataConfig, SignalConfig, VolumeConfig
from ..models.config import ModelConfig
from ..objectives.settings import LatentsSettings, PixelsSettings
from ..training.config import Configuration, LoopConfig, OptimizerConfig, ScheduleConfig, plugin
from ..utils.fields import NoSettings, above_zero, at_least, setting

OWN_SETTINGS: dict[str, type[Any]] = {"pixels": PixelsSettings, "latents": LatentsSettings}


def settings_of_objective(name: str | None) -> type[Any]:
    """Return the class of an objective's settings; imports the objective, but for those whose settings are known."""
    own = OWN_SETTINGS.get(name or "pixels")
    if own is not None:
        return own
    from ..objectives.base import find_objective

    return find_objective(str(name)).settings_type


def settings_of_source(address: str | None) -> type[Any]:
    """Return the class of the settings of the source that opens an address; folders have none."""
    if address is None or "://" not in str(address):
        return NoSettings
    from ..data.sources.address import source_type

    return source_type(address).settings_type or NoSettings


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """How a pretraining is carried out."""

    pictures: int = setting(10, at_least(0), resumable=True)
    """How many times over the run to draw reconstructions; 0 never."""

    monitor: Literal["none", "knn"] = setting("none", resumable=True)
    """Evaluate the encoder during training: knn classifies the labeled images of --monitor-data by their neighbors."""

    monitor_every: float = setting(10.0, above_zero("a number of epochs"), resumable=True)
    """Epochs between two evaluations of the monitor; there is one after the last step as well."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Configuration):
    """Everything that determines a pretraining, every value resolved."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig
    volumes: VolumeConfig = field(default_factory=VolumeConfig)
    signals: SignalConfig = field(default_factory=SignalConfig)
    clips: ClipConfig = field(default_factory=ClipConfig)
    objective: Any = plugin("objective", settings_of_objective)
    source: Any = plugin("data", settings_of_source)
