"""PASCAL VOC: an XML file for each image, and lists of images for each split."""

from __future__ import annotations

import os
import xml.parsers.expat as expat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...utils.text import counted, printable
from ..sources.folder import walk
from ..tables import named
from .annotations import Annotated, Annotations, Written, images_by_stem, number_of

ANNOTATIONS, IMAGES = "Annotations", ("JPEGImages", "images", "Images")
"""Folders of a data set."""

LISTS = "ImageSets/Main"
"""Folder of the splits: a file of the images' names for each."""

DEEPEST = 64
"""Elements within each other, at most: those of annotations are five."""

EDGES = ("xmin", "ymin", "xmax", "ymax")


class Folders(NamedTuple):
    """The folders of a data set, which are the same where XML files lie beside the images."""

    annotations: Path
    images: Path


def find_folders(root: Path) -> Folders | None:
    """Return the folders of a data set; None if it holds no XML files of annotations."""
    if (root / ANNOTATIONS).is_dir():
        found = [root / name for name in IMAGES if (root / name).is_dir()]
        return Folders(root / ANNOTATIONS, found[0] if found else root / ANNOTATIONS)
    beside = any(path.suffix.lower() == ".xml" for path in root.iterdir() if path.is_file())
    return Folders(root, root) if beside else None


def find_lists(root: Path) -> dict[str, Path]:
    """Return the lists of the splits; "all" for trainval where there is none of train and val."""
    files = {name: root / LISTS / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    found = {name: path for name, path in files.items() if path.is_file()}
    if "train" not in found and "trainval" in found:
        found = {"all": found["trainval"], **{name: path for name, path in found.items() if name == "test"}}
    found.pop("trainval", None)
    return found if {"train", "all"} & found.keys() else {}


def read_voc(folders: Folders, listed: Path | None) -> Annotations:
    """Read XML files.

    Args:
        folders: of annotations and images.
        listed: file of the names of the images that are wanted; all that have annotations if None.

    Raises:
        ValueError: for names without annotations, annotations without an image, and what :func:`read_xml` finds.
    """
    files = {
        os.path.splitext(below + entry.name)[0]: Path(entry.path)
        for below, entry in walk(folders.annotations)
        if entry.name.lower().endswith(".xml")
    }
    if not files:
        raise ValueError(f"{printable(str(folders.annotations))} holds no XML file of annotations")
    images = images_by_stem(folders.images, (below + entry.name for below, entry in walk(folders.images)))
    if listed is None:
        wanted, unannotated = sorted(files), len(images.keys() - files.keys())
    else:
        wanted, unannotated = _names_in(listed, files, folders.annotations), 0
    found = [read_xml(files[stem], images.get(stem)) for stem in wanted]
    present = set(images.values())
    missing = [one.where for one in found if one.image not in present]
    if missing:
        raise ValueError(
            f"no image in {printable(str(folders.images))} for {counted(len(missing), 'file')} of annotations: "
            f"{named(missing)}. Add the images, or remove these files"
            + (f" and their lines of {listed}" if listed else "")
        )
    return Annotations("VOC", folders.images, tuple(found), None, unannotated, _counted_from(found))


def _counted_from(found: Iterable[Annotated]) -> int:
    """Return 1, as PASCAL VOC counts pixels, unless an edge lies before the first one."""
    return int(all(min(written.box[:2]) >= 1 for image in found for written in image.objects))


def _names_in(listed: Path, files: dict[str, Path], folder: Path) -> list[str]:
    """Return the names that a list of a split gives.

    Raises:
        ValueError: for a name without annotations, or one that is given twice, with the line.
    """
    found: dict[str, int] = {}
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listed} cannot be read as text ({error}); save it in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip()):
            continue
        name = name if name in files else os.path.splitext(name)[0]
        if name not in files:
            raise ValueError(
                f"{listed}, line {number}: there is no file {printable(line.strip())}.xml in {printable(str(folder))}; "
                "add it (without an object, if the image shows none), or remove the line"
            )
        if name in found:
            raise ValueError(
                f"{listed}, line {number}: {printable(name)} stands in line {found[name]} already; remove one of both"
            )
        found[name] = number
    if not found:
        raise ValueError(f"{listed} names no image; expected the name of one in each line")
    return list(found)


