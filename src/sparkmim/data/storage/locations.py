"""Files by path or by URL, and many of them in one pattern."""

from __future__ import annotations

import glob
import os
import re
from itertools import product
from pathlib import Path

from ...utils.text import verb

SEPARATOR = "://"

BRACES = re.compile(r"\{([^{}]*)\}")

RANGE = re.compile(r"(\d+)\.\.(\d+)")
"""What stands between the braces of a range of numbers; the first gives their digits."""

MOST_FILES = 1_000_000
"""Files that a pattern may name."""


def is_remote(location: str) -> bool:
    """Return whether a location is a URL, not a path."""
    return SEPARATOR in location


def absolute(location: str) -> str:
    """Return a path, or a pattern of paths, as an absolute one; a URL as it is."""
    return location if is_remote(location) else str(Path(location).expanduser().absolute())


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern stands for: `{0000..0012}` for each number, `{a,b}` for each text.

    Raises:
        ValueError: for braces without either in them, a range that runs backward, or too many names.
    """
    parts = BRACES.split(pattern)  # texts, and between them what stands in braces
    choices = [[part] if place % 2 == 0 else _choices(part, pattern) for place, part in enumerate(parts)]
    count = 1
    for options in choices:
        count *= len(options)
        if count > MOST_FILES:
            raise ValueError(f"{pattern} stands for more than {MOST_FILES:,} files; name fewer, larger ones")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    numbers = RANGE.fullmatch(inside)
    if numbers is None:
        if "," not in inside:
            raise ValueError(f"{pattern}: expected {{0000..0012}} or {{a,b}}, got {{{inside}}}")
        return inside.split(",")
    first, last, digits = int(numbers[1]), int(numbers[2]), len(numbers[1])
    if last < first:
        raise ValueError(f"{pattern}: the range {{{inside}}} runs backward; write the smaller number first")
    if last - first >= MOST_FILES:
        raise ValueError(f"{pattern} stands for more than {MOST_FILES:,} files; name fewer, larger ones")
    return [f"{number:0{digits}d}" for number in range(first, last + 1)]


def local_files(pattern: str, ending: str) -> list[str]:
    """Return the paths that a pattern, a path or a folder names; of a folder all files with an ending.

    Raises:
        ValueError: if one of those that braces name is missing, or there is none.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if file.name.endswith(ending) and file.is_file())
        if not found:
            raise ValueError(f"there is no {ending} file in the folder {path}")
        return found
    if path.is_file():
        return [str(path)]
    found = []
    for name in expand_braces(str(path)):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise ValueError(f"no file matches {name}")
        found += matches
    missing = [name for name in found if not os.path.isfile(name)]
    if missing:
        raise ValueError(missing_files(missing, len(found)))
    return found


def missing_files(missing: list[str], count: int) -> str:
    """Return the message for files that a pattern names and that are not there."""
    if count == 1:
        return f"there is no file {missing[0]}"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    shown = f"{', '.join(missing[:3])}{more}"
    return (
        f"{len(missing)} of the {count} files {verb(len(missing), 'are')} missing: {shown}; name those that there are"
    )
