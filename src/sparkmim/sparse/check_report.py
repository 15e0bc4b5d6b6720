"""Outcome of a check."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Largest relative deviation that passes, by precision."""

GRADIENT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-2}
"""Largest relative deviation of gradients that passes, which batch norm over few positions makes less exact."""

ROUNDING = 10.0
"""Times that by which rounding changes the ordinary network, within which a deviation is rounding too."""

MOST_ROUNDING = 1e-5
"""Above which no deviation in float64 is taken for rounding."""

FLOOR = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Share of the norm of all gradients below which one is zero but for rounding (that of a bias before batch norm)."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one property in one mode.

    Attributes:
        check: "identity", "crop", "leak", "oracle", "hidden" or "size".
        mode: "eval" or "train".
        values, gradients, statistics: the largest relative deviation of feature maps, of parameter and input
            gradients, and of running statistics; infinite where NaN. "size" measures values alone.
        error: the message of an :class:`UnsupportedOperation`, if one was raised, or why there is nothing to compare.
        shape: of "size", the number of images and their size.
        rounding: of values, gradients and statistics, the deviations of what they are compared with from itself on
            images that differ by rounding. Measured where they exceed the tolerance a little, as in very deep networks.
    """

    check: str
    mode: str
    tolerance: float
    gradient_tolerance: float
    values: float = math.inf
    gradients: float = math.inf
    statistics: float = math.inf
    error: str | None = None
    shape: tuple[int, ...] | None = None
    rounding: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def deviation(self) -> float:
        """Largest of the three."""
        return max(self.values, self.gradients, self.statistics)

    @property
    def passed(self) -> bool:
        """Whether nothing was raised and all deviations are within the tolerance, or rounding's."""
        deviations = (self.values, self.gradients, self.statistics)
        tolerances = (self.tolerance, self.gradient_tolerance, self.tolerance)
        allowed = [max(t, ROUNDING * by) for t, by in zip(tolerances, self.rounding, strict=True)]
        return self.error is None and all(d <= a for d, a in zip(deviations, allowed, strict=True))


@dataclass(frozen=True)
class CheckReport:
    """All outcomes of :func:`check`. `str(report)` is a table.

    Attributes:
        results: of each property in each mode.
        precision: the lowest in which the network computes, whose tolerance applies.
    """

    results: list[CheckResult] = field(default_factory=list)
    precision: torch.dtype = torch.float64

    @property
    def passed(self) -> bool:
        """Whether every property holds in every mode."""
        return all(result.passed for result in self.results)

    @property
    def errors(self) -> list[str]:
        """Distinct errors raised."""
        return list(dict.fromkeys(result.error for result in self.results if result.error is not None))

    @property
    def deviation(self) -> float:
        """Largest deviation of all."""
        return max((result.deviation for result in self.results), default=math.inf)

    def __str__(self) -> str:
        lines = [f"{'check':<10}{'mode':<7}{'values':>10}{'gradients':>11}{'statistics':>12}  verdict"]
        return "\n".join([*lines, *map(_line, self.results), *self.errors[:1]])


def _line(result: CheckResult) -> str:
    numbers = " " * 33
    if result.error is None:
        others = (result.gradients, result.statistics) if result.shape is None else (None, None)
        numbers = f"{result.values:>10.1e}" + "".join(
            "-".rjust(width) if number is None else f"{number:>{width}.1e}"
            for number, width in zip(others, (11, 12), strict=True)
        )
    verdict = "pass" if result.passed else "FAIL"
    if any(result.rounding):
        verdict += f"  (rounding of the images alone changes the network by {max(result.rounding):.1e})"
    if result.shape is not None:
        images, *size = result.shape
        verdict += f"  ({images} image{'s' * (images != 1)} of {' x '.join(map(str, size))})"
    return f"{result.check:<10}{result.mode:<7}{numbers}  {verdict}"
