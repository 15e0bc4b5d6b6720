"""Volumes with classes: class folders, and tables of paths and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .base import Case
from .cases import find_cases
from .extensions import ZARR, extension_of
from .listings import channels_of, files_at


class Found(NamedTuple):
    """Volumes below a folder.

    Attributes:
        cases: the volumes.
        places: path of each one's first file below the folder.
    """

    cases: list[Case]
    places: list[str]


def find_in_classes(root: Path, option: str, channels: int) -> Found:
    """Find the volumes below a folder of class folders; see :func:`~sparkmim.data.volumes.cases.find_cases`.

    Args:
        root: the folder.
        option: the command-line option that named it, for messages.
        channels: of each volume.

    Raises:
        ValueError: if there are none.
    """
    cases = list(find_cases(root, option, listings=False, channels=channels))
    places = [case.files[0].relative_to(root).as_posix() for case in cases]
    return Found(cases, [_outermost(place) for place in places])


def _outermost(place: str) -> str:
    """Return a path up to the first folder that is a volume as a whole, such as a plate of OME-Zarr."""
    parts = place.split("/")
    end = next((number for number, part in enumerate(parts, start=1) if is_volume_folder(part)), len(parts))
    return "/".join(parts[:end])


def is_volume_folder(name: str) -> bool:
    """Return whether a folder is one volume, by its name."""
    return extension_of(name) in ZARR


def is_listed_volume(path: Path) -> bool:
    """Return whether a path in a table names a volume: a file, a folder, or what the names of channels begin with."""
    return path.is_file() or path.is_dir() or bool(channels_of(path))


def cases_of(folder: Path, names: Sequence[str]) -> list[Case]:
    """Return the volumes that a table lists.

    A path is of a file, of a folder of DICOM files, or `NAME.nii.gz` for the channels `NAME_0000.nii.gz`...

    Args:
        folder: of the table.
        names: paths, relative to it.
    """
    return [Case(name, _files(folder / name)) for name in names]


def _files(path: Path) -> tuple[Path, ...]:
    return files_at(path) if path.exists() else channels_of(path)