def read_xml(path: Path, image: str | None = None) -> Annotated:
    """Read the annotations of an image.

    Args:
        path: of the XML file.
        image: that has the file's name; if None, the one that the file names.

    Raises:
        ValueError: for a file that is not XML or not of annotations, and an object without a name or a box, with the
            line.
    """
    reader = _Reader(path)
    reader.read()
    if image is None:
        image = os.path.basename(reader.filename.replace("\\", "/")) or path.stem
    return Annotated(image, tuple(reader.objects), str(path), reader.size())


class _Reader:
    """Reads the elements that matter, with the line of each; expat tells lines, ElementTree does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects: list[Written] = []
        self.filename = ""
        self._places: list[str] = []
        self._text: list[str] = []
        self._own: dict[str, tuple[str, int]] = {}
        self._size: dict[str, str] = {}
        self._line = 0

    def read(self) -> None:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.EntityDeclHandler = self._entity  # which may name files, or grow without limit
        self._parser = parser
        try:
            parser.Parse(self.path.read_bytes(), True)
        except (expat.ExpatError, LookupError, ValueError) as error:  # also for an encoding that is not known
            if str(error).startswith(str(self.path)):
                raise  # of this reader's own
            raise ValueError(f"{self.path} cannot be read as XML ({error}); correct or remove it") from error
        if not self._rooted:
            raise ValueError(
                f"{self.path} is not a file of PASCAL VOC: expected an element <annotation>, got <{self._root}>"
            )

    def size(self) -> tuple[int, int] | None:
        """Return the stated height and width; some tools write 0 where they do not know."""
        try:
            height, width = (int(float(self._size[side])) for side in ("height", "width"))
        except (KeyError, ValueError, OverflowError):
            return None
        return (height, width) if height > 0 and width > 0 else None

    _root, _rooted = "", False

    def _entity(self, name: str, *_: object) -> None:
        raise ValueError(f"{self.path} declares an entity ({name}), which annotations have no use for; remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._places:
            self._root, self._rooted = name, name == "annotation"
        self._places.append(name)
        if len(self._places) > DEEPEST:
            raise ValueError(f"{self.path} has more than {DEEPEST} elements within each other; remove it")
        self._text.clear()
        if self._places == ["annotation", "object"]:
            self._own, self._line = {}, self._parser.CurrentLineNumber

    def _end(self, name: str) -> None:
        place, text = self._places[1:], "".join(self._text).strip()
        line = self._parser.CurrentLineNumber
        if place == ["filename"]:
            self.filename = text
        elif place[:1] == ["size"] and len(place) == 2:
            self._size[name] = text
        elif place[:1] == ["object"] and place[1:] in (["name"], ["difficult"], *(["bndbox", edge] for edge in EDGES)):
            self._own[name] = (text, line)
        elif place == ["object"]:
            self.objects.append(self._object())
        self._places.pop()
        self._text.clear()

    def _object(self) -> Written:
        lacking = [name for name in ("name", *EDGES) if not self._own.get(name, ("", 0))[0]]
        where = f"{self.path}, line {self._line}"
        if lacking:
            raise ValueError(f"{where}: the object has no {named(lacking)}; write <name> and <bndbox>, or remove it")
        box = [number_of(self._own[e][0], e, f"{self.path}, line {self._own[e][1]}") for e in EDGES]
        difficult = self._own.get("difficult", ("0", 0))[0] in ("1", "true", "True")
        return Written(self._own["name"][0], (box[0], box[1], box[2], box[3]), where, difficult)
