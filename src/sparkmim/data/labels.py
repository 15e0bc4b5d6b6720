"""Labeled images from class folders or a CSV file, and shares and folds of them.

```
DIR/CLASS/.../image.jpg           class folders
DIR/{train,val,test}/CLASS/...    class folders by split; named as DIR/. the three are classes
SCHEME://...                      an address whose source knows the classes, such as wds://shards-{000..012}.tar
FILE.csv                          rows `path,class`, paths relative to the file's folder, or columns with headings,
                                  one of which may name splits; see :mod:`sparkmim.data.tables`
```

Volumes are read likewise where the network takes them (`volumes`): files, DICOM series and folders of OME-Zarr below
class folders; in a table also the folder of a series, or `NAME.nii.gz` for channels `NAME_0000.nii.gz`...

Hidden files and junk of operating systems are passed over.

Classes are numbered in the alphabetical order of their names. The only image of a class is trained on and never held
out, and belongs to every share of the labels.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..utils.text import counted, printable, verb
from .config import FileConfig
from .labels_by_address import classes_at, is_address
from .seeding import Stream, keyed_generator
from .sources.address import AS_CLASSES
from .sources.base import ImageSource, Subset
from .sources.folder import Files, find_images, list_folders
from .sources.pages import Pages, count_pages
from .tables import Table, named, read_table
from .volumes.base import Cases
from .volumes.labeled import cases_of, find_in_classes, is_listed_volume, is_volume_folder
from .volumes.opening import SCHEME
from .volumes.preparing import Preparation
from .volumes.unprepared import UnpreparedVolumes

SPLITS = ("train", "val", "test")
"""Folder names of the splits of a data set."""


@dataclass(frozen=True)
class LabeledImages:
    """Images and their classes.

    Attributes:
        source: the images.
        labels: class index of each image, int64.
        classes: names of the classes, sorted.
    """

    source: ImageSource
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> LabeledImages:
        """Return some of the images, with the same classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return LabeledImages(Subset(self.source, chosen), self.labels[chosen], self.classes)

    def by_page(self, channels: int, files: FileConfig) -> LabeledImages:
        """Return the pages of files that hold several images, each with its file's class; see :mod:`.sources.pages`."""
        counts = count_pages(self.source, channels, files)
        if counts is None:
            return self
        return LabeledImages(Pages(self.source, counts), np.repeat(self.labels, counts), self.classes)

    def cases(self) -> Cases:
        """Return the files of labeled volumes.

        Raises:
            ValueError: if these were not read from files.
        """
        if not isinstance(self.source, UnpreparedVolumes):
            raise ValueError("labeled volumes are read from class folders or a CSV file, not by address; name one")
        return Cases(self.source.cases)

    def prepared(self, open_cases: Callable[[Cases], ImageSource]) -> LabeledImages:
        """Return labeled volumes prepared in another way; those that turn out unreadable are left out.

        Args:
            open_cases: prepares volumes.

        Raises:
            ValueError: if these were not read from files.
        """
        cases = self.cases()
        source = open_cases(cases)
        label = {case.name: int(number) for case, number in zip(cases, self.labels, strict=True)}
        labels = np.array([label[source.name(index)] for index in range(len(source))], np.int64)
        return LabeledImages(source, labels, self.classes)

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()


def read_labeled(path: str | Path, option: str = "--data", volumes: Preparation | None = None) -> LabeledImages:
    """Read the images of class folders or of a CSV file (of one that names splits, those to train on), see above.

    Args:
        path: the folder or file.
        option: the command-line option that named it, for messages.
        volumes: how volumes are prepared, if these are volumes; None for images.

    Raises:
        ValueError: if there are no classes, images lie outside of them, a class folder is empty, or files listed in the
            table are missing.
    """
    place = _place_of(path)
    labeled = at_address(place, option) if isinstance(place, str) else _read(place, option, "train", volumes)
    empty = [name for name, count in zip(labeled.classes, labeled.counts(), strict=True) if not count]
    if empty:
        raise ValueError(
            f"{path}: no image in the class folder{'s' * (len(empty) > 1)} {named(empty)}; add images, or remove the "
            "folder from every split if it is not a class"
        )
    return labeled


