"""Check whether a network works on visible patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from ..models.backbone import Backbone
from ..models.factory import code_of, load_backbone
from ..models.levels import Level
from ..sparse.check_report import CheckReport as PropertyReport
from ..utils.text import counted


class CheckReport(NamedTuple):
    """Feature maps of a network, how much of it pretraining reaches, and the outcome of the checks.

    Attributes:
        model: name of the network.
        levels: stride and channels of each feature map, highest resolution first.
        parameters: number of parameters.
        reached: number of parameters that a feature map depends on, which pretraining trains.
        properties: deviations in identity, crop, leak and oracle; see :mod:`sparkmim.sparse.check`.
        stages: name of each feature map; empty for a network that offers them itself.
        notes: what is unusual: padding that is added, parameters that are overlooked.
    """

    model: str
    levels: tuple[Level, ...]
    parameters: int
    reached: int
    properties: PropertyReport
    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the network works on visible patches."""
        return self.properties.passed

    def __str__(self) -> str:
        levels = [f"stride {' x '.join(map(str, v.stride)):<9} {counted(v.channels, 'channel')}" for v in self.levels]
        stages = [f"maps: {', '.join(name or 'the output' for name in self.stages)}"] * bool(self.stages)
        notes = [f"note: {note}" for note in self.notes]
        reached = f"{self.reached / 1e6:.2f} of {self.parameters / 1e6:.2f} million parameters"
        verdict = f"{self.model} {'works' if self.passed else 'does NOT work'} on visible patches"
        return "\n".join(
            [*levels, f"{reached} are reached by pretraining", *stages, *notes, "", str(self.properties), "", verdict]
        )


def check(
    model: str | nn.Module | Backbone,
    *,
    stages: Sequence[str] = (),
    levels: int | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    precision: Literal["float64", "float32"] = "float64",
    image_size: int | Sequence[int] | None = None,
) -> CheckReport:
    """Check that a network computes the same on visible patches as a masked network would on whole images.

    Args:
        model: a timm name, `FILE.py:FUNCTION`, `MODULE:FUNCTION`, a module, or a Backbone.
        stages: names of the submodules whose outputs are the feature maps, if the network does not offer them itself.
        levels: number of feature maps, the deepest ones; 4 by default, or as many as there are.
        patch_size: side of a patch in pixels, a multiple or a divisor of the total stride, which is the default.
        in_chans: channels of the images; 3 by default, or those of a Backbone.
        precision: of the computation; deviations up to 1e-8 pass in float64, up to 2e-3 in float32.
        image_size: pixels of the images of training, one number or one an axis: the feature maps of one such image are
            compared as well, since a network may compute something else on large images.

    Raises:
        ValueError: for an unknown network, one without feature maps, or settings that do not fit it.
    """
    if precision not in ("float64", "float32"):
        raise ValueError(f"--precision takes float64 or float32, not {precision!r}")
    name = model if isinstance(model, str) else type(getattr(model, "module", model)).__name__
    with code_of(name):
        if isinstance(model, str):
            backbone = load_backbone(model, stages, in_chans, levels=levels)
        elif isinstance(model, Backbone):
            backbone = model
        else:
            backbone = Backbone(model, stages or None, in_chans=in_chans or 3, levels=levels)
    unreached = set(backbone.unreached_parameters())
    sizes = {name: parameter.numel() for name, parameter in backbone.module.named_parameters()}
    with code_of(name):
        properties = backbone.check(patch_size, dtype=getattr(torch, precision), image_size=image_size)
    return CheckReport(
        model=name,
        levels=tuple(backbone.levels),
        parameters=sum(sizes.values()),
        reached=sum(size for name, size in sizes.items() if name not in unreached),
        properties=properties,
        stages=tuple(backbone.stages),
        notes=tuple(backbone.notes),
    )
