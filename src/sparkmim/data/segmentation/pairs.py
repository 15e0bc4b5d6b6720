"""Find images and their masks: folders of both, matched by the names of their files, or a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...utils.text import counted, printable, verb
from ..detection.opening import COCO_FILE, coco_files
from ..sources.folder import walk
from ..tables import SEPARATORS, SPLIT, SPLIT_NAMES, named
from ..targets import split_paths
from ..volumes.extensions import stem_of

IMAGE_FOLDERS = ("images", "imagesTr", "image", "img", "imgs")
MASK_FOLDERS = ("masks", "labels", "labelsTr", "mask", "label", "annotations")
"""Names of the folders of a data set, the first that exist."""

VOLUMES = "volumes://"
"""Begins an address of volumes whose files may be pictures too, as those of `.npy` and `.tif`."""

TEST_FOLDERS = ("imagesTs", "labelsTs")
"""Those of nnU-Net's test images."""

SUFFIXES = ("_mask", "_seg", "_label", "_labels", "_gt", "_segmentation", "_labelIds", "_L")
"""Added to the names of masks, which are otherwise those of the images."""

IMAGE_HEADS = {"image", "images", "file", "path", "filename", "img", "image_path"}
MASK_HEADS = {"mask", "masks", "label", "labels", "segmentation", "seg", "annotation", "mask_path"}


class Pair(NamedTuple):
    """An image and its mask."""

    image: str
    mask: Path


class Folders(NamedTuple):
    """The folders of the images and of the masks of a split."""

    images: Path
    masks: Path


class Place(NamedTuple):
    """Where the pairs of a split are.

    Attributes:
        path: a folder, a CSV file, or a COCO file.
        split: whose rows of the file are meant; "test" of a folder means nnU-Net's imagesTs and labelsTs.
        volumes: what its files hold, even where these may be pictures too (`volumes://FOLDER`).
        images: folder of the images of a COCO file, if it is given.
    """

    path: Path
    split: str | None = None
    volumes: bool = False
    images: Path | None = None

    @classmethod
    def of(cls, data: str | Path, split: str | None = None) -> Place:
        """Return the place that an address names."""
        return cls(Path(str(data).removeprefix(VOLUMES)).expanduser(), split, str(data).startswith(VOLUMES))

    @property
    def is_table(self) -> bool:
        """Return whether it is a CSV file."""
        return self.path.suffix.lower() == ".csv"

    @property
    def is_coco(self) -> bool:
        """Return whether it is a COCO file."""
        return self.path.suffix.lower() == ".json" and not self.volumes


def find_places(data: str, val_data: str | None, test_data: str | None) -> tuple[Place, Place | None, Place | None]:
    """Return where the images to train on, to validate with and to test with are.

    Those that are not named are the splits of the CSV file, the folders val and test beside train, nnU-Net's imagesTs
    and labelsTs, or the other COCO files of a folder.

    Raises:
        ValueError: for a folder of several COCO files of which none can be told to be that of training.
    """
    whole = Place.of(data)
    val, test = (
        None if path is None else _in_coco_folder(Place.of(path), split)
        for path, split in ((val_data, "val"), (test_data, "test"))
    )
    files = _coco_files(whole)
    if files:
        own = {split: whole._replace(path=path) for split, path in files.items()}
        return own.get("train") or own["all"], val or own.get("val"), test or own.get("test")
    if whole.is_coco:
        return whole, val, test
    if whole.is_table:
        splits = splits_of(whole.path)
        val = val or (whole._replace(split="val") if "val" in splits else None)
        test = test or (whole._replace(split="test") if "test" in splits else None)
        return whole._replace(split="train" if splits else None), val, test
    if test is None and all((whole.path / name).is_dir() for name in TEST_FOLDERS):
        test = whole._replace(split="test")
    paths = split_paths(str(whole.path), None, None)
    val = val or (None if paths.val is None else whole._replace(path=paths.val))
    test = test or (None if paths.test is None else whole._replace(path=paths.test))
    return whole._replace(path=paths.train), val, test


def _coco_files(place: Place) -> dict[str, Path]:
    """Return the COCO file of each split in a folder, "all" for the only one; empty if it is not a folder of COCO's."""
    root = place.path
    folders = [root, *(root / name for name in SPLIT_NAMES)]
    marked = any((folder / COCO_FILE).is_file() for folder in folders) or any((root / "annotations").glob("*.json"))
    return coco_files(root) if marked and not place.volumes else {}


def _in_coco_folder(place: Place, split: str) -> Place:
    """Return the COCO file of a split in a folder; the place itself if it is not a folder of COCO's."""
    files = _coco_files(place)
    path = files.get("all") or files.get(split) or files.get("train")
    return place if path is None else place._replace(path=path)


