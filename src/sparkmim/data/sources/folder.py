"""Image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ...utils.text import printable
from ..decoding.encoded import EncodedImage
from ..decoding.images import EncodedFile, image_extensions
from .base import NamedImages

JUNK = {
    "__macosx",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "@recycle",
    "#snapshot",
}
"""Files and folders that archives, operating systems and storage devices leave beside images, in lower case."""


SCHEMES_OF_FILES = {".tar": "wds", ".zip": "zip", ".parquet": "parquet", ".txt": "list"}
"""Schemes of addresses that open a file of images, by its extension."""


def path_at(address: str | Path, scheme: str, option: str) -> Path:
    """Return the absolute path of a file or a folder that an address names, with its scheme or without.

    Raises:
        ValueError: if there is none.
    """
    path = Path(str(address).removeprefix(scheme)).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"there is no file or folder {printable(str(path))}; see {option}")
    return path


class Files(NamedImages):
    """Image files below a folder.

    Attributes:
        local: the folder is one of this machine.
    """

    schemes: ClassVar[tuple[str, ...]] = ("folder",)
    local = True

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(names)
        self.root = root

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Files:
        """Find the images below a folder, see :func:`find_images`."""
        return find_images(rest)

    def open(self, index: int) -> EncodedImage:
        """Return the file."""
        return EncodedFile(os.path.join(self.root, self.name(index)))


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that operating systems and storage devices leave behind."""
    return name.startswith(".") or name.lower() in JUNK


def list_folders(root: Path) -> list[str]:
    """Return the names of the folders in a folder in alphabetical order, without junk."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not is_junk(path.name))


def find_images(folder: str | Path, flag: str = "--data") -> Files:
    """Find all files below a folder, nested or not, with the extension of an image or array, in alphabetical order.

    Junk (see :func:`is_junk`), pipes, sockets and devices are skipped. Links to folders are followed, each folder once;
    links to nowhere are listed, and turn out unreadable.

    Args:
        folder: the folder of images.
        flag: the command-line option that named it, for messages.

    Raises:
        ValueError: if the folder does not exist, has no image, or a folder below it cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        scheme = SCHEMES_OF_FILES.get(root.suffix.lower())
        instead = "" if scheme is None else f", or {scheme}://{printable(str(root))}"
        raise ValueError(
            f"{root} is a file; {flag} takes the folder{instead}"
            if root.exists()
            else f"there is no folder {root}; see {flag}"
        )
    known = image_extensions()
    names: list[str] = []
    others: Counter[str] = Counter()
    for below, entry in walk(root):
        extension = os.path.splitext(entry.name)[1].lower()
        if extension not in known:
            others[extension or "no extension"] += 1
        elif _is_regular(entry):
            names.append(below + entry.name)
        else:
            others["pipes, sockets or devices"] += 1
    if not names:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
        raise ValueError(
            f"no image in {root}: it holds {found or 'no file'}; expected files that Pillow reads, such as jpg or png"
        )
    return Files(root, sorted(names))


def walk(root: Path, whole: Callable[[str], bool] = lambda name: False) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield each entry below a folder that is not a folder or junk, with the path of its folder below the root.

    Args:
        root: the folder.
        whole: whether a folder of some name is yielded as a whole instead of what it holds.

    Raises:
        ValueError: for a folder that cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    pending = [""]  # relative paths that end with a separator; the last is next
    while pending:
        below = pending.pop()
        folders = []
        try:
            status = os.stat(root / below)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / below) as entries:
                for entry in entries:
                    if is_junk(entry.name):
                        continue
                    folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                    if folder and not whole(entry.name):
                        folders.append(entry.name)
                    else:
                        yield below, entry
        except OSError as error:
            raise _unlistable(error) from error
        pending += [f"{below}{name}{os.sep}" for name in sorted(folders, reverse=True)]


def _is_regular(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _unlistable(error: OSError) -> ValueError:
    return ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or name a folder without it"
    )
