"""Signals in CSV files: a column for each channel, a heading if there is one, and the time if a column holds it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..decoding.encoded import UnreadableImage
from ..tables import LONGEST, SEPARATORS, named

SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds of each unit that a heading may name."""

_UNITS = {
    "h": "h|hours?",
    "min": "min|minutes?",
    "s": "s|secs?|seconds?",
    "ms": "ms|msecs?|milliseconds?",
    "us": "us|µs|μs|microseconds?",
    "ns": "ns|nanoseconds?",
}
_UNIT = "|".join(_UNITS.values())

TIME = re.compile(
    rf"(?:(?:elapsed[ _]?)?time(?:[ _]?stamp)?|t)(?:[ _]+(?:{_UNIT})|[ _]*[\[(](?:{_UNIT})[\])])?"
    "|secs?|(?:milli|micro)?seconds?|ms"
)
"""Headings of the column of the time, in lower case."""

COUNTED = {"", "index", "sample", "samples", "sample #", "sample number", "unnamed: 0"}
"""Headings of a column that counts the samples, in lower case."""

EPOCH = {1e17: "ns", 1e14: "us", 1e11: "ms"}
"""Times since 1970 from which on they can only be in that unit."""


class Columns(NamedTuple):
    """The numbers of a CSV file.

    Attributes:
        values: `(samples, C)`.
        rate: samples a second, None if no column holds the time.
    """

    values: np.ndarray
    rate: float | None


def read_columns(path: Path, time_column: str | None) -> Columns:
    """Read a CSV file in UTF-8 with a row for each sample.

    Columns are separated by commas, semicolons, tabs or spaces; lines that begin with # are passed over. A first row
    that is not of numbers names the columns. One that counts the samples is left out.

    Args:
        path: the file.
        time_column: heading of the column of the time; if None the one that :data:`TIME` fits, if there is one.

    Raises:
        UnreadableImage: if it is not of numbers, or its samples are not equally far apart in time.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableImage(f"it is not a text in UTF-8 ({error}); save it as one") from error
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise UnreadableImage("the file is empty")
    separator = next((mark for mark in SEPARATORS if mark in numbered[0][1]), None)
    comma = separator in (";", "\t") and "," in numbered[-1][1]  # decimals, as they are written in many countries
    plain = [(number, line.replace(",", ".") if comma else line) for number, line in numbered]
    names = not all(map(_is_number, _cells(plain[0][1], separator)))
    headings = [cell.strip("'") for cell in _cells(numbered[0][1], separator)] if names else []
    rows = plain[names:]
    if not rows:
        raise UnreadableImage("it names its columns, and holds no numbers")
    try:
        lines = io.StringIO("\n".join(line for _, line in rows))
        values = np.loadtxt(lines, delimiter=separator, ndmin=2, quotechar='"')
    except ValueError as error:
        raise UnreadableImage(_first_fault(rows, separator) or str(error)) from error
    if headings and len(headings) != values.shape[1]:
        raise UnreadableImage(f"its first row names {len(headings)} columns, and it has {values.shape[1]}")
    place = _place_of_time(headings, time_column)
    rate = None if place is None else _rate(values[:, place], headings[place])
    left = [
        column
        for column in range(values.shape[1])
        if column != place and not (headings and _counts(headings[column], values[:, column]))
    ]
    if not left:
        raise UnreadableImage(f"no column is left for a channel beside {named(headings)}")
    return Columns(values[:, left], rate)


def _cells(line: str, separator: str | None) -> list[str]:
    cells = next(csv.reader([line], delimiter=separator)) if separator else line.split()
    return [cell.strip() for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first_fault(rows: Sequence[tuple[int, str]], separator: str | None) -> str | None:
    """Return what is wrong with the first row that is not of as many numbers as the first of all."""
    width = len(_cells(rows[0][1], separator))
    for number, line in rows:
        cells = _cells(line, separator)
        if len(cells) != width:
            return f"line {number}: expected {width} columns, got {len(cells)}"
        odd = next((cell for cell in cells if not _is_number(cell)), None)
        if odd is not None:
            got = repr(odd[:LONGEST]) if odd else "nothing"
            return f"line {number}: expected a number, got {got}; fill or remove what is no number"
    return None


def _place_of_time(headings: Sequence[str], wanted: str | None) -> int | None:
    if wanted is not None:
        if wanted not in headings:
            there = f"its columns are {named(headings)}" if headings else "its columns have no names"
            raise UnreadableImage(f"it has no column {wanted!r} (--time-column): {there}")
        return headings.index(wanted)
    found = [place for place, heading in enumerate(headings) if TIME.fullmatch(heading.lower())]
    if len(found) > 1:
        raise UnreadableImage(
            f"several columns may hold the time, {named([headings[place] for place in found])}; name one by "
            "--time-column, and remove the others"
        )
    return found[0] if found else None


def _rate(times: np.ndarray, heading: str) -> float:
    """Return the samples a second of equally distant times.

    Raises:
        UnreadableImage: if a time is further from its place than the distance of two samples.
    """
    count = len(times)
    step = (times[-1] - times[0]) / (count - 1) if count > 1 else 0.0
    if not (np.isfinite(times).all() and step > 0):
        raise UnreadableImage(f"the times of its column {heading!r} do not increase")
    away = np.abs(times - (times[0] + step * np.arange(count)))
    if away.max() > step:
        raise UnreadableImage(
            f"its samples are not equally far apart: the time of sample {int(away.argmax())} of column {heading!r} is "
            f"{away.max() / step:.3g} samples from its place; resample the file to one rate, or cut it at gaps"
        )
    return 1 / (step * SECONDS[_unit(heading, float(times[0]))])


def _unit(heading: str, first: float) -> str:
    """Return the unit of times, as a heading says; of times since 1970 as their size tells; else seconds."""
    words = re.split(r"[\s_\[\]()]+", heading.lower())
    for word in reversed([word for word in words if word]):
        for unit, names in _UNITS.items():
            if re.fullmatch(names, word):
                return unit
    return next((unit for least, unit in EPOCH.items() if first >= least), "s")


def _counts(heading: str, values: np.ndarray) -> bool:
    """Return whether a column counts the samples, from 0 or 1."""
    return heading.lower() in COUNTED and bool((np.diff(values) == 1).all()) and values[0] in (0, 1)
