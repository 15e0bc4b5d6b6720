"""How volumes are prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...utils.fields import Valid, setting
from ...utils.orientation import EXPECTED, RAS, is_orientation


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How volumes are prepared."""

    spacing: Literal["median", "none"] | tuple[float, float, float] = setting(
        "median",
        Valid(
            lambda v: isinstance(v, str) or all(0 < side < math.inf for side in v),
            "is median, none, or three lengths in millimeters above 0",
        ),
    )
    """Millimeters between voxels along X, Y and Z; median for nnU-Net's choice, none to leave volumes as they are."""

    intensity: Literal["auto", "ct", "mr", "none"] = "auto"
    """How values are normalized: ct clips to the percentiles 0.5 and 99.5 of all volumes and standardizes by their mean
    and deviation, mr standardizes each volume, none leaves values as they are; auto is ct for channels that look like
    Hounsfield units and mr for others."""

    foreground: bool = True
    """Crop to the box around the foreground."""

    orientation: str = setting(RAS, Valid(is_orientation, EXPECTED))
    """Order of the axes of volumes as the network sees them, by where each of them runs: RAS for right, anterior,
    superior (X, Y, Z), SAR for the reverse (Z, Y, X). If not given, that of nnU-Net for its networks, RAS for
    others."""

    def __post_init__(self) -> None:
        """Validate each field.

        Raises:
            ValueError: naming the value.
        """
        if self.spacing not in ("median", "none"):
            sides = self.spacing
            if isinstance(sides, str) or len(sides) != 3 or not all(0 < side < math.inf for side in sides):
                raise ValueError(f"--spacing must be median, none or three numbers of mm above 0, got {self.spacing!r}")
        if self.intensity not in ("auto", "ct", "mr", "none"):
            raise ValueError(f"--intensity must be auto, ct, mr or none, got {self.intensity!r}")
        if not is_orientation(self.orientation):
            raise ValueError(f"--orientation {self.orientation} {EXPECTED}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PrepareSettings:
        """Build it from what :func:`dataclasses.asdict` gave, by way of JSON.

        Raises:
            KeyError, TypeError, ValueError: if it is none.
        """
        spacing = value["spacing"]
        return cls(
            spacing=spacing if isinstance(spacing, str) else tuple(map(float, spacing)),  # type: ignore[arg-type]
            intensity=value["intensity"],
            foreground=bool(value["foreground"]),
            orientation=value.get("orientation", RAS),  # stores of older versions do not say
        )
