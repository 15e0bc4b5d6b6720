"""Inspect and check one of timm's networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import timm
import torch

from ...models.backbone import Backbone
from ...sparse import check
from ...sparse.errors import WAYS_OUT
from .inspection import architecture_of, inspect_operations, one_line

CHECKS = ("identity", "crop", "leak", "oracle")

GRID = (2, 3)
"""Patches along each axis in the checks."""

LARGE_GRID = (3, 4)
"""The same after a deviation: with few positions, batch norms amplify rounding; real errors remain with more."""

DOUBLE_UP_TO = 200e6
"""Largest number of parameters checked in float64 at once. Larger networks are checked in float32, and in float64 after
a deviation: gradients through hundreds of batch norms are not precise enough in float32."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome for one network.

    Attributes:
        family: timm's module that defines it.
        architecture: a digest of its structure; equal for networks that differ only in weights.
        parameters: number of parameters, without a classifier.
        same: other networks of the same architecture.
        excluded: why it is not a convolutional network, or None.
        error: why it does not work on visible patches, or None.
        patch: patch size in the checks: the total stride, or twice that if the network was refused there.
        levels: stride and channels of each feature map, highest resolution first.
        unreached: number of parameters that no feature map depends on.
        deviations: for each check the largest relative deviation of values, gradients and running statistics, in
            evaluation and training mode; infinite where an operation was refused.
        passed: whether all deviations are within the tolerance of the precision.
        precision: "float64" or "float32", whose tolerance applies: large networks are checked in float32 first, and
            some convert to it by themselves.
        pending: convolutional, but not checked since it is larger than the sweep's limit.
        versions: versions of the engine, torch and timm, in a stored outcome.
    """

    model: str
    family: str
    parameters: int = 0
    architecture: str = ""
    same: list[str] = field(default_factory=list)
    excluded: str | None = None
    error: str | None = None
    levels: list[tuple[str, int]] = field(default_factory=list)
    unreached: int = 0
    patch: str = ""
    deviations: dict[str, float] = field(default_factory=dict)
    passed: bool = False
    precision: str = "float64"
    seconds: float = 0.0
    pending: bool = False
    versions: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether it returned deviating numbers without an error."""
        return bool(self.deviations) and not self.passed and self.error is None

    def __str__(self) -> str:
        if self.excluded:
            return f"excluded  {self.model}: {self.excluded}"
        if self.error:
            return f"fails     {self.model}: {self.error}"
        verdict = "passes" if self.passed else "WRONG "
        deviation = max(self.deviations.values(), default=math.inf)
        return f"{verdict}    {self.model}: largest deviation {deviation:.0e}, {self.precision}, {self.seconds:.0f} s"


def inspect_model(model: str) -> Verdict:
    """Return a timm network's number of parameters, and whether it is convolutional."""
    family = family_of(model)
    try:
        with torch.device("meta"):
            network = timm.create_model(model, num_classes=0).eval()
    except Exception as error:
        return Verdict(model=model, family=family, excluded=f"it cannot be built without data: {one_line(error)}")
    parameters = sum(p.numel() for p in network.parameters())
    size = (timm.get_pretrained_cfg_value(model, "input_size") or (3, 224, 224))[-1]
    reason = inspect_operations(network, size)
    return Verdict(
        model=model, family=family, parameters=parameters, excluded=reason, architecture=architecture_of(network)
    )


def check_model(model: str) -> Verdict:
    """Return a timm network's feature maps, and the outcome of its four checks."""
    start = monotonic()
    torch.manual_seed(0)
    known: dict[str, Any] = {"model": model, "family": family_of(model)}
    try:
        network = Backbone.create(model)
    except ValueError as error:
        return Verdict(**known, error=one_line(error), seconds=monotonic() - start)
    sizes = {name: p.numel() for name, p in network.module.named_parameters()}
    dtypes = [torch.float64] if sum(sizes.values()) <= DOUBLE_UP_TO else [torch.float32, torch.float64]
    known["parameters"] = sum(sizes.values())
    known["levels"] = [(by_axis(level.stride), level.channels) for level in network.levels]
    known["unreached"] = sum(sizes[name] for name in network.unreached_parameters())
    patch = network.resolve_patch_size()
    for dtype in dtypes:
        report = check(network.module, network, patch_size=patch, grid=GRID, dtype=dtype)
        if report.errors:
            patch = tuple(2 * extent for extent in patch)
            report = check(network.module, network, patch_size=patch, grid=GRID, dtype=dtype)
        if report.passed or report.errors:
            break
    else:
        report = check(network.module, network, patch_size=patch, grid=LARGE_GRID, batch=4, dtype=dtype)
    known["patch"] = by_axis(patch)
    known["precision"] = str(report.precision if dtype == torch.float64 else dtype).removeprefix("torch.")
    known["deviations"] = {c: max(r.deviation for r in report.results if r.check == c) for c in CHECKS}
    known["passed"] = report.passed
    if report.errors:
        known["error"] = one_line(report.errors[0].replace(WAYS_OUT, "").strip())
    return Verdict(**known, seconds=monotonic() - start)


def by_axis(extents: Sequence[int]) -> str:
    """Format sizes along all axes: 32 if they are equal, else 16x32."""
    return "x".join(map(str, dict.fromkeys(extents)))


def family_of(model: str) -> str:
    """Return the module of timm that defines a network."""
    module: str = timm.models._registry._model_to_module[model]
    return module
