"""Lists of volumes: CSV files, the dataset.json of nnU-Net and of the Decathlon, and nnssl's pretrain_data.json."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...utils.io import read_json
from ...utils.text import printable, verb
from ..tables import SEPARATORS, named
from .base import Case, Cases, join_channels
from .extensions import READABLE, extension_of, is_dicom, stem_of

NNUNET, NNSSL = "dataset.json", "pretrain_data.json"
IMAGES = "imagesTr"


def read_listing(path: Path, option: str) -> Cases | None:
    """Return the volumes that a list names, or a folder that holds one.

    Returns:
        None for a folder without a list, and for files that are none.

    Raises:
        ValueError: if the list cannot be read, names no volume or files that do not exist.
    """
    if path.is_dir():
        for name in (NNSSL, NNUNET):
            if (path / name).is_file() and _kind(path / name) is not None:
                return read_listing(path / name, option)
        return None
    if extension_of(path.name) == ".csv":
        cases = list(_of_table(path))
    elif extension_of(path.name) == ".json":
        read = _kind(path)
        if read is None:
            raise ValueError(
                f"{option} {printable(str(path))} is not a list of volumes: expected the dataset.json of nnU-Net (with "
                "channel_names, training or dataset) or the pretrain_data.json of nnssl (with datasets)"
            )
        cases = list(read(path, _mapping(path)))
    else:
        return None
    if not cases:
        raise ValueError(f"{option} {printable(str(path))} lists no volumes")
    missing = [str(file) for case in cases for file in case.files if not file.exists()]
    if missing:
        files = sum(len(case.files) for case in cases)
        raise ValueError(
            f"{len(missing)} of the {files} files that {printable(str(path))} lists {verb(len(missing), 'do')} not "
            f"exist: {named(missing)}. "
            f"Relative paths begin at {printable(str(path.parent))}"
        )
    return Cases(sorted(cases))


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{printable(str(path))} cannot be read as JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _kind(path: Path) -> Callable[[Path, Mapping[str, Any]], Iterator[Case]] | None:
    """Return what reads a JSON file, None if it is no list of volumes."""
    value = _mapping(path)
    if isinstance(value.get("datasets"), dict):
        return _of_nnssl
    if isinstance(value.get("dataset"), dict):
        return _of_nnunet_table
    if isinstance(value.get("training"), list) and value["training"]:
        return _of_decathlon
    return _of_nnunet if "channel_names" in value or "modality" in value else None


def _of_nnunet(path: Path, value: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the volumes of imagesTr, channels by suffix."""
    folder = path.parent / IMAGES
    ending = str(value.get("file_ending", ".nii.gz"))
    if not folder.is_dir():
        raise ValueError(f"{printable(str(path))} is nnU-Net's, and there is no folder {IMAGES} beside it")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(ending))
    channels = value.get("channel_names") or value.get("modality") or {}
    yield from join_channels(folder, names, len(channels))


def _of_nnunet_table(path: Path, value: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the volumes of `dataset`, the files of each named."""
    for name, entry in value["dataset"].items():
        yield Case(str(name), tuple(_below(path, file) for file in entry["images"]))


def _of_decathlon(path: Path, value: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the volumes of `training`: a file each, of all channels, or nnU-Net's files of a channel each."""
    for entry in value["training"]:
        file = _below(path, entry["image"] if isinstance(entry, dict) else entry)
        channels = () if file.exists() else channels_of(file)
        yield Case(stem_of(file.name), channels) if channels else Case(file.name, (file,))


def channels_of(file: Path) -> tuple[Path, ...]:
    """Return nnU-Net's files of a channel each, `NAME_0000.nii.gz`..., of the volume that `NAME.nii.gz` stands for."""
    stem, extension = stem_of(file.name), extension_of(file.name)
    return tuple(sorted(file.parent.glob(f"{_literal(stem)}_[0-9][0-9][0-9][0-9]{extension}")))


def _literal(name: str) -> str:
    """Return a pattern of `glob` that finds a name itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _of_nnssl(path: Path, value: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the images of all sessions; a path may begin with an environment variable."""
    for data_set, entry in value["datasets"].items():
        for subject, sessions in entry["subjects"].items():
            for session, images in sessions["sessions"].items():
                for image in images["images"]:
                    name = f"{entry.get('name') or data_set}/{subject}/{session}/{image['name']}"
                    yield Case(name, (_below(path, _resolved(path, image["image_path"])),))


def _resolved(path: Path, file: str) -> str:
    """Return a path whose first part is replaced by the environment variable that it names.

    Raises:
        ValueError: if there is no such variable.
    """
    first, _, rest = file.partition("/")
    if not first.startswith("$"):
        return file
    variable = first[1:]
    if variable not in os.environ:
        raise ValueError(f"{printable(str(path))} names files by ${variable}, which is not set: export {variable}=...")
    return os.path.join(os.environ[variable], rest)


def _below(path: Path, file: str) -> Path:
    return path.parent / os.path.expanduser(file)


def _of_table(path: Path) -> Iterator[Case]:
    """Yield the volumes of a CSV file of rows `path[,path...]`, with or without headings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        rows = list(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator), start=1))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{printable(str(path))} cannot be read as a CSV file ({error}); save it in UTF-8") from error
    rows = [(number, [cell.strip() for cell in row]) for number, row in rows if any(cell.strip() for cell in row)]
    if rows and not any(_is_volume(path, cell) for cell in rows[0][1]):
        rows = rows[1:]  # headings
    width = len(rows[0][1]) if rows else 0
    for number, row in rows:
        where = f"{printable(str(path))}, line {number}"
        if len(row) != width or not all(row):
            raise ValueError(f"{where}: expected {width} paths, a column for each channel, got {separator.join(row)!r}")
        for cell in row:
            if not _is_volume(path, cell):
                raise ValueError(
                    f"{where}: expected the path of a volume, got {cell!r}; columns of anything else are to be removed"
                )
        files = tuple(_file(path, cell) for cell in row)
        yield Case(row[0], files if width > 1 else files_at(files[0]))


def _is_volume(path: Path, cell: str) -> bool:
    """Return whether a cell names a file of a volume, which need not exist, or a folder that does."""
    return extension_of(cell) in READABLE or _file(path, cell).is_dir() or is_dicom(_file(path, cell))


def _file(path: Path, cell: str) -> Path:
    return path.parent / os.path.expanduser(cell)


def files_at(file: Path) -> tuple[Path, ...]:
    """Return a file, or the DICOM files of a folder."""
    if file.is_dir() and extension_of(file.name) not in READABLE:
        return tuple(sorted(entry for entry in file.iterdir() if entry.is_file() and is_dicom(entry)))
    return (file,)
