"""What a reader of annotations returns, whatever the format: objects as they are written, with the place of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.text import printable
from ..decoding.images import image_extensions
from ..tables import named

Mask = Any
"""Of an object: a list of polygons `[x1, y1, x2, y2, ...]` in pixels, or a run-length encoding `{"size", "counts"}`."""


class Written(NamedTuple):
    """An object as it is written.

    Attributes:
        name: of its class.
        box: left, top, right and bottom edge in pixels; in shares of the image's width and height with `relative`.
        where: the file and the line, or the annotation's id.
        ignored: it is neither trained on nor scored, nor is what is found there a false alarm: a crowd, or difficult.
        mask: in pixels, in shares with `relative`; None if it has a box alone.
        relative: whether numbers are shares.
    """

    name: str
    box: tuple[float, float, float, float]
    where: str
    ignored: bool = False
    mask: Mask | None = None
    relative: bool = False


class Annotated(NamedTuple):
    """An image with its objects.

    Attributes:
        image: path, relative to the folder of the images.
        objects: in the file's order.
        where: the file that describes it.
        size: height and width that the file states, None if it does not.
    """

    image: str
    objects: tuple[Written, ...]
    where: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split.

    Attributes:
        kind: of the files: "VOC", "COCO" or "YOLO".
        root: folder of the images.
        images: with their objects.
        classes: number of each class by its name, where the files declare them; None if they are what objects name.
        unannotated: images without a file of annotations.
        counted_from: 1 if the numbers of the first pixel are 1 and boxes include their last pixels, as PASCAL VOC's.
    """

    kind: str
    root: Path
    images: tuple[Annotated, ...]
    classes: Mapping[str, int] | None = None
    unannotated: int = 0
    counted_from: int = 0

    @property
    def names(self) -> list[str]:
        """Return the classes' names, declared ones in order, others alphabetically."""
        if self.classes is not None:
            return list(self.classes)
        return sorted({written.name for image in self.images for written in image.objects})


def images_by_stem(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the names of the image files among some by their names without the extension.

    Raises:
        ValueError: for two of the same stem, which would share their annotations.
    """
    known = image_extensions()
    found: dict[str, str] = {}
    for name in sorted(names):
        stem, extension = os.path.splitext(name)
        if extension.lower() not in known:
            continue
        if stem in found:
            raise ValueError(
                f"{printable(str(folder))}: {printable(found[stem])} and {printable(name)} have the same name but for "
                "the extension, and annotations are matched by it; keep one of them"
            )
        found[stem] = name
    return found


def require_distinct(names: Iterable[str], what: str, where: str, remedy: str) -> None:
    """Raise for names that are given twice.

    Raises:
        ValueError: with the first ones.
    """
    seen: set[str] = set()
    twice = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if twice:
        raise ValueError(f"{where} names {what} more than once: {named(sorted(set(twice)))}; {remedy}")


FARTHEST, LONGEST = 2**24, 2**23
"""Pixels from the image's corner, and length in pixels of an outline, beyond which polygons are not drawn."""


def require_drawable(mask: Mask | None, where: str) -> None:
    """Raise for polygons whose outline is longer than any object's: drawing takes memory by its length.

    Args:
        mask: in pixels.
        where: it stands.

    Raises:
        ValueError: with the length.
    """
    for part in mask if isinstance(mask, list) else ():
        points = np.array(part, np.float64).reshape(-1, 2)
        with np.errstate(over="ignore"):
            length = np.abs(np.diff(points, axis=0, append=points[:1])).sum()
        farthest = np.abs(points).max()
        if length > LONGEST or farthest > FARTHEST:
            raise ValueError(
                f"{where}: the outline of a polygon is {length:.3g} pixels long, and goes {farthest:.3g} pixels away "
                "from the image's corner, farther than any object's; correct or remove it"
            )


def number_of(text: object, what: str, where: str) -> float:
    """Return a finite number.

    Raises:
        ValueError: naming what it is, where it stands, and its value.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if isinstance(text, bool) or not abs(value) < float("inf"):
        raise ValueError(f"{where}: expected a finite number for {what}, got {printable(repr(text))[:80]}; correct it")
    return value
