"""YOLO: a text file for each image, `labels/` beside `images/`, and data.yaml or classes.txt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...utils.text import counted, printable, verb
from ..decoding.images import image_extensions
from ..sources.folder import walk
from ..tables import named
from .annotations import Annotated, Annotations, Written, images_by_stem, number_of, require_distinct

IMAGES, LABELS = "images", "labels"

LONGEST_YAML = 2**20
"""Bytes of a data.yaml, at most."""

MOST_CLASSES = 100_000
"""Classes that numbers alone may tell, at most; more are another kind of number."""

BEYOND = 1.05
"""Shares up to which boxes may reach beyond their image, by rounding or cropping; more is another kind of number."""


class YoloPlace(NamedTuple):
    """A split of a data set.

    Attributes:
        images: folders of images, or files that list them.
        names: of the classes, by number; None if nothing names them.
        where: that names the classes, for messages.
    """

    images: tuple[Path, ...]
    names: tuple[str, ...] | None
    where: str


def read_yaml(path: Path) -> dict[str, YoloPlace]:
    """Return the splits that a data.yaml names.

    Raises:
        ValueError: for a file that is not one.
    """
    content = _yaml_of(path)
    if isinstance(content, dict):
        content = {key: _or_none(value) for key, value in content.items()}
    if not isinstance(content, dict) or not content.get("train"):
        raise ValueError(f"{path} is not a data.yaml: expected an entry train, a folder of images, and names")
    names = _names(content.get("names"), path)
    base = path.parent
    if content.get("path"):
        given = Path(_text(content["path"], "path", path)).expanduser()
        base = next((place for place in (base / given, Path.cwd() / given) if place.is_dir()), base)
    found = {}
    for split in ("train", "val", "test"):
        entry = content.get(split)
        if entry:
            entries = entry if isinstance(entry, list) else [entry]
            found[split] = YoloPlace(
                tuple(_resolved(_text(e, split, path), base, path, split) for e in entries), names, str(path)
            )
    return found


def _yaml_of(path: Path) -> object:
    """Return the content of a YAML file, its values as the text that is written: a class may be called `no` or 010.

    Aliases are refused: a few lines of them stand for more values than any memory holds.

    Raises:
        ValueError: if it is too large, is not YAML, is nested too deeply, or has aliases.
    """
    import yaml  # comes with timm

    with path.open("rb") as file:
        text = file.read(LONGEST_YAML + 1)
    if len(text) > LONGEST_YAML:
        raise ValueError(f"{path} has more than {LONGEST_YAML:,} bytes, and a data.yaml lists splits and names alone")
    try:
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        content: object = None if aliased else yaml.load(text, _plain_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as YAML ({reason}); correct it") from error
    if aliased:
        raise ValueError(f"{path} has aliases (*name), which are not followed; write out what they stand for")
    return content


def _plain_loader() -> Any:
    """Return a loader of YAML that takes plain values as text, where it would make them booleans, dates or numbers."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    return Loader


def _or_none(value: object) -> object:
    return None if value in ("", "~", "null", "Null", "NULL") else value


def _text(value: object, what: str, path: Path) -> str:
    """Return a value of a data.yaml as text.

    Raises:
        ValueError: if it is a list or a table.
    """
    if isinstance(value, (list, dict)):
        raise ValueError(f"{path}: expected a text for {what}, got {printable(repr(value))[:80]}; correct it")
    return str(value)


def _resolved(entry: str, base: Path, path: Path, split: str) -> Path:
    """Return the folder or file that an entry names; some tools write `../train/images` for `train/images`.

    Raises:
        ValueError: if there is none.
    """
    given = Path(entry).expanduser()
    places = [base / given, path.parent / given, base / entry.removeprefix("../")]
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"{path}: {split} names {printable(entry)}, which is not below {printable(str(base))}; correct it")


def _names(names: object, path: Path) -> tuple[str, ...] | None:
    """Return the classes in the order of their numbers."""
    if names is None:
        return None
    if isinstance(names, dict):
        names = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in names.items()}
        if set(names) != set(range(len(names))):
            raise ValueError(f"{path}: names has the numbers {named([str(n) for n in names])}; expected 0, 1, 2, ...")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: expected the names of the classes as a list, got {printable(repr(names))[:80]}")
    found = tuple(_text(name, "the name of a class", path) for name in names)
    require_distinct(found, "classes", str(path), "give each its own name")
    return found


