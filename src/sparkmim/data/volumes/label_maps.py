"""Tell label maps from images, by their names and by their values."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

import numpy as np

from .extensions import stem_of

FOLDER = re.compile(
    r"(labels?|segs?|segmentations?|masks?|gt|ground[-_ ]?truths?|annotations?|rois?|contours?)"
    r"([-_ ]?(tr|ts|va|val|train|training|test|testing|final|nifti|cropped))?",
    re.IGNORECASE,
)
"""Names of folders of label maps, such as nnU-Net's labelsTr."""

FILE = re.compile(
    r"(.*[-_. ])?"
    r"(segs?|segmentations?|labels?|labelmap|masks?|dseg|gt|ground[-_]?truth|roi|aseg|aparc|wmparc)"
    r"\d*([-_. ].*)?",
    re.IGNORECASE,
)
"""Names of files of label maps, without their extension, such as `..._seg` of BraTS and `segmentation-12` of LiTS."""

MOST_LABELS = 256
"""Most different whole numbers of a label map."""

FEWEST_LEVELS = 12
"""An image has more different values; a volume of fewer whole numbers is a label map whatever its name."""


def named_as_labels(name: str, root: Path | None = None) -> bool:
    """Return whether a file is named as a label map, or lies in a folder that is.

    Args:
        name: path below the root.
        root: the folder that was named; its own name counts as well.
    """
    path = PurePath(name)
    folders = [*path.parts[:-1], *([root.name] if root is not None else [])]
    return bool(FILE.fullmatch(stem_of(path.name))) or any(FOLDER.fullmatch(folder) for folder in folders)


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """Return all values of a row, or `most` of them, drawn at random but the same each time."""
    if len(values) <= most:
        return values
    return values[np.random.default_rng(len(values)).integers(len(values), size=most)]


def distinct_levels(values: np.ndarray, most: int = MOST_LABELS) -> int | None:
    """Return how many different values an array has if they are few whole numbers from 0 up, None otherwise."""
    everything = values.ravel(order="K")
    for part in (spread(everything, 4096), everything):  # most images are told by a few of their values
        levels = np.unique(part)
        if len(levels) > most or levels[0] < 0 or levels[-1] > 100_000 or not (levels == np.round(levels)).all():
            return None
    return len(levels)


def looks_like_labels(values: np.ndarray, most: int = FEWEST_LEVELS) -> bool:
    """Return whether an array holds at most some different whole numbers, none of them negative."""
    levels = distinct_levels(values, most)
    return levels is not None and levels <= most
