"""Show the fingerprint of volumes as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...reporting.text_tables import aligned, spread
from ...reporting.volumes import Histogram, draw_volumes
from ...utils.text import counted
from .fingerprint import Fingerprint, Intensities
from .slices import mixed_planes, slices_in_words


def fingerprint_table(found: Fingerprint) -> str:
    """Return a table of sizes, spacings and intensities, a line for each."""
    shapes = np.array([case.shape for case in found.cases])
    boxes = np.array([case.foreground for case in found.cases])
    channels = counted(found.channels, "channel")
    rows: list[Sequence[str]] = [("", "X", "Y", "Z")]
    for name, values in (
        ("spacing, mm", found.spacings),
        ("size, voxels", shapes),
        ("foreground, voxels", boxes),
        ("foreground, mm", boxes * found.spacings),
    ):
        rows.append((name, *(spread(column) for column in values.T)))
    rows.append(("spacing of --spacing median", *(f"{side:.4g}" for side in found.target_spacing)))
    warning = mixed_planes(found)
    lines = [
        f"{counted(len(found.cases), 'volume')} of {channels} ({found.modality}); median, and smallest to largest",
        *aligned(rows),
        f"slices: {slices_in_words(found)}",
        *([f"note: {warning}"] if warning else []),
    ]
    rows = [("intensity in the foreground", "mean", "std", "0.5%", "median", "99.5%")]
    for number, kind in enumerate(found.modalities):
        if kind == "ct":
            rows.append(
                (f"channel {number} (ct), all volumes", *(f"{v:.5g}" for v in _numbers(found.intensities[number])))
            )
        else:
            numbers = np.array([_numbers(case.channels[number]) for case in found.cases])
            rows.append((f"channel {number} ({kind}), by volume", *map(spread, numbers.T)))
    return "\n".join([*lines, "", *aligned(rows)])


def fingerprint_picture(found: Fingerprint) -> Image.Image:
    """Draw histograms of spacings, sizes and intensities."""
    shapes = np.array([case.shape for case in found.cases])
    histograms = []
    for channel, (part, kind) in enumerate(zip(found.intensities, found.modalities, strict=True)):
        shares, edges = found.histogram(channel)
        title = f"Intensity, channel {channel} ({kind})"
        note = f"mean {part.mean:.4g}" if kind == "ct" else "deviations"
        histograms.append(Histogram(title, shares, float(edges[0]), float(edges[-1]), note))
    return draw_volumes(counted(len(found.cases), "volume"), found.spacings, shapes, histograms)


def _numbers(part: Intensities) -> tuple[float, ...]:
    return part.mean, part.std, part.low, part.median, part.high
