"""Read the paths and classes of images from a CSV file, whatever its separator, headings and columns."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.text import printable, verb

SEPARATORS = (",", ";", "\t")
"""Separators of columns, the first that fits."""

PATHS = {"image", "file", "path", "filename", "filepath", "file_name", "file_path"}
"""Headings of the column of paths, in lower case."""

CLASSES = {"label", "class", "target"}
"""Headings of the column of classes."""

SPLIT = {"split", "fold"}
"""Headings of the column that says which split an image belongs to."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What such a column may hold, in lower case, and what it stands for."""

SHOWN = 4
"""Most names that a message lists."""

LONGEST = 200
"""Characters of a name that a message shows."""


class Table(NamedTuple):
    """Images listed in a CSV file.

    Attributes:
        names: paths, relative to the file's folder unless they lie outside of it.
        classes: class of each.
        splits: split of each, of :data:`SPLIT_NAMES`; None without such a column.
    """

    names: list[str]
    classes: list[str]
    splits: list[str] | None

    def of_split(self, split: str) -> Table:
        """Return the rows of one split."""
        assert self.splits is not None
        rows = [row for row in zip(self.names, self.classes, self.splits, strict=True) if row[2] == split]
        return Table([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


class Columns(NamedTuple):
    """Places of the columns, and whether the first row names them."""

    path: int = 0
    label: int = 1
    split: int | None = None
    header: bool = False


def read_table(file: Path, is_image: Callable[[Path], bool] = Path.is_file) -> Table:
    """Read a CSV file in UTF-8 of rows `path,class`.

    Columns are separated by commas, semicolons or tabs. A first row may name them, by the words above; then there may
    be others, which are passed over, and one that names splits. Spaces around values are trimmed.

    Args:
        file: the table.
        is_image: whether a path is of an image.

    Raises:
        ValueError: if the file is none, rows are incomplete, files are missing or listed twice.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")  # line ends within quotes belong to names
        separator, columns = _layout(text, file.parent, is_image)
        rows = [(number, row) for number, row in _rows(text, separator) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a CSV file ({error}); save it as one, encoded in UTF-8") from error
    width = len(rows[0][1]) if rows and columns.header else 2
    rows = rows[columns.header :]
    if not rows:
        raise ValueError(f"{file} lists no images; expected rows `path,class`")
    for number, row in rows:
        if len(row) != width or not row[columns.path].strip() or not row[columns.label].strip():
            expected = "`path,class`" if width == 2 else f"{width} columns"
            raise ValueError(f"{file}, line {number}: expected {expected}, got {separator.join(row)!r}")
    names = [_name(row[columns.path], file.parent, is_image) for _, row in rows]
    missing = [name for name in names if not _holds(is_image, file.parent / name)]
    if missing:
        there = any(_holds(Path.exists, file.parent / name) for name in missing)
        odd = ", or not as files" if there else ""
        first = missing[0] == names[0] and not columns.header
        header = "; the first row is taken as a header if it is `path,class`, `filename,label` or the like"
        raise ValueError(
            f"{len(missing)} of the {len(names)} images of {file} {verb(len(missing), 'do')} not exist{odd}: "
            f"{named(missing)}. Paths are "
            f"relative to {file.parent}{header * first}"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{file} lists images more than once: {named(sorted(twice))}")
    return Table(names, [row[columns.label].strip() for _, row in rows], _splits(file, rows, columns.split))


def shown(name: str) -> str:
    """Return a name on one line, and no more of it than is read."""
    return printable(name[:LONGEST])


def named(names: Sequence[str]) -> str:
    """Return the first few of some names as text, each on one line."""
    return ", ".join(map(shown, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _holds(condition: Callable[[Path], bool], path: Path) -> bool:
    """Return whether a condition on files holds; false for a name that no file can have."""
    try:
        return condition(path)
    except (OSError, ValueError):  # longer than names can be, or with a zero in it
        return False


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    return list(enumerate(csv.reader(_lines(text), delimiter=separator), start=1))


def _lines(text: str) -> io.StringIO:
    """Iterate over lines that end as files do everywhere, not at the other line ends of Unicode."""
    return io.StringIO(text, newline="")


def _layout(text: str, folder: Path, is_image: Callable[[Path], bool]) -> tuple[str, Columns]:
    """Return the separator and the columns: as the headings tell, else as fits the first row, else as `path,class`."""
    first = next((line for line in _lines(text) if line.strip()), "")
    rows = {separator: next(csv.reader([first], delimiter=separator), []) for separator in SEPARATORS}
    for separator, row in rows.items():
        columns = _headings(row, folder, is_image)
        if columns is not None:
            return separator, columns
    for separator, row in rows.items():
        if len(row) == 2 and _holds(is_image, folder / _name(row[0], folder, is_image)):
            return separator, Columns()
    return next((separator for separator, row in rows.items() if len(row) == 2), SEPARATORS[0]), Columns()


def _headings(row: Sequence[str], folder: Path, is_image: Callable[[Path], bool]) -> Columns | None:
    """Return the columns that a row of headings names; None if it is not one."""
    words = [cell.strip().lower() for cell in row]
    places = {kind: [place for place, word in enumerate(words) if word in kinds] for kind, kinds in _KINDS.items()}
    if len(places["label"]) != 1 or len(row) < 2:
        return None
    label = places["label"][0]
    path = places["path"][0] if places["path"] else (1 - label if len(row) == 2 else None)
    if path is None or path == label or _holds(is_image, folder / _name(row[path], folder, is_image)):
        return None
    return Columns(path, label, places["split"][0] if places["split"] else None, header=True)


_KINDS = {"path": PATHS, "label": CLASSES, "split": SPLIT}


def _name(cell: str, folder: Path, is_image: Callable[[Path], bool]) -> str:
    """Return a path in one spelling, so that `./a.png` is `a.png`; relative if it lies in the folder."""
    if not _holds(is_image, folder / cell):
        cell = cell.strip()
    name = os.path.normpath(cell) if cell else cell
    inside = os.path.isabs(name) and Path(name).is_relative_to(folder.absolute())
    return os.path.relpath(name, folder.absolute()) if inside else name


def _splits(file: Path, rows: Sequence[tuple[int, list[str]]], column: int | None) -> list[str] | None:
    if column is None:
        return None
    found = []
    for number, row in rows:
        split = SPLIT_NAMES.get(row[column].strip().lower())
        if split is None:
            raise ValueError(
                f"{file}, line {number}: expected a split ({', '.join(dict.fromkeys(SPLIT_NAMES.values()))}), got "
                f"{row[column]!r}; name the column otherwise to pass over it (--folds makes folds of its own)"
            )
        found.append(split)
    return found
