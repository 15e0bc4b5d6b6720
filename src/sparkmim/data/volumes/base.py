"""A volume before it is read: its name and its files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...utils.text import printable, verb
from .extensions import extension_of, stem_of

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Names of nnU-Net: a case and the number of a channel."""

MOST_CHANNEL_FILES = 16
"""Most files of a case that are taken for its channels."""


class Case(NamedTuple):
    """A volume, unread.

    Attributes:
        name: unique, and the same in every run.
        files: its channels, a file each; or its only file; or the slices of a DICOM series.
    """

    name: str
    files: tuple[Path, ...]


class Cases(list[Case]):
    """Volumes that were found.

    Attributes:
        skipped: files and folders that were passed over, each with the reason.
    """

    def __init__(self, cases: Iterable[Case], skipped: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(cases)
        self.skipped = list(skipped)


def join_channels(root: Path, names: Sequence[str], channels: int | None = None) -> list[Case]:
    """Join files `NAME_0000`, `NAME_0001`... to volumes of several channels.

    Args:
        root: folder of the files.
        names: paths below it.
        channels: number of channels of each volume. None to take it from the files: they are volumes of their own if
            there is no number 0000, a single name or more than 16 numbers, so that numbers tell volumes apart.

    Raises:
        ValueError: if a volume lacks channels that others have.
    """
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    single: list[Case] = []
    for name in names:
        match = CHANNEL.fullmatch(stem_of(name))
        if match:
            groups[match[1] + extension_of(name)][int(match[2])] = name
        else:
            single.append(Case(name, (root / name,)))
    count = max((len(group) for group in groups.values()), default=0) if channels is None else channels
    by_volume = len(groups) < 2 or count > MOST_CHANNEL_FILES or not any(0 in group for group in groups.values())
    if channels is None and by_volume:
        return [Case(name, (root / name,)) for name in names]
    expected = set(range(count))
    odd = sorted(key for key, group in groups.items() if set(group) != expected)
    if odd:
        there = set(groups[odd[0]])
        lacks, wrong = bool(expected - there), sorted(expected - there or there - expected)
        raise ValueError(
            f"{len(odd)} of {len(groups)} volumes {verb(len(odd), 'have')} other channels than the {count} expected: "
            f"{printable(stem_of(odd[0]))} {'lacks' if lacks else 'has as well'} "
            f"{', '.join(f'{number:04d}' for number in wrong)}. Add or remove files, or list the volumes in a CSV file "
            "of rows `path[,path...]`"
        )
    for key, group in groups.items():
        name = group[0] if channels is None and count == 1 else stem_of(key)
        single.append(Case(name, tuple(root / group[number] for number in sorted(group))))
    return single