def find_folders(root: Path) -> dict[str, YoloPlace]:
    """Return the splits of folders: images/train beside labels/train, train/images, or images and labels alone."""
    names, where = _class_list(root)
    found: dict[str, YoloPlace] = {}
    for split, others in (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",))):
        for other in others:
            for place, labels in (
                (root / IMAGES / other, root / LABELS / other),
                (root / other / IMAGES, root / other / LABELS),
            ):
                if place.is_dir() and labels.is_dir():
                    found.setdefault(split, YoloPlace((place,), names, where))
    if "train" in found:
        return found
    if (root / IMAGES).is_dir() and (root / LABELS).is_dir():
        return {"all": YoloPlace((root / IMAGES,), names, where)}
    return {}


def _class_list(root: Path) -> tuple[tuple[str, ...] | None, str]:
    for path in (root / "classes.txt", root / LABELS / "classes.txt", root / "obj.names", root.parent / "classes.txt"):
        if path.is_file():
            return read_class_list(path), str(path)
    return None, str(root)


def read_class_list(path: Path) -> tuple[str, ...]:
    """Return the names in a file of a class in each line.

    Raises:
        ValueError: for a file without names, or a name that is given twice.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {printable(str(path))}; expected the name of a class in each line")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text ({error}); save it in UTF-8") from error
    require_distinct(names, "classes", str(path), "give each its own name")
    if not names:
        raise ValueError(f"{path} names no class; expected one in each line")
    return tuple(names)


def read_yolo(place: YoloPlace) -> Annotations:
    """Read the labels of a split. An image without a file of labels shows no object.

    Raises:
        ValueError: for labels without an image, numbers that are not classes, lines of another form, and values that
            are not shares of the image, with the line.
    """
    root = place.images[0] if len(place.images) == 1 and place.images[0].is_dir() else None
    found: list[Annotated] = []
    without, numbers = 0, set()
    for entry in place.images:
        for image, labels in _pairs(entry):
            objects = () if labels is None else tuple(_objects(labels, place))
            without += labels is None
            numbers |= {written.name for written in objects}
            name = os.path.relpath(image, root) if root is not None else str(image)
            found.append(Annotated(name, objects, str(labels or image)))
    if not found:
        raise ValueError(f"there is no image in {named([str(entry) for entry in place.images])}")
    if without == len(found):
        looked = _labels_of(Path(found[0].where))
        raise ValueError(
            f"none of the {len(found)} images in {named([str(entry) for entry in place.images])} has a file of labels, "
            f"such as {printable(str(looked))}; put labels beside images: .../images/1.jpg and .../labels/1.txt"
        )
    require_distinct([one.image for one in found], "images", place.where, "name each once")
    classes = None
    if place.names is not None:
        classes = {name: number for number, name in enumerate(place.names)}
    elif numbers:
        largest = max(map(int, numbers))
        if largest >= MOST_CLASSES:
            raise ValueError(
                f"{place.where}: the labels have the class number {largest:,}, and nothing names classes; name them in "
                "a data.yaml or in classes.txt"
            )
        classes = {str(number): number for number in range(1 + largest)}
    return Annotations("YOLO", root or Path("/"), tuple(found), classes, without)


def _labels_of(image: Path) -> Path:
    """Return the file of an image's labels: below labels where the image is below images, else beside it."""
    parts = list(image.absolute().parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == IMAGES:
            return Path(*parts[:place], LABELS, *parts[place + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _pairs(entry: Path) -> list[tuple[Path, Path | None]]:
    """Return the images of a folder, or of a file that lists them, with their labels.

    Raises:
        ValueError: for labels without an image.
    """
    if entry.is_file():
        try:
            lines = [line.strip() for line in entry.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{entry} cannot be read as text ({error}); save it in UTF-8") from error
        images = [entry.parent / line for line in lines if line]
        missing = [str(image) for image in images if not image.exists()]
        if missing:
            raise ValueError(
                f"{entry} lists {counted(len(missing), 'image')} that {verb(len(missing), 'do')} not exist: "
                f"{named(missing)}; correct it"
            )
    else:
        below = images_by_stem(entry, (below + one.name for below, one in walk(entry)))
        images = [entry / name for _, name in sorted(below.items())]
        folder = _labels_of(entry / "x.txt").parent
        if folder.is_dir():
            labels = {
                os.path.splitext(below_ + one.name)[0]
                for below_, one in walk(folder)
                if one.name.endswith(".txt") and one.name != "classes.txt"
            }
            lost = sorted(labels - below.keys())
            if lost:
                raise ValueError(
                    f"no image in {printable(str(entry))} for {counted(len(lost), 'file')} of labels in "
                    f"{printable(str(folder))}: {named(lost)}. Add the images, or remove these files"
                )
    known = image_extensions()
    images = [image for image in images if image.suffix.lower() in known]
    pairs = [(image, _labels_of(image)) for image in images]
    return [(image, own if own.is_file() else None) for image, own in pairs]


def _objects(path: Path, place: YoloPlace) -> list[Written]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text ({error}); save it in UTF-8") from error
    found = []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if cells:
            found.append(_object(cells, f"{path}, line {number}", place))
    return found


def _object(cells: Sequence[str], where: str, place: YoloPlace) -> Written:
    label = number_of(cells[0], "the number of a class", where)
    if label != int(label) or label < 0 or (place.names is not None and label >= len(place.names)):
        most = "" if place.names is None else f" to {len(place.names) - 1}, those of {place.where}"
        raise ValueError(f"{where}: expected the number of a class, 0{most}, got {cells[0]}; correct it")
    name = str(int(label)) if place.names is None else place.names[int(label)]
    values = [number_of(cell, "a share of the image", where) for cell in cells[1:]]
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not polygon:
        raise ValueError(
            f"{where}: expected `class x y width height` or `class x1 y1 x2 y2 x3 y3 ...`, got {len(cells)} numbers"
            + ("; the sixth may be a prediction's confidence: remove it" if len(values) == 5 else "; correct the line")
        )
    large = [value for value in values if abs(value) > BEYOND]
    if large:
        raise ValueError(
            f"{where}: {large[0]:g} is not a share of the image, 0 to 1; divide x and widths by the image's width, and "
            "y and heights by its height"
        )
    if polygon:
        xs, ys = values[::2], values[1::2]
        return Written(name, (min(xs), min(ys), max(xs), max(ys)), where, mask=[values], relative=True)
    x, y, width, height = values
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Written(name, box, where, relative=True)