def read_matching(
    path: str | Path,
    classes: Sequence[str],
    reference: str,
    option: str = "--data",
    volumes: Preparation | None = None,
) -> LabeledImages:
    """Read the images of another split, with the class indices of a reference.

    A class folder may be empty here, and a table need not have every class.

    Args:
        path: class folders or a CSV file.
        classes: class names of the reference.
        reference: name of the reference in messages.
        option: the command-line option that named the path, for messages.
        volumes: how volumes are prepared, if these are volumes; None for images.

    Raises:
        ValueError: as for :func:`read_labeled`, and if the classes differ.
    """
    other = _read_split(path, option, volumes)
    unknown = sorted(set(other.classes) - set(classes))
    missing = sorted(set(classes) - set(other.classes)) if _is_folder(path) else []
    if unknown or missing:
        spelled = {_one_spelling(name): name for name in missing}
        twice = [name for name in unknown if _one_spelling(name) in spelled]
        if twice:
            pairs = ", ".join(f"{name!a} there, {spelled[_one_spelling(name)]!a} here" for name in twice)
            raise ValueError(
                f"expected {path} to have the classes of {reference}: {pairs} look alike, and are spelled with other "
                "Unicode characters (NFC or NFD). Rename the folder or change the row in one of them"
            )
        parts = [f"{named(unknown)} only in {path}"] * bool(unknown) + [f"{named(missing)} missing there"] * bool(
            missing
        )
        raise ValueError(
            f"expected {path} to have the classes of {reference}: {'; '.join(parts)}. Rename or add the folders; an "
            f"empty folder stands for a class without images"
        )
    number = {name: index for index, name in enumerate(classes)}
    renumbered = np.array([number[name] for name in other.classes], dtype=np.int64)
    return LabeledImages(other.source, renumbered[other.labels], tuple(classes))


def read_splits(
    data: str | Path,
    val_data: str | Path | None = None,
    option: str = "--data",
    volumes: Preparation | None = None,
) -> tuple[LabeledImages, LabeledImages | None]:
    """Read images to train on, and images to validate with if there are any.

    Args:
        data: class folders, a CSV file, or a folder with `train` and perhaps `val` in it.
        val_data: class folders or a CSV file; `val` beside `train` if not given.
        option: the command-line option that named `data`, for messages.
        volumes: how volumes are prepared, if these are volumes; None for images.

    Raises:
        ValueError: as for :func:`read_labeled` and :func:`read_matching`.
    """
    root = _place_of(data)
    if isinstance(root, Path) and _has_splits(data):
        if strange := [name for name in list_folders(root) if name not in SPLITS]:
            raise ValueError(
                f"expected only the folders {', '.join(SPLITS)} in {root}, got also {named(strange)}; if all of these "
                f"are classes, write {option} {printable(str(root))}{AS_CLASSES}, and otherwise name the folder whose "
                f"folders are the classes"
            )
        if val_data is None and (root / "val").is_dir():
            val_data = root / "val"
        root = root / "train"
    train = read_labeled(root, option, volumes)
    if val_data is None and isinstance(root, Path) and _split_in_table(root, "val", volumes):
        return train, read_matching(root, train.classes, str(root), "--val-data", volumes)
    if len(train.classes) < 2:
        raise ValueError(f"expected at least two classes in {root}, got {train.classes[0]} alone")
    if val_data is None:
        return train, None
    return train, read_matching(val_data, train.classes, str(root), "--val-data", volumes)


def at_address(address: str, option: str) -> LabeledImages:
    """Return the images at an address whose source knows their classes.

    Raises:
        ValueError: if it does not.
    """
    return LabeledImages(*classes_at(address, option))


def _place_of(data: str | Path) -> str | Path:
    """Return the address of labeled images, or their folder or file."""
    return str(data) if is_address(data) and not str(data).startswith(SCHEME) else _path_of(data)


