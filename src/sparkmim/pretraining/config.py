"""The configuration of a pretraining, in groups. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.config import ClipConfig, DataConfig, SignalConfig, VolumeConfig
from ..models.config import ModelConfig
from ..objectives.settings import DistillSettings, LatentsSettings, PixelsSettings
from ..training.config import Configuration, LoopConfig, OptimizerConfig, ScheduleConfig, plugin
from ..utils.fields import NoSettings, Valid, above_zero, at_least, setting

OWN_SETTINGS: dict[str, type[Any]] = {
    "pixels": PixelsSettings,
    "latents": LatentsSettings,
    "distill": DistillSettings,
}


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

    memory_efficient: bool = setting(True, resumable=True)
    """Compute norms and activations of the decoder again in backward instead of keeping them: less memory for more
    time, and the same numbers. Recipes switch it off on a GPU whose memory allows."""

    monitor: Literal["none", "knn"] = setting("none", resumable=True)
    """Evaluate the encoder during training: knn classifies the labeled images of --monitor-data by their neighbors."""

    monitor_every: float = setting(10.0, above_zero("a number of epochs"), resumable=True)
    """Epochs between two evaluations of the monitor; there is one after the last step as well."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen network of --objective distill; other objectives have no use for it."""

    teacher: str | None = setting(None, kind="teacher")
    """A timm name, whose weights timm gets; the folder of a run, of timm or of transformers (Hugging Face); an
    encoder.safetensors; or FILE.py:FUNCTION, which returns a network with its weights."""

    teacher_size: int | None = setting(None, Valid(lambda v: v is None or v >= 1, "is a number of pixels, at least 1"))
    """Pixels of each side of the images that the teacher sees, whole; its own size if not given."""

    teacher_mean: tuple[float, ...] = ()
    """Mean of each channel of the teacher's images; its own if not given."""

    teacher_std: tuple[float, ...] = ()
    """Standard deviation of each channel of the teacher's images, likewise."""

    teacher_store: str | None = setting(None, kind="folder", resumable=True)
    """Folder for the teacher's maps, which runs on the same images share; the folder of the run's folder if not
    given."""


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
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objective: Any = plugin("objective", settings_of_objective)
    source: Any = plugin("data", settings_of_source)
