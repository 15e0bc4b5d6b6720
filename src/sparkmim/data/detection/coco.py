"""COCO: a JSON file of images, categories, boxes, and masks as polygons or run lengths."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.io import parse_json
from ...utils.text import counted, printable
from ..tables import named
from .annotations import Annotated, Annotations, Mask, Written, number_of, require_distinct

MOST_PIXELS = 2**30
"""Pixels of an image that a file may state."""

CONFUSED = 0.5
"""Share of boxes beyond their images from which on `[x, y, width, height]` is doubted."""


def read_coco(path: Path, images: Path | None) -> Annotations:
    """Read a JSON file.

    Args:
        path: of the file.
        images: folder of the images; looked for beside the file if None.

    Raises:
        ValueError: for a file of another content, images, categories or boxes that are missing, given twice, or make
            no sense, with the annotation's id.
    """
    content = _content(path)
    classes = _classes(content["categories"], path)
    names = {number: name for name, number in classes.items()}
    known = _images(content["images"], path)
    root = _root(path, images, [str(entry["file_name"]) for entry in known.values()])
    objects: dict[Any, list[Written]] = defaultdict(list)
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}, annotation {entry.get('id', f'number {place + 1}') if isinstance(entry, dict) else place + 1}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object, got {printable(repr(entry))[:80]}")
        if not isinstance(entry.get("image_id"), (int, float, str)) or entry["image_id"] not in known:
            raise ValueError(f"{where}: there is no image of id {entry.get('image_id')!r}; correct or remove it")
        if not isinstance(entry.get("category_id"), (int, float)) or entry["category_id"] not in names:
            raise ValueError(
                f"{where}: there is no category of id {entry.get('category_id')!r}; the categories are "
                f"{named([f'{number} {name}' for number, name in names.items()])}"
            )
        objects[entry["image_id"]].append(_written(entry, names[entry["category_id"]], where))
    found = [
        Annotated(os.path.normpath(str(entry["file_name"])), tuple(objects[key]), f"{path}, image {key}", _size(entry))
        for key, entry in known.items()
    ]
    _require_extents(found, path)
    missing = [one.image for one in found if not (root / one.image).exists()]
    if missing:
        raise ValueError(
            f"{printable(str(path))} lists {counted(len(missing), 'image')} not found in {printable(str(root))}: "
            f"{named(missing)}. Name their folder by --image-folder, or remove their entries"
        )
    return Annotations("COCO", root, tuple(found), classes)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:  # which includes texts that are not UTF-8
        raise ValueError(f"{path} cannot be read as JSON ({error}); export it again") from error
    lists = ("images", "annotations", "categories")
    lacking = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if lacking:
        raise ValueError(
            f"{path} is not a COCO file of objects: expected the lists {', '.join(lists)}, and it has no "
            f"{', '.join(lacking)}"
        )
    return dict(content)


def _classes(categories: Sequence[Any], path: Path) -> dict[str, int]:
    found: list[tuple[str, int]] = []
    for place, entry in enumerate(categories):
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or not str(entry.get("name", "")).strip():
            raise ValueError(
                f"{path}: category {place + 1} needs an id, a whole number, and a name; got {entry!r}"[:300]
            )
        found.append((str(entry["name"]), number))
    require_distinct([name for name, _ in found], "categories", str(path), "give each its own name, or keep one")
    require_distinct([str(number) for _, number in found], "ids of categories", str(path), "give each its own id")
    if not found:
        raise ValueError(f"{path} has no category; expected one for each class, with id and name")
    return dict(sorted(found, key=lambda pair: pair[1]))


def _images(images: Sequence[Any], path: Path) -> dict[Any, Mapping[str, Any]]:
    for place, entry in enumerate(images):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)) or not entry.get("file_name"):
            raise ValueError(f"{path}: image {place + 1} needs an id and a file_name; got {entry!r}"[:300])
    require_distinct([str(entry["id"]) for entry in images], "ids of images", str(path), "give each its own id")
    files = [os.path.normpath(str(entry["file_name"])) for entry in images]
    require_distinct(files, "images", str(path), "join their annotations under one entry")
    if not images:
        raise ValueError(f"{path} lists no image")
    return {entry["id"]: entry for entry in images}


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = _side(entry.get("height")), _side(entry.get("width"))
    return (height, width) if 0 < height * width <= MOST_PIXELS else None


def _side(value: object) -> int:
    """Return a number of pixels, 0 for what cannot be one."""
    return int(value) if isinstance(value, (int, float)) and 0 < value <= MOST_PIXELS else 0


def _root(path: Path, images: Path | None, names: Sequence[str]) -> Path:
    """Return the folder of the images: the one in which most of the first ones lie."""
    if images is not None:
        if not images.is_dir():
            raise ValueError(f"--image-folder {printable(str(images))} is not a folder")
        return images
    folder, name = path.parent, path.stem.removeprefix("instances_")
    places = [folder, folder / "images", folder / name, folder.parent / name, folder.parent / "images"]
    places += [folder.parent / "images" / name, folder.parent]
    first = names[:20]
    return max(places, key=lambda place: sum((place / name).exists() for name in first))  # the first of equals


def _written(entry: Mapping[str, Any], name: str, where: str) -> Written:
    crowd = bool(entry.get("iscrowd", 0))
    mask = _mask(entry.get("segmentation"), where)
    box = entry.get("bbox")
    if box is None and isinstance(mask, list):
        xs, ys = ([value for part in mask for value in part[axis::2]] for axis in (0, 1))
        return Written(name, (min(xs), min(ys), max(xs), max(ys)), where, crowd, mask)
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{where}: expected bbox [x, y, width, height], got {printable(repr(box))[:80]}; correct it")
    left, top, width, height = (
        number_of(value, part, where) for value, part in zip(box, ("x", "y", "width", "height"), strict=True)
    )
    return Written(name, (left, top, left + width, top + height), where, crowd, mask)


def _mask(segmentation: object, where: str) -> Mask | None:
    """Return the mask of an object, None if it has none."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        sound = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        runs = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
        if not sound or not (runs or isinstance(counts, str)):
            raise ValueError(f"{where}: expected run lengths with size [height, width] and counts; export it again")
        assert isinstance(size, list)
        if isinstance(counts, list) and sum(counts) != math.prod(size):
            raise ValueError(f"{where}: its run lengths add up to {sum(counts)}, not to {size[0]} x {size[1]} pixels")
        return {"size": size, "counts": counts}
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise ValueError(f"{where}: expected polygons [[x1, y1, x2, y2, ...], ...] or run lengths as segmentation")
    odd = [len(part) for part in segmentation if len(part) < 6 or len(part) % 2]
    if odd:
        raise ValueError(
            f"{where}: a polygon has {odd[0]} numbers; expected at least three points, x and y of each; correct it"
        )
    return [[number_of(value, "a polygon", where) for value in part] for part in segmentation]


def _require_extents(found: Sequence[Annotated], path: Path) -> None:
    """Raise if boxes look like `[x1, y1, x2, y2]`: most reach beyond their images unless they are read so.

    Raises:
        ValueError: with the first one.
    """
    beyond, corners, first, count = 0, True, "", 0
    for image in found:
        if image.size is None:
            continue
        height, width = image.size
        for written in image.objects:
            left, top, right, bottom = written.box
            count += 1
            corners &= right - left > left and bottom - top > top and right - left <= width and bottom - top <= height
            if right > width + 1 or bottom > height + 1:
                beyond, first = beyond + 1, first or written.where
    if count > 1 and corners and beyond > CONFUSED * count:
        raise ValueError(
            f"{beyond} of the {count} boxes of {printable(str(path))} reach beyond their images, the first in {first}: "
            "they look like [x1, y1, x2, y2], and bbox is [x, y, width, height]; subtract x1 and y1 from the others"
        )
