"""Images in a column of Parquet or Arrow files, in the form of Hugging Face's data sets."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.io import parse_json
from ..decoding.encoded import EncodedImage
from ..storage.fetched import FetchedFile
from ..storage.locations import is_remote, local_files
from ..storage.names import Names
from ..storage.reading import ask, open_remote
from .base import NamedImages, inside_of

LABELS = ("label", "labels", "class", "target", "fine_label")
"""Columns of classes, the first there is."""

CACHED = 2**28
"""Bytes of row groups that a process keeps, beside the last one."""

IMAGE_KIND = "Image"
"""Hugging Face's name of the feature."""


class Part(NamedTuple):
    """A row group of a Parquet file."""

    location: str
    group: int
    rows: int


class Columns(NamedImages):
    """Images in Parquet files, in the order of the files' names and of their rows.

    A row group is read as a whole, and kept until others take its place.

    Args:
        parts: the row groups.
        column: of the images: bytes, or a struct of `bytes` and `path`.
        names: of the images.
        labels: class of each, if there is a column of classes.
    """

    schemes = ("parquet",)

    def __init__(self, parts: Sequence[Part], column: str, names: Names, labels: list[str] | None) -> None:
        super().__init__(names)
        self.parts, self.column, self._labels = list(parts), column, labels
        self._ends = np.cumsum([part.rows for part in parts])
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Columns:
        """Open Parquet files: a path, a pattern, a folder or a URL; `#COLUMN` at the end names that of the images."""
        require_pyarrow()
        pattern, column = inside_of(rest)
        if not pattern:
            raise ValueError("expected a .parquet file, or a folder of them, after ://")
        return open_columns(find_tables(pattern), column)

    def open(self, index: int) -> EncodedImage:
        """Return the image, whose row group is read when it is decoded."""
        return FetchedFile(partial(self._read, index), self.name(index))

    def _read(self, index: int) -> bytes:
        number = int(np.searchsorted(self._ends, index, "right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        return image_bytes(self._group(number)[row].as_py())

    def _group(self, number: int) -> Any:
        """Return the column of images in a row group."""
        if self._process != os.getpid():
            self._forget()
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        part = self.parts[number]
        with open_table(part.location) as file:
            found = file.read_row_group(part.group, columns=[self.column]).column(self.column)
        self._groups[number] = found
        while len(self._groups) > 1 and sum(group.nbytes for group in self._groups.values()) > CACHED:
            self._groups.popitem(last=False)
        return found

    def class_names(self) -> list[str] | None:
        """Return the classes that a column says."""
        return self._labels


def image_bytes(value: Any) -> bytes:
    """Return the bytes of an image's file: a value itself, or its `bytes`, or those of the file at its `path`.

    Raises:
        OSError: if it holds none.
    """
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is None and path and not is_remote(path):
            return Path(path).read_bytes()
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise OSError("the row holds no image")
    return value


def require_pyarrow() -> None:
    """Raise unless pyarrow is installed.

    Raises:
        ValueError: naming the extra.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ValueError("Parquet files need pyarrow: pip install 'sparkmim[scale]'") from None


def find_tables(pattern: str) -> list[str]:
    """Return the paths or URLs of the Parquet files that a pattern stands for.

    Raises:
        ValueError: if there is none.
    """
    if not is_remote(pattern):
        return local_files(pattern, ".parquet")
    if not pattern.endswith("/"):
        return [pattern]
    scheme = pattern.partition("://")[0]
    found = sorted(str(name) for name in ask(pattern, "find") if str(name).endswith(".parquet"))
    if not found:
        raise ValueError(f"there is no .parquet file in {pattern}")
    return [name if is_remote(name) else f"{scheme}://{name.lstrip('/')}" for name in found]


def open_table(location: str) -> Any:
    """Return a Parquet file, to be closed."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        open_remote(location) if is_remote(location) else location, memory_map=not is_remote(location)
    )


def open_columns(locations: Sequence[str], column: str = "") -> Columns:
    """Return the images in Parquet files.

    Args:
        locations: paths or URLs.
        column: of the images; the only one that can hold images if empty.

    Raises:
        ValueError: if a file cannot be read, or has no such column.
    """
    parts: list[Part] = []
    paths: list[str] = []
    labels: list[str] = []
    kinds: set[str | None] = set()
    for location in locations:
        try:
            with open_table(location) as file:
                schema = file.schema_arrow
                chosen = image_column(schema, column or None)
                if column and chosen != column:
                    raise ValueError(f"there is no column {column!r}; there are {', '.join(schema.names)}")
                column = chosen
                label = next((name for name in LABELS if name in schema.names), None)
                kinds.add(label)
                parts += [
                    Part(location, group, file.metadata.row_group(group).num_rows)
                    for group in range(file.num_row_groups)
                ]
                paths += _paths(file, chosen, os.path.basename(location))
                if label is not None:
                    labels += class_texts(schema, label, file.read(columns=[label]).column(label))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{location} cannot be read as a Parquet file of images ({error})") from error
    if not paths:
        raise ValueError("the Parquet files have no rows")
    if len(kinds) > 1:
        raise ValueError(f"some of the {len(locations)} Parquet files have a column of classes, and others do not")
    return Columns(parts, column, unique_names(paths), labels or None)


def image_column(schema: Any, wanted: str | None = None) -> str:
    """Return the column of images: the one that is wanted, or the only one of Hugging Face's feature or of bytes.

    Raises:
        ValueError: if there is none, or several.
    """
    if wanted is not None:
        return wanted if wanted in schema.names else ""
    features = hugging_face_features(schema)
    declared = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == IMAGE_KIND]
    found = declared or [field.name for field in schema if _may_hold_images(field.type)]
    if len(found) != 1:
        raise ValueError(
            f"expected one column of images, got {', '.join(found) or 'none'} among {', '.join(schema.names)}; name it "
            "at the end of the address (#COLUMN)"
        )
    return found[0]


def hugging_face_features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's library has recorded of the columns."""
    recorded = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_json(recorded)["info"]["features"] if recorded else {}
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def class_texts(schema: Any, label: str, column: Any) -> list[str]:
    """Return classes as texts, by the names that are recorded for their numbers, if there are."""
    feature = hugging_face_features(schema).get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    values = column.to_pylist()
    if isinstance(names, list) and all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        return [str(names[value]) for value in values]
    if any(value is None for value in values):
        raise ValueError(f"rows without a class in the column {label!r}")
    return [str(value) for value in values]


def _may_hold_images(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _paths(file: Any, column: str, name: str) -> list[str]:
    """Return the path of each row, without reading the images; file and row where there is none."""
    import pyarrow

    kind = file.schema_arrow.field(column).type
    rows = file.metadata.num_rows
    numbered = [f"{name}#{row}" for row in range(rows)]
    if not pyarrow.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return numbered
    found = file.read(columns=[f"{column}.path"]).column(column).to_pylist()
    paths = [None if value is None else value["path"] for value in found]
    return [path or other for path, other in zip(paths, numbered, strict=True)]


def unique_names(paths: list[str]) -> Names:
    """Return paths as names; with their places before them if some are equal."""
    if len(set(paths)) == len(paths):
        return Names.of(paths)
    return Names.of(f"{place}/{path}" for place, path in enumerate(paths))
