"""Masks of classes that are drawn from the objects of COCO files: polygons and run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.text import printable
from ..decoding.pillow import header_size
from ..detection.annotations import Annotated, Annotations, Written, require_drawable
from ..detection.coco import read_coco
from ..detection.coco_masks import require_coco, run_lengths
from ..tables import named
from .classes import BACKGROUND, IGNORED, LARGEST_VALUE, MOST_CLASSES, ClassTable, default_color


@dataclass(frozen=True)
class DrawnMask:
    """The mask of an image as the objects that it is drawn from, the largest first: smaller ones lie on them.

    Attributes:
        size: height and width.
        names: of each object's class.
        parts: COCO's compressed run lengths of each object.
    """

    size: tuple[int, int]
    names: tuple[str, ...]
    parts: tuple[Mapping[str, Any], ...]

    def numbers(self, table: ClassTable) -> np.ndarray:
        """Return the number of each pixel's class `(H, W)`, uint8.

        What no object covers is of the class called background, or of none where the table has no such class.
        """
        from pycocotools import mask as coco

        background = IGNORED if table.background is None else table.background
        drawn = np.full(self.size, background, np.uint8)
        numbers = {name: number for number, name in enumerate(table.names)}
        for name, part in zip(self.names, self.parts, strict=True):
            drawn[coco.decode(part).astype(bool)] = numbers.get(name, IGNORED)
        return drawn


def read_annotations(path: Path, images: Path | None) -> tuple[Annotations, list[DrawnMask]]:
    """Read a COCO file, and the mask of each of its images.

    Args:
        path: of the file.
        images: folder of the images; looked for beside the file if None.

    Raises:
        ValueError: as :func:`~sparkmim.data.detection.coco.read_coco`; for objects without a mask, and images of
            another size than the file states, or that cannot be read; without pycocotools.
    """
    require_coco("masks of COCO files need")
    annotations = read_coco(path, images)
    return annotations, [_drawn(image, annotations.root) for image in annotations.images]


def _drawn(image: Annotated, root: Path) -> DrawnMask:
    from pycocotools import mask as coco

    size = header_size(root / image.image)
    stated = image.size
    if size is not None and stated is not None and stated != size:
        raise ValueError(
            f"{image.where}: it states {stated[0]} x {stated[1]} pixels (height x width), and {printable(image.image)} "
            f"has {size[0]} x {size[1]}, as it is looked at, so that masks would not lie on it; correct the entry, or "
            "replace the image"
        )
    size = size or stated
    if size is None:
        raise ValueError(f"{image.where}: the size of {printable(image.image)} is not known; state height and width")
    parts = [_run_lengths(written, size) for written in image.objects]
    order = np.argsort([-int(coco.area(part)) for part in parts], kind="stable").tolist()
    return DrawnMask(size, tuple(image.objects[k].name for k in order), tuple(parts[k] for k in order))


def _run_lengths(written: Written, size: tuple[int, int]) -> Mapping[str, Any]:
    """Return the compressed run lengths of an object.

    Raises:
        ValueError: naming the annotation, if it has no mask, or one of another size.
    """
    mask = written.mask
    if mask is None:
        raise ValueError(
            f"{written.where}: it has a box and no segmentation, so its pixels are not known; add a polygon or run "
            "lengths, remove it, or train for boxes (--task detection)"
        )
    require_drawable(mask, written.where)
    height, width = size
    if not isinstance(mask, list) and tuple(mask["size"]) != size:
        raise ValueError(
            f"{written.where}: its run lengths are of {mask['size'][0]} x {mask['size'][1]} pixels, and its image has "
            f"{height} x {width}; export it again"
        )
    return run_lengths(mask, height, width)


def table_of_categories(classes: Mapping[str, int], ignore: int, path: Path) -> ClassTable:
    """Return the categories of a COCO file as classes, by their ids, with one for what no object covers.

    That one is the category called background; without one, the value 0, or the first that is free.

    Raises:
        ValueError: for ids that masks cannot hold, or too many.
    """
    values = dict(classes)
    if not any(name.casefold() == BACKGROUND for name in values):
        free = next(value for value in range(LARGEST_VALUE) if value not in values.values() and value != ignore)
        values = {BACKGROUND: free, **values}
    if len(values) > MOST_CLASSES:
        raise ValueError(
            f"{path} has {len(classes)} categories; at most {MOST_CLASSES}, background among them, can be told apart"
        )
    odd = [f"{number} {name}" for name, number in values.items() if not 0 <= number <= LARGEST_VALUE]
    if odd:
        raise ValueError(f"{path} has categories whose ids masks cannot hold: {named(odd)}; number them from 1 on")
    taken = [name for name, number in values.items() if number == ignore]
    if taken:
        raise ValueError(
            f"{path}: the id {ignore} of the category {printable(taken[0])} stands for pixels of no class; use "
            "--ignore-index -1, or another value"
        )
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    names, numbers = (tuple(parts) for parts in zip(*ordered, strict=True))
    return ClassTable(names, numbers, tuple(default_color(number) for number in numbers), ignore)


def require_named(annotations: Annotations, table: ClassTable, path: Path) -> None:
    """Raise for objects whose class is not in the table.

    Raises:
        ValueError: naming the classes.
    """
    strange = sorted({written.name for image in annotations.images for written in image.objects} - set(table.names))
    if strange:
        raise ValueError(
            f"{printable(str(path))} has objects of {named(strange)}, which are not among the classes "
            f"({named(list(table.names))}); add them to --classes FILE, or correct the categories"
        )


def class_pixels(masks: Sequence[DrawnMask], table: ClassTable) -> np.ndarray:
    """Return the pixels of each class in each mask, `(masks, classes)`."""
    counts = [np.bincount(mask.numbers(table).ravel(), minlength=IGNORED + 1)[: len(table)] for mask in masks]
    return np.array(counts, np.int64).reshape(-1, len(table))