def _read_split(path: str | Path, option: str, volumes: Preparation | None) -> LabeledImages:
    """Read images that others are compared with; of a file that names splits, those that the option asks for."""
    place = _place_of(path)
    if isinstance(place, str):
        return at_address(place, option)
    return _read(place, option, {"--val-data": "val", "--test-data": "test"}.get(option), volumes)


def _is_folder(path: str | Path) -> bool:
    place = _place_of(path)
    return isinstance(place, Path) and place.is_dir()


def _split_in_table(path: Path, split: str, volumes: Preparation | None) -> bool:
    """Return whether a CSV file names rows of a split."""
    return _is_table(path) and split in (_table(path, volumes).splits or ())


def _table(path: Path, volumes: Preparation | None) -> Table:
    return read_table(path) if volumes is None else read_table(path, is_listed_volume)


def _has_splits(data: str | Path) -> bool:
    """Return whether a folder is divided into splits; `FOLDER/.` says that it is not, whatever it contains."""
    return not str(data).endswith(AS_CLASSES) and (_path_of(data) / "train").is_dir()


def _one_spelling(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def label_share(labeled: LabeledImages, share: float, seed: int) -> LabeledImages:
    """Return a share of the images of each class, at least one image; larger shares contain smaller ones.

    Raises:
        ValueError: if the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--label-share {share:g} must be above 0 and at most 1")
    parts = [
        order[: max(1, round(share * len(order)))] for order in _shuffled_classes(labeled, seed, Stream.LABEL_SHARE)
    ]
    return labeled.subset(np.sort(np.concatenate(parts)))


def fold(labeled: LabeledImages, folds: int, index: int, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """Return the images to train on and those held out in one fold of a cross-validation.

    The images of each class are dealt to the folds in turn, so each fold has its share of each class with enough
    images. The only image of a class is trained on in every fold.

    Raises:
        ValueError: if there are fewer than two folds, no such fold, or no image in it.
    """
    if folds < 2:
        raise ValueError(f"--folds {folds} must be at least 2, or 0 for no cross-validation")
    if not 0 <= index < folds:
        raise ValueError(f"--fold {index} must be 0 to {folds - 1}")
    held: list[np.ndarray] = []
    dealt = 0
    for order in _shuffled_classes(labeled, seed, Stream.FOLDS):
        if len(order) > 1:
            held.append(order[(index - dealt) % folds :: folds])
            dealt += len(order)  # small classes begin where the last one ended, and folds stay of equal size
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    if not held:
        raise ValueError("every class has a single image, so none can be held out; name others with --val-data")
    if not len(out):
        raise ValueError(
            f"{counted(len(labeled), 'image')} {verb(len(labeled), 'do')} not fill {folds} folds; use fewer --folds"
        )
    return labeled.subset(np.setdiff1d(np.arange(len(labeled)), out)), labeled.subset(out)


def _shuffled_classes(labeled: LabeledImages, seed: int, stream: Stream) -> list[np.ndarray]:
    """Return the shuffled indices of each class's images; the order of a class depends on its own images alone."""
    orders = []
    for number in range(len(labeled.classes)):
        own = np.flatnonzero(labeled.labels == number)
        orders.append(own[torch.randperm(len(own), generator=keyed_generator(seed, stream, number)).numpy()])
    return orders


def _path_of(data: str | Path) -> Path:
    """Return the folder or file of labeled images; `volumes://` says nothing here that the network does not."""
    return Path(str(data).removeprefix(SCHEME)).expanduser()


def _read(path: Path, option: str, split: str | None, volumes: Preparation | None) -> LabeledImages:
    """Read class folders or a CSV file; of a file that names splits, the rows of one, if it has any."""
    if not (path.is_file() if _is_table(path) else path.is_dir()):
        if path.is_file():
            raise ValueError(f"expected a folder of class folders or a CSV file, got {path}; see {option}")
        address = "; labeled images cannot be read by address" if ":/" in str(path) else ""
        raise ValueError(f"there is no {'file' if _is_table(path) else 'folder'} {path}{address}; see {option}")
    if not _is_table(path):
        return _read_folders(path, option, volumes)
    table = _table(path, volumes)
    if split is not None and table.splits is not None and split in table.splits:
        table = table.of_split(split)
    return _labeled(path, table, volumes)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _labeled(path: Path, table: Table, volumes: Preparation | None) -> LabeledImages:
    classes = tuple(sorted(set(table.classes)))
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name] for name in table.classes], np.int64)
    if volumes is not None:
        return LabeledImages(UnpreparedVolumes(cases_of(path.parent, table.names), volumes), labels, classes)
    return LabeledImages(Files(path.parent, table.names), labels, classes)


