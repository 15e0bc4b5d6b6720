"""The configuration of a refinement, in groups. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.config import ViewConfig
from ..training.config import Configuration, LayeredOptimizerConfig, LoopConfig, ScheduleConfig
from ..utils.fields import Valid, above_zero, at_least, rate, setting, share


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The network to refine."""

    model: str = setting(kind="code", shapes_model=True)
    """A timm model name, or FILE.py:FUNCTION that returns a module or a sparkmim.Backbone; not needed where the encoder
    records it."""

    stages: tuple[str, ...] = setting((), shapes_model=True)
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    levels: int | None = setting(
        None, Valid(lambda v: v is None or v >= 1, "is a number of feature maps, at least 1"), shapes_model=True
    )
    """Number of feature maps, the deepest ones; those of the encoder if not given."""

    in_chans: int = setting(3, at_least(1, "a number of channels"), shapes_model=True)
    """Channels of the images."""

    encoder: str = setting(kind="weights")
    """Weights to start from: the folder of a run, an encoder.safetensors or other weights, timm (its pretrained ones),
    or none (random ones: contrastive learning from scratch)."""

    drop_path: float = setting(0.0, rate())
    """Highest rate of stochastic depth in the network."""


@dataclass(frozen=True, kw_only=True)
class RefineDataConfig(ViewConfig):
    """Which images to refine on."""

    data: str = setting(kind="images", resumable=True)
    """Folder of images, flat or nested, without labels, or an address (SCHEME://...)."""


@dataclass(frozen=True, kw_only=True)
class StrongViewConfig:
    """What is changed in the two views of an image beside crop and flip."""

    jitter: float = setting(0.5, share("1"))
    """Strength of random changes of brightness, contrast, saturation and hue, or of scale and offset of the channels of
    images that are not RGB of 8 bits; 0 for none."""

    gray: float = setting(0.2, share("the views"))
    """Share of views without color."""

    blur: float = setting(0.5, share("the views"))
    """Share of views that are blurred."""


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The contrast between views."""

    positives: Literal["views", "neighbors"] = setting("views", shapes_model=True)
    """What a view is to be similar to: the other view of its image (NT-Xent), or the nearest neighbor of that among
    images before (NNCLR)."""

    temperature: float = setting(0.1, above_zero("a temperature"))
    """By which similarities are divided."""

    projector_width: int = setting(1024, at_least(1, "a number of channels"), shapes_model=True)
    """Channels within the projector, which is left out afterwards."""

    projection: int = setting(128, at_least(2, "a number of channels"), shapes_model=True)
    """Channels in which views are compared."""

    queue: int = setting(1024, at_least(2, "a number of images"), shapes_model=True)
    """Images before among which --positives neighbors looks."""


@dataclass(frozen=True, kw_only=True)
class RefineConfig(Configuration):
    """Everything that determines a refinement, every value resolved."""

    model: EncoderConfig
    data: RefineDataConfig
    views: StrongViewConfig
    contrast: ContrastConfig
    optimizer: LayeredOptimizerConfig
    schedule: ScheduleConfig
    run: LoopConfig