def find_folders(place: Place, option: str) -> Folders:
    """Return the folders of images and masks in a folder.

    Raises:
        ValueError: if there are none, with what there is.
    """
    root = place.path
    if place.split == "test":
        return Folders(*(root / name for name in TEST_FOLDERS))
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"{printable(str(root))} {what}; {option} takes a folder with the folders images and masks in it (imagesTr "
            "and labelsTr of nnU-Net), a CSV file of rows `image,mask`, or a COCO file (.json)"
        )
    images, masks = (
        next((root / name for name in names if (root / name).is_dir()), None) for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    if images is None or masks is None:
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        lacking = "images (or imagesTr)" if images is None else "masks (or labels, labelsTr)"
        raise ValueError(
            f"{printable(str(root))} has no folder {lacking}: it holds the folders {named(there) or 'none'}. {option} "
            "takes a folder with images and masks in it, these below train, val and test, a CSV file of rows "
            "`image,mask`, or a COCO file (.json)"
        )
    return Folders(images, masks)


def match(images: Mapping[str, str], masks: Mapping[str, Path], folders: Folders) -> list[Pair]:
    """Match images with masks by stem.

    Args:
        images: by stem, their names.
        masks: by stem.
        folders: of both, for messages.

    Raises:
        ValueError: for images without a mask, and masks without an image.
    """
    own = {_without_suffix(stem, images): path for stem, path in masks.items()}
    for what, other, left, place in (
        ("image", "a mask", sorted(images.keys() - own.keys()), folders.masks),
        ("mask", "an image", sorted(own.keys() - images.keys()), folders.images),
    ):
        if left:
            raise ValueError(
                f"{counted(len(left), what)} {verb(len(left), 'have')} no {other.split()[1]} of the same name in "
                f"{printable(str(place))}: {named(left)}. Add {other} for each, "
                "move them elsewhere, or list the pairs in a CSV file of rows `image,mask`"
            )
    if not images:
        raise ValueError(f"there is no image with a mask in {printable(str(folders.images))}")
    return [Pair(images[stem], own[stem]) for stem in sorted(images)]


def _without_suffix(stem: str, images: Mapping[str, str]) -> str:
    """Return the stem of a mask's image."""
    if stem in images:
        return stem
    found = [stem[: -len(suffix)] for suffix in SUFFIXES if stem.endswith(suffix)]
    return next((name for name in found if name in images), stem)


def by_stem(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Return names of files, paths below a folder, by their stems.

    Raises:
        ValueError: for several of the same stem.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[stem_of(name).replace(os.sep, "/")].append(name)
    twice = [names for names in found.values() if len(names) > 1]
    if twice:
        raise ValueError(
            f"{printable(str(folder))}: {' and '.join(map(printable, twice[0]))} have the same name but for the "
            "extension, and masks are matched by it; keep one of them"
        )
    return {stem: names[0] for stem, names in found.items()}


def files_below(folder: Path, extensions: Iterable[str]) -> list[str]:
    """Return the paths below a folder of the files with some extensions, in alphabetical order.

    Raises:
        ValueError: if there are none.
    """
    known = tuple(extensions)
    names = sorted(below + entry.name for below, entry in walk(folder) if entry.name.lower().endswith(known))
    if not names:
        raise ValueError(f"no file in {printable(str(folder))} ends in one of {', '.join(sorted(known)[:12])}")
    return names


def read_pairs(file: Path, split: str | None) -> list[Pair]:
    """Read a CSV file of rows `image,mask` or `image,mask,split`, with or without headings.

    Args:
        file: whose folder paths are relative to.
        split: whose rows are wanted; all rows if the file names none.

    Raises:
        ValueError: naming the line and what is wrong.
    """
    rows, splits = _rows(file)
    twice = sorted(name for name, count in Counter(pair.image for pair in rows).items() if count > 1)
    if twice:
        raise ValueError(f"{file} lists images more than once: {named(twice)}; keep one row for each")
    missing = [str(path) for pair in rows for path in (file.parent / pair.image, pair.mask) if not path.exists()]
    if missing:
        raise ValueError(
            f"{counted(len(missing), 'file')} that {printable(str(file))} lists {verb(len(missing), 'do')} not "
            f"exist: {named(missing)}. Relative paths "
            f"begin at {printable(str(file.parent))}"
        )
    if splits is None or split is None:
        return rows
    found = [pair for pair, name in zip(rows, splits, strict=True) if name == split]
    if not found:
        raise ValueError(f"{file} has no row of the split {split}; its splits are {', '.join(sorted(set(splits)))}")
    return found


def splits_of(file: Path) -> set[str]:
    """Return the splits that a CSV file names."""
    return set(_rows(file)[1] or ())


def _rows(file: Path) -> tuple[list[Pair], list[str] | None]:
    if not file.is_file():
        raise ValueError(f"there is no file {printable(str(file))}")
    try:
        text = file.read_bytes().decode("utf-8-sig")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        lines = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator), start=1)
        rows = [(number, [cell.strip() for cell in row]) for number, row in lines if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a CSV file ({error}); save it in UTF-8") from error
    columns = _columns(rows[0][1]) if rows else None
    if columns is not None:
        rows = rows[1:]
    image, mask, split = columns or (0, 1, 2 if rows and len(rows[0][1]) == 3 else None)
    if not rows:
        raise ValueError(f"{file} lists no images; expected rows `image,mask` or `image,mask,split`")
    pairs, splits = [], []
    for number, row in rows:
        if max(image, mask, split or 0) >= len(row) or not row[image] or not row[mask]:
            raise ValueError(
                f"{file}, line {number}: expected `image,mask` or `image,mask,split`, got {separator.join(row)!r}"
            )
        pairs.append(
            Pair(os.path.normpath(os.path.expanduser(row[image])), file.parent / os.path.expanduser(row[mask]))
        )
        if split is not None:
            name = SPLIT_NAMES.get(row[split].lower())
            if name is None:
                raise ValueError(f"{file}, line {number}: expected a split (train, val or test), got {row[split]!r}")
            splits.append(name)
    return pairs, splits if split is not None else None


def _columns(row: Sequence[str]) -> tuple[int, int, int | None] | None:
    """Return the columns that headings name, None if the row is not one of headings."""
    words = [cell.casefold() for cell in row]
    places = [[i for i, word in enumerate(words) if word in kinds] for kinds in (IMAGE_HEADS, MASK_HEADS, SPLIT)]
    if not places[0] or not places[1]:
        return None
    return places[0][0], places[1][0], places[2][0] if places[2] else None