def _read_folders(root: Path, option: str, volumes: Preparation | None) -> LabeledImages:
    source: ImageSource
    if volumes is None:
        source = find_images(root)
        names = [source.name(index) for index in range(len(source))]
    else:
        cases, names = find_in_classes(root, option, len(volumes.kinds))
        source = UnpreparedVolumes(cases, volumes)
    loose = [name for name in names if "/" not in name]
    dead = sorted(p.name for p in root.iterdir() if p.is_symlink() and not p.exists() and "." not in p.name)
    if dead:
        raise ValueError(
            f"{root}: {named(dead)} {'is a link' if len(dead) == 1 else 'are links'} to what does not exist; mend or "
            "remove it, or a class would be missing in silence"
        )
    classes = tuple(name for name in list_folders(root) if volumes is None or not is_volume_folder(name))
    if not classes:
        raise ValueError(
            f"{root} has no class folders: its {counted(len(names), 'image')} {verb(len(names), 'lie')} in the folder "
            "itself"
        )
    if loose:
        raise ValueError(
            f"{counted(len(loose), 'image')} of {root} {verb(len(loose), 'lie')} outside its class folders: "
            f"{named(loose)}"
        )
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name.split("/")[0]] for name in names], dtype=np.int64)
    _require_own_folders(root, classes, labels)
    return LabeledImages(source, labels, classes)


def _require_own_folders(root: Path, classes: Sequence[str], labels: np.ndarray) -> None:
    """Raise for a class folder without images because it is a link to another one's, whose images are counted there."""
    counts = np.bincount(labels, minlength=len(classes))
    for name in (name for name, count in zip(classes, counts, strict=True) if not count):
        here = (root / name).resolve()
        for other in classes:
            there = (root / other).resolve()
            if other != name and (here == there or here.is_relative_to(there) or there.is_relative_to(here)):
                links = [part for part in (name, other) if (root / part).is_symlink()]
                said = ", ".join(f"{printable(p)} is a link to {printable(os.readlink(root / p))}" for p in links)
                raise ValueError(
                    f"{root}: the class folders {named([name])} and {named([other])} are the same folder, one by a "
                    f"link ({said}), and an image has one class; remove one of them, or copy its images instead"
                )


class LabeledSplits(NamedTuple):
    """Labeled images by what they are for."""

    train: LabeledImages
    val: LabeledImages | None
    test: list[LabeledImages]

    @property
    def scored(self) -> list[LabeledImages]:
        """Sets to score without learning from them: those to test on, else those to validate with."""
        return self.test or ([] if self.val is None else [self.val])


def labeled_splits(
    data: str | Path,
    val_data: str | Path | None,
    test_data: str | Path | Sequence[str | Path],
    volumes: Preparation | None = None,
) -> LabeledSplits:
    """Return training, validation and test images; `val` and `test` beside `train` in `data` where none are named.

    Raises:
        ValueError: as for :func:`~sparkmim.data.labels.read_splits`.
    """
    train, val = read_splits(data, val_data, volumes=volumes)
    root = _place_of(data)
    if isinstance(test_data, (str, Path)):
        test_data = [test_data]
    if not test_data and isinstance(root, Path):
        if _has_splits(data) and (root / "test").is_dir():
            test_data = [root / "test"]
        elif _split_in_table(root, "test", volumes):
            test_data = [root]
    tests = [read_matching(path, train.classes, "the training images", "--test-data", volumes) for path in test_data]
    return LabeledSplits(train, val, tests)
