"""One table of boxes, whatever format they are read from: validated against the images, clipped, and counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...utils.logging import log
from ...utils.text import counted, printable, verb
from ..config import DEFAULT_FILES, FileConfig
from ..decoding.encoded import UnreadableImage
from ..decoding.pillow import header_size, without_limit
from ..sources.base import ImageSource, Subset, open_image
from ..sources.folder import Files
from ..tables import named
from .annotations import Annotated, Annotations, Mask, Written, require_drawable
from .order import require_order

LOST = 0.5
"""Share of the boxes without area within their images from which on a split is refused."""

MOST_CHANNELS = 32
"""Of images whose size no header tells, as those of arrays, that are tried."""

MANY, THREADS = 2000, 4
"""Images whose headers take a while to read, and threads that read them."""


class Objects(NamedTuple):
    """The objects of an image.

    Attributes:
        boxes: left, top, right and bottom edge of each in pixels, within the image, `(N, 4)`.
        labels: number of each one's class, `(N,)`.
        ignored: which are neither trained on nor scored, `(N,)`.
        masks: of each, in pixels; None where it has a box alone.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    masks: tuple[Mask | None, ...]


@dataclass(frozen=True)
class Category:
    """A class: its name, and its number in files."""

    name: str
    id: int


@dataclass(frozen=True)
class DetectionImages:
    """Images with their objects.

    Attributes:
        source: the images.
        objects: of each image.
        sizes: height and width of each, `(N, 2)`.
        categories: the classes.
        notes: what was found and changed in reading, in words.
        kind: of the files of annotations.
        held_out: which share was drawn to validate with, in words; empty if the split is the data's.
    """

    source: ImageSource
    objects: tuple[Objects, ...]
    sizes: np.ndarray
    categories: tuple[Category, ...]
    notes: tuple[str, ...] = ()
    kind: str = ""
    held_out: str = ""

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes."""
        return [category.name for category in self.categories]

    @property
    def with_masks(self) -> bool:
        """Return whether each object that counts has a mask."""
        return all(
            mask is not None
            for one in self.objects
            for mask, off in zip(one.masks, one.ignored, strict=True)
            if not off
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> DetectionImages:
        """Return some of the images with their objects."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            source=Subset(self.source, chosen),
            objects=tuple(self.objects[index] for index in chosen.tolist()),
            sizes=self.sizes[chosen],
        )

    def counts(self) -> list[int]:
        """Return how many objects there are of each class, without those that are ignored."""
        found = np.zeros(len(self.categories), np.int64)
        for one in self.objects:
            np.add.at(found, one.labels[~one.ignored], 1)
        return found.tolist()  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Return a short digest of classes, boxes and masks."""
        digest = hashlib.sha256(repr(self.categories).encode(errors="surrogateescape"))
        for one in self.objects:
            for part in (one.boxes, one.labels, one.ignored):
                digest.update(np.ascontiguousarray(part).tobytes())
            digest.update(json.dumps(one.masks).encode())
        return digest.hexdigest()[:16]


def categories_of(splits: Sequence[Annotations], listed: Sequence[str] | None) -> tuple[Category, ...]:
    """Return the classes: those that are listed, those that the files of training declare, or all that objects name.

    Args:
        splits: annotations of training first.
        listed: names by the user.

    Raises:
        ValueError: if there is none.
    """
    declared = splits[0].classes
    if listed is not None:
        numbers = declared or {}
        known = [name in numbers for name in listed]
        found = [Category(n, numbers[n] if all(known) else i) for i, n in enumerate(listed, start=1)]
    elif declared is not None:
        found = [Category(name, number) for name, number in declared.items()]
    else:
        names = sorted({name for split in splits for name in split.names})
        found = [Category(name, number) for number, name in enumerate(names, start=1)]
    if not found:
        raise ValueError(
            f"the annotations in {printable(str(splits[0].root))} hold no object, so that there is nothing to learn; "
            "are they in the folder that was meant?"
        )
    return tuple(found)


@dataclass
class _Changes:
    """What is changed in reading."""

    clipped: int = 0
    empty: int = 0
    twice: int = 0
    first_empty: str = ""

    def notes(self) -> list[str]:
        found = []
        if self.clipped:
            found.append(f"{counted(self.clipped, 'box', 'boxes')} clipped to the image")
        if self.empty:
            empty = counted(self.empty, "box", "boxes")
            found.append(f"{empty} without area in the image dropped, the first in {self.first_empty}")
        if self.twice:
            found.append(f"{counted(self.twice, 'box', 'boxes')} listed twice dropped")
        return found


def table_of(
    read: Annotations,
    categories: tuple[Category, ...],
    option: str,
    counted_from: int | None = None,
    files: FileConfig = DEFAULT_FILES,
) -> DetectionImages:
    """Return images and objects, validated.

    Boxes that reach beyond their image are clipped; those without area in it, and those that are there twice, are
    dropped; both are counted. An image without an object is kept as a negative.

    Args:
        read: the annotations.
        categories: the classes.
        option: that named the data, for messages.
        counted_from: the number of the first pixel, that of the training's; None for that of the annotations.
        files: how images are read.

    Raises:
        ValueError: for classes that are unknown, edges in the wrong order, images whose size is not the stated one, and
            if most boxes have no area in their images, naming the file, the place and the remedy.
    """
    numbers = {category.name: number for number, category in enumerate(categories)}
    unknown = Counter(o.name for image in read.images for o in image.objects if o.name not in numbers)
    if unknown:
        first = next(o.where for image in read.images for o in image.objects if o.name not in numbers)
        number = sum(unknown.values())
        raise ValueError(
            f"{option}: {counted(number, 'object')} {verb(number, 'are')} of unknown classes: "
            f"{named(sorted(unknown))}, "
            "the first in "
            f"{first}. The classes are {named(list(numbers))}; correct the names, or list all classes in a file, one "
            "in each line, and name it by --classes"
        )
    source = Files(read.root, [image.image for image in read.images])
    sizes = _sizes(read, source, files)
    require_order(read, sizes, option)
    changes = _Changes()
    offset = read.counted_from if counted_from is None else counted_from
    objects = tuple(
        _objects(image, size, numbers, offset, changes) for image, size in zip(read.images, sizes, strict=True)
    )
    kept = sum(len(one.labels) for one in objects)
    if changes.empty > LOST * (changes.empty + kept):
        raise ValueError(
            f"{option}: of {changes.empty + kept} boxes {changes.empty} without area within their images, the first in "
            f"{changes.first_empty}; are their numbers in another order, or of images of another size?"
        )
    notes = changes.notes()
    negatives = sum(not image.objects for image in read.images)
    if negatives:
        notes.append(f"{counted(negatives, 'image')} without an object kept as negatives")
    if read.unannotated:
        without = "taken as negatives" if read.kind == "YOLO" else "left out"
        notes.append(f"{counted(read.unannotated, 'image')} without a file of annotations {without}")
    if offset:
        notes.append("pixels counted from 1")
    return DetectionImages(source, objects, sizes, categories, tuple(notes), read.kind)


def _sizes(read: Annotations, source: ImageSource, files: FileConfig) -> np.ndarray:
    """Return height and width of each image: that of its file, which must be what its annotations say.

    An image that cannot be read has the stated size, or none: it is met again, and counted, where it is shown.

    Raises:
        ValueError: for a stated size that is another one.
    """
    if len(read.images) >= MANY:
        log.info(f"reading the sizes of {len(read.images):,} images")
    with without_limit(), ThreadPoolExecutor(THREADS) as pool:  # a setting of the process: set before the threads begin
        found = list(pool.map(lambda i: _size(read.root / read.images[i].image, source, i, files), range(len(source))))
    for image, size in zip(read.images, found, strict=True):
        if size is not None and image.size is not None and size != image.size:
            turned = size == image.size[::-1]
            raise ValueError(
                f"{image.where} says {image.size[0]} x {image.size[1]} pixels (height x width), and the image "
                f"{printable(str(read.root / image.image))} has {size[0]} x {size[1]}"
                + (", turned upright by its EXIF orientation" if turned else "")
                + ": boxes would be at other places; annotate the image as it is, or replace it"
            )
    rows = [size or image.size or (0, 0) for size, image in zip(found, read.images, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 2)


def _size(path: Path, source: ImageSource, index: int, files: FileConfig) -> tuple[int, int] | None:
    """Return height and width of an image, by its header where Pillow reads it, else by what is decoded."""
    size = header_size(path)
    if size is not None:
        return size
    image = open_image(source, index, files)
    for channels in (3, 1, 4, 2, *range(5, MOST_CHANNELS + 1)):  # an array's size depends on them
        try:
            known = image.size(channels)
            if known is None:
                height, width = image.decode(channels).shape[1:]
                known = height, width
        except UnreadableImage:
            continue
        return known
    return None


def _objects(image: Annotated, size: np.ndarray, numbers: Mapping[str, int], offset: int, changes: _Changes) -> Objects:
    rows: list[tuple[list[float], int, bool, Mask | None]] = []
    seen = set()
    height, width = size.tolist()
    for written in image.objects:
        if written.relative and not height:  # of an image that cannot be read, which is met again
            continue
        box, mask = _in_pixels(written, height, width)
        left, top, right, bottom = box
        for low, high, names in ((left, right, "left right"), (top, bottom, "top bottom")):
            if high < low:
                one, other = names.split()
                raise ValueError(
                    f"{written.where}: the {one} edge {low:g} lies beyond the {other} edge {high:g}; expected edges as "
                    "left, top, right, bottom (xmin, ymin, xmax, ymax), and widths and heights above 0; correct the box"
                )
        flat = left == right or top == bottom
        box = [left - offset, top - offset, right, bottom]
        inside = box if not height else [min(max(v, 0), m) for v, m in zip(box, (width, height) * 2, strict=True)]
        if flat or inside[0] >= inside[2] or inside[1] >= inside[3]:
            changes.empty += 1
            changes.first_empty = changes.first_empty or written.where
            continue
        key = (written.name, *inside, json.dumps(mask))
        if key in seen:
            changes.twice += 1
            continue
        seen.add(key)
        changes.clipped += any(abs(a - b) > 0.5 for a, b in zip(inside, box, strict=True))
        require_drawable(mask, written.where)
        _require_run_lengths(mask, (height, width), written.where)
        rows.append((inside, numbers[written.name], written.ignored, mask))
    return Objects(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], bool),
        tuple(row[3] for row in rows),
    )


def _in_pixels(written: Written, height: int, width: int) -> tuple[list[float], Mask | None]:
    """Return the box and the mask of an object in pixels."""
    if not written.relative:
        return list(written.box), written.mask
    box = [share * side for share, side in zip(written.box, (width, height) * 2, strict=True)]
    mask = written.mask
    if mask is not None:
        mask = [[v * (width, height)[place % 2] for place, v in enumerate(part)] for part in mask]
    return box, mask


def _require_run_lengths(mask: Mask | None, size: tuple[int, int], where: str) -> None:
    """Raise for run lengths of another size than the image's."""
    if isinstance(mask, dict) and size[0] and tuple(mask["size"]) != size:
        raise ValueError(
            f"{where}: its run lengths are of {mask['size'][0]} x {mask['size'][1]} pixels (height x width), and the "
            f"image has {size[0]} x {size[1]}; export it again"
        )
