"""The classes of a segmentation: names, values in masks, colors."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.io import parse_json
from ...utils.text import counted, printable
from ..tables import SEPARATORS, named

IGNORED = 255
"""Number of pixels that belong to no class, among numbers of classes (uint8)."""

MOST_CLASSES = 255

LARGEST_VALUE = 65_535
"""Of masks of indices."""

LONGEST_NUMBER = 9
"""Digits of an index or a color; Python refuses to read thousands."""

BACKGROUND = "background"
"""Name, in any case, of the class that is left out of mean Dice: nnU-Net's."""

HEADINGS = {"name", "class", "label", "index", "value", "id", "color", "colour", "r", "g", "b"}

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes, in the order of their numbers.

    Attributes:
        names: of the classes.
        values: by which masks hold them.
        colors: of each, for masks in color and for pictures.
        ignore: value of pixels of no class; -1 for none.
        colored: masks may be in the colors, which the user has given.
        ignored_colors: of pixels of no class, in masks in color.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[Color, ...]
    ignore: int = IGNORED
    colored: bool = False
    ignored_colors: tuple[Color, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background(self) -> int | None:
        """Return the number of the class called background, None if there is none."""
        found = [number for number, name in enumerate(self.names) if name.casefold() == BACKGROUND]
        return found[0] if found else None

    def numbers_of(self, values: np.ndarray) -> np.ndarray:
        """Return the number of the class of each value, uint8; :data:`IGNORED` for those of none.

        Args:
            values: integers from 0 to :data:`LARGEST_VALUE`, all of them in the table.
        """
        table = np.full(LARGEST_VALUE + 1, IGNORED, np.uint8)
        table[list(self.values)] = np.arange(len(self))
        found: np.ndarray = table[values]
        return found

    def values_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the masks' own values of numbers of classes: uint8 if they fit, else uint16."""
        kind = np.uint8 if max(self.values) < 256 else np.uint16
        found: np.ndarray = np.array(self.values, kind)[numbers]
        return found

    def require_known(self, counts: Mapping[int, int], path: Path, what: str, unit: str) -> None:
        """Raise for values that are neither in the table nor ignored.

        Args:
            counts: how often each value occurs.
            path: of the file.
            what: it is called: a mask, a label map.
            unit: what has a value: pixels, voxels.

        Raises:
            ValueError: naming the file, the values, and the remedy.
        """
        strange = sorted(set(counts) - set(self.values) - {self.ignore})
        if strange:
            shown = ", ".join(f"{value} ({counts[value]} {unit})" for value in strange[:4])
            raise ValueError(
                f"the {what} {printable(str(path))} has values that are not among the classes: {shown}; expected "
                f"{', '.join(map(str, self.values[:8]))}{'...' * (len(self) > 8)} or {self.ignore}, which is ignored. "
                f"Add them to --classes FILE, mend the {what}, or name the value to ignore by --ignore-index"
            )

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {
            "classes": list(self.names),
            "values": list(self.values),
            "colors": [list(color) for color in self.colors],
            "ignore_index": self.ignore,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassTable:
        """Build the table that a model's file records.

        Raises:
            ValueError: if it records none.
        """
        try:
            names, values = tuple(map(str, value["classes"])), tuple(map(int, value["values"]))
            colors: Any = tuple(tuple(map(int, color)) for color in value["colors"])
            sound = len(names) == len(values) == len(colors) and all(len(color) == 3 for color in colors)
            if not sound or not all(0 <= v <= LARGEST_VALUE for v in values):
                raise ValueError("its numbers do not fit each other")
            return cls(names, values, colors, int(value["ignore_index"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the file does not record the classes of a segmentation ({error})") from error


def table_of(values: Sequence[int], ignore: int, *, volumes: bool = False) -> ClassTable:
    """Return the table of classes that are known by their values alone; that of 0 is the background of volumes."""
    names = tuple(BACKGROUND if volumes and value == 0 else str(value) for value in values)
    return ClassTable(names, tuple(values), tuple(default_color(v) for v in values), ignore)


def default_color(value: int) -> Color:
    """Return a color for an index: black for 0, bright ones whose hues lie far apart for those that follow."""
    if value == 0:
        return 0, 0, 0
    hue = value * 0.618034 % 1  # the golden ratio: any number of hues is spread
    red, green, blue = hsv_to_rgb(hue, 0.8, (1.0, 0.75)[value // 8 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def read_classes(path: str | Path, ignore: int) -> ClassTable:
    """Read a table of classes.

    Rows of a CSV file are `name,index`, `name,index,color` or `name,color`, with or without headings (`name`, `index`,
    `color`, or `r`, `g`, `b`); colors are `#rrggbb` or three numbers, in one cell or in three. Indices that are not
    given count from 0. Of nnU-Net's `dataset.json` the `labels` are read.

    Raises:
        ValueError: naming the file, the line, and what is wrong.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file {printable(str(file))}; see --classes")
    try:
        text = file.read_bytes().decode("utf-8-sig")
        rows = _of_json(file, text) if file.suffix.lower() == ".json" else _of_csv(file, text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({error}); save it as CSV or JSON, encoded in UTF-8") from error
    return _checked(file, rows, ignore)


def _of_json(file: Path, text: str) -> list[tuple[str, int, Color | None]]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); save it anew") from error
    labels = value.get("labels") if isinstance(value, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{file} has no labels, as nnU-Net's dataset.json has; --classes takes that or a CSV file")
    if all(key.isdecimal() for key in labels):  # of the Decathlon: from values to names
        return [(str(name), _index(file, None, key), None) for key, name in labels.items()]
    odd = [name for name, index in labels.items() if isinstance(index, bool) or not isinstance(index, int)]
    if odd:
        raise ValueError(
            f"{file}: {named(odd)} stand for several values (regions of nnU-Net), and a pixel has one class here; list "
            "the classes in a CSV file of rows `name,index`"
        )
    return [(name, _index(file, None, str(i)), None) for name, i in labels.items() if name.casefold() != "ignore"]


def _of_csv(file: Path, text: str) -> list[tuple[str, int, Color | None]]:
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    lines = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator), start=1)
    rows = [(number, [cell.strip() for cell in row]) for number, row in lines if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{file} lists no classes; expected rows `name,index` or `name,index,color`")
    heads = [cell.casefold() for cell in rows[0][1]]
    headed = len(heads) > 1 and {"name", "class", "label"} & set(heads) and set(heads) <= HEADINGS
    if headed:
        return [_headed(file, number, heads, row, place) for place, (number, row) in enumerate(rows[1:])]
    return [_row(file, number, row, place) for place, (number, row) in enumerate(rows)]


def _headed(
    file: Path, line: int, heads: Sequence[str], row: Sequence[str], place: int
) -> tuple[str, int, Color | None]:
    cells = dict(zip(heads, row, strict=False))
    if len(row) != len(heads):
        raise ValueError(f"{file}, line {line}: expected {len(heads)} columns ({', '.join(heads)}), got {len(row)}")
    name = next(cells[head] for head in ("name", "class", "label") if head in cells)
    index = next((cells[head] for head in ("index", "value", "id") if head in cells), str(place))
    color = cells.get("color", cells.get("colour"))
    if {"r", "g", "b"} <= cells.keys():
        color = f"{cells['r']} {cells['g']} {cells['b']}"
    return name, _index(file, line, index), None if color is None else _color(file, line, color)


def _row(file: Path, line: int, row: Sequence[str], place: int) -> tuple[str, int, Color | None]:
    name, *rest = row
    if len(rest) == 1 and not rest[0].isdecimal():
        return name, place, _color(file, line, rest[0])
    if len(rest) == 3:
        return name, place, _color(file, line, " ".join(rest))
    if not 1 <= len(rest) <= 4 or len(rest) == 3:
        raise ValueError(f"{file}, line {line}: expected `name,index` or `name,index,color`, got {', '.join(row)!r}")
    color = None if len(rest) == 1 else _color(file, line, " ".join(rest[1:]))
    return name, _index(file, line, rest[0]), color


def _index(file: Path, line: int | None, cell: str) -> int:
    if not cell.isdecimal() or len(cell) > LONGEST_NUMBER or int(cell) > LARGEST_VALUE:
        where = str(file) if line is None else f"{file}, line {line}"
        raise ValueError(f"{where}: expected an index from 0 to {LARGEST_VALUE}, got {cell[:80]!r}")
    return int(cell)


def _color(file: Path, line: int, cell: str) -> Color:
    if re.fullmatch(r"#[0-9a-fA-F]{6}", cell):
        red, green, blue = bytes.fromhex(cell[1:])
        return red, green, blue
    parts = re.findall(r"\d+", cell)
    numbers = [int(part) for part in parts if len(part) <= LONGEST_NUMBER]
    if len(parts) != 3 or len(numbers) != 3 or max(numbers) > 255:
        raise ValueError(f"{file}, line {line}: expected a color as #rrggbb or three numbers to 255, got {cell[:80]!r}")
    return numbers[0], numbers[1], numbers[2]


def _checked(file: Path, rows: Sequence[tuple[str, int, Color | None]], ignore: int) -> ClassTable:
    """Return the table of rows, without that of the ignored value."""
    for what, values in (("names", [row[0] for row in rows]), ("indices", [str(row[1]) for row in rows])):
        twice = sorted(value for value, count in Counter(values).items() if count > 1)
        if twice:
            raise ValueError(f"{file} lists {what} more than once: {named(twice)}; give each class its own")
    given = [row[2] for row in rows]
    if any(color is None for color in given) and any(color is not None for color in given):
        lacking = [name for name, _, color in rows if color is None]
        raise ValueError(f"{file} gives some classes a color, and none to {named(lacking)}; give all a color, or none")
    shown = [color for color in given if color is not None]
    alike = sorted(str(color) for color, count in Counter(shown).items() if count > 1)
    if alike:
        raise ValueError(f"{file} gives several classes the color {named(alike)}; give each class its own")
    kept = sorted((row for row in rows if row[1] != ignore), key=lambda row: row[1])
    if len(kept) < 2:
        listed = counted(len(kept), "class", "classes")
        raise ValueError(f"{file} lists {listed} beside the ignored index {ignore}; expected at least two")
    if len(kept) > MOST_CLASSES:
        raise ValueError(f"{file} lists {len(kept)} classes; at most {MOST_CLASSES} can be told apart")
    colors = tuple(default_color(index) if color is None else color for _, index, color in kept)
    return ClassTable(
        tuple(name for name, _, _ in kept),
        tuple(index for _, index, _ in kept),
        colors,
        ignore,
        bool(shown),
        tuple(color for _, index, color in rows if index == ignore and color is not None),
    )
