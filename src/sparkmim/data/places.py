"""Where the files of image sources lie: those that two sets share, and those outside of their folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..utils.text import printable
from .sources.base import ImageSource, Subset, indices_in_whole, whole_of
from .sources.folder import Files
from .sources.pages import Pages
from .volumes.unprepared import UnpreparedVolumes

MOST_LINKS = 100_000
"""Files that are looked at for links; folders of larger sets are all looked at."""


class Outside(NamedTuple):
    """Images of a folder that lie elsewhere, reached by links or by `..`: their number, and the first with its file."""

    number: int
    name: str
    target: str

    def __str__(self) -> str:
        return f"{self.number:,} outside of the folder ({printable(self.name)} is {printable(self.target)})"


def shared_files(one: ImageSource, other: ImageSource) -> int:
    """Return how many files of a set are files of another one too, whatever their names; 0 for other sources.

    Links and several spellings of a path are the same file, copies are not.
    """
    known = set(_files(one))
    return sum(file in known for file in _files(other)) if known else 0


def files_outside(source: ImageSource) -> Outside | None:
    """Return which images lie outside of the folder that was named, None if none do, or for other sources."""
    files, indices = _folder_of(source)
    if files is None:
        return None
    root = os.path.realpath(files.root)
    inside: dict[str, bool] = {}
    count, first = 0, ("", "")
    for number, index in enumerate(indices):
        name = files.name(index)
        folder = os.path.dirname(name)
        if folder not in inside:
            inside[folder] = Path(os.path.realpath(files.root / folder)).is_relative_to(root)
        path = files.root / name
        linked = number < MOST_LINKS and path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)
        if not inside[folder] or linked:
            count += 1
            first = first if first[0] else (name, os.path.realpath(path))
    return Outside(count, *first) if count else None


def _folder_of(source: ImageSource) -> tuple[Files | None, Iterator[int]]:
    """Return the files that a source is part of, and the indices of its own among them."""
    if isinstance(source, (Subset, Pages)):
        files, within = _folder_of(source.source)
        all_of_them = list(within)
        chosen = source.indices if isinstance(source, Subset) else source.files
        return files, iter([all_of_them[int(index)] for index in chosen] if files is not None else [])
    if isinstance(source, Files) and source.local:
        return source, iter(range(len(source)))
    return None, iter(())


def _files(source: ImageSource) -> Iterator[tuple[int, int]]:
    """Yield device and number of each image's file, of a volume's first; of those that are missing, nothing."""
    for path in _paths(source):
        try:
            status = os.stat(path)
        except OSError:
            continue
        yield status.st_dev, status.st_ino


def _paths(source: ImageSource) -> Iterator[Path]:
    files, indices = _folder_of(source)
    if files is not None:
        yield from (files.root / files.name(index) for index in indices)
    whole = whole_of(source)
    if isinstance(whole, UnpreparedVolumes):
        yield from (whole.cases[index].files[0] for index in indices_in_whole(source))
