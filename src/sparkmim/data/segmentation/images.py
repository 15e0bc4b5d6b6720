"""Images with masks, for segmentation in two dimensions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...utils.logging import log
from ...utils.text import counted, printable
from ..decoding.images import image_extensions
from ..decoding.pillow import header_size
from ..detection.order import require_order
from ..sources.base import ImageSource, Subset
from ..sources.folder import Files
from ..tables import named
from .classes import MOST_CLASSES, ClassTable, table_of
from .drawn import DrawnMask, class_pixels, read_annotations, require_named, table_of_categories
from .masks import MaskContent, class_counts, content_of, require_exact, require_indices
from .pairs import Pair, Place, by_stem, files_below, find_folders, match, read_pairs

MASKS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jpg", ".jpeg")
"""Extensions of masks."""

MANY, THREADS = 2000, 4
"""Masks whose reading takes a while, and threads that read them."""


@dataclass(frozen=True)
class SegmentedImages:
    """Images and their masks.

    Attributes:
        source: the images.
        masks: the masks' files, or what they are drawn from, in the images' order.
        sizes: height and width of each, `(N, 2)`.
        pixels: of each class, `(N, classes)`.
        table: the classes.
    """

    source: ImageSource
    masks: tuple[Path | DrawnMask, ...]
    sizes: np.ndarray
    pixels: np.ndarray
    table: ClassTable

    def __len__(self) -> int:
        return len(self.masks)

    def subset(self, indices: Sequence[int] | np.ndarray) -> SegmentedImages:
        """Return some of the images with their masks."""
        chosen = np.asarray(indices, dtype=np.int64)
        masks = tuple(self.masks[index] for index in chosen.tolist())
        return replace(
            self,
            source=Subset(self.source, chosen),
            masks=masks,
            sizes=self.sizes[chosen],
            pixels=self.pixels[chosen],
        )

    def digest(self) -> str:
        """Return a short digest of the classes and of how many pixels of each the masks hold."""
        table = repr((self.table.names, self.table.values, self.table.ignore)).encode(errors="surrogateescape")
        return hashlib.sha256(table + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:16]


class _Read(NamedTuple):
    """The pairs of a split, and what their masks hold."""

    root: Path
    pairs: list[Pair]
    contents: list[MaskContent]


def read_images(place: Place, table: ClassTable | None, ignore: int, option: str) -> SegmentedImages:
    """Read images and masks, and check each mask.

    Args:
        place: where they are.
        table: the classes; None to take the values that the masks hold.
        ignore: value of pixels of no class.
        option: that named the folder, for messages.

    Raises:
        ValueError: for images without masks and masks without images, sizes that differ, values that are not classes,
            naming the file, the value and the remedy.
    """
    if place.is_coco:
        return _of_coco(place, table, ignore, option)
    read = _read(place, option)
    if table is None:
        table = _found_table(read, ignore, option)
    counts = np.zeros((len(read.pairs), len(table)), np.int64)
    number = {value: place for place, value in enumerate(table.values)}
    for row, (pair, content) in enumerate(zip(read.pairs, read.contents, strict=True)):
        for value, count in class_counts(pair.mask, content, table).items():
            counts[row, number[value]] = count
    _require_pixels(counts, place, option)
    source = Files(read.root, [pair.image for pair in read.pairs])
    sizes = np.array([content.size for content in read.contents]).reshape(-1, 2)
    return SegmentedImages(source, tuple(pair.mask for pair in read.pairs), sizes, counts, table)


def _require_pixels(counts: np.ndarray, place: Place, option: str) -> None:
    if not counts.any():
        raise ValueError(f"no pixel of the masks of {option} {printable(str(place.path))} has a class: all are ignored")


def _of_coco(place: Place, table: ClassTable | None, ignore: int, option: str) -> SegmentedImages:
    """Return the images of a COCO file, with masks that are drawn from its objects."""
    annotations, masks = read_annotations(place.path, place.images)
    if table is None:
        table = table_of_categories(annotations.classes or {}, ignore, place.path)
    require_named(annotations, table, place.path)
    sizes = np.array([mask.size for mask in masks]).reshape(-1, 2)
    require_order(annotations, sizes, option)
    if len(masks) >= MANY:
        log.info(f"drawing {len(masks):,} masks")
    counts = class_pixels(masks, table)
    _require_pixels(counts, place, option)
    source = Files(annotations.root, [image.image for image in annotations.images])
    return SegmentedImages(source, tuple(masks), sizes, counts, table)


def _read(place: Place, option: str) -> _Read:
    """Return pairs whose masks can be read and have the images' sizes."""
    if place.is_table:
        root, pairs = place.path.parent, read_pairs(place.path, place.split)
    else:
        folders = find_folders(place, option)
        images = by_stem(files_below(folders.images, image_extensions()), folders.images)
        masks = by_stem(files_below(folders.masks, MASKS), folders.masks)
        paths = {stem: folders.masks / name for stem, name in masks.items()}
        root, pairs = folders.images, match(images, paths, folders)
    if len(pairs) >= MANY:
        log.info(f"reading {counted(len(pairs), 'mask')}")
    with ThreadPoolExecutor(THREADS) as pool:  # decoding leaves the interpreter's lock
        contents = list(pool.map(lambda pair: content_of(pair.mask), pairs))
    for pair, content in zip(pairs, contents, strict=True):
        size = header_size(root / pair.image)
        if size is not None and size != content.size:
            raise ValueError(
                f"the image {printable(str(root / pair.image))} has {size[0]} x {size[1]} pixels (height x width), and "
                f"its mask {printable(str(pair.mask))} {content.size[0]} x {content.size[1]}: they must be equal; "
                "replace one of them, and resize masks without interpolation"
            )
    return _Read(root, list(pairs), contents)


def _found_table(read: _Read, ignore: int, option: str) -> ClassTable:
    """Return the classes that the masks hold.

    Raises:
        ValueError: if they are fewer than two, or too many to be classes.
    """
    values: set[int] = set()
    for pair, content in zip(read.pairs, read.contents, strict=True):
        require_indices(pair.mask, content)
        require_exact(pair.mask)
        values |= content.indices().keys()
    found = sorted(values - {ignore})
    if len(found) < 2:
        rest = f"and {ignore}, which is ignored; if that is a class, use --ignore-index -1" if ignore in values else ""
        raise ValueError(
            f"the masks of {option} {printable(str(read.root))} hold {named(list(map(str, found))) or 'no value'} "
            f"{rest or 'alone'}; expected at least two classes"
        )
    if len(found) > MOST_CLASSES:
        raise ValueError(
            f"the masks of {option} {printable(str(read.root))} hold {len(found)} different values, more than the "
            f"{MOST_CLASSES} that can be classes: are they masks (indices), or pictures?"
        )
    return table_of(found, ignore)
