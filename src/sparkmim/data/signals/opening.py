"""Find the signals at an address and open them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ...utils.logging import log
from ...utils.text import printable
from ..sources.folder import path_at, walk
from .reading import READABLE, TABLES, extension_of
from .settings import SignalSettings
from .source import SignalPreparation, Signals, as_learned, prepare_signals, survey_signals

SCHEME = "signals://"
"""Begins an address of signals whose files may be something else too, as arrays are."""


def find_signals(address: str | Path, option: str = "--data") -> tuple[Path, list[str]]:
    """Find the files of signals below a folder, nested or not, or the one that is named.

    Tables beside arrays or sound are passed over: they are lists or labels.

    Returns:
        The folder, and the paths below it in alphabetical order.

    Raises:
        ValueError: if there is none, with what there is instead.
    """
    root = path_at(address, SCHEME, option)
    shown = printable(str(root))
    expected = ", ".join(sorted(READABLE))
    if not root.is_dir():
        if extension_of(root.name) not in READABLE:
            raise ValueError(f"{option} {shown} is not a file of a signal; expected {expected}, or a folder of them")
        return root.parent, [root.name]
    names: list[str] = []
    others: Counter[str] = Counter()
    for below, entry in walk(root):
        extension = extension_of(entry.name)
        if extension in READABLE and (entry.is_file() or not os.path.exists(entry.path)):
            names.append(below + entry.name)
        else:
            others[extension or "no extension"] += 1
    tables = [name for name in names if extension_of(name) in TABLES]
    if tables and len(tables) < len(names):
        names = sorted(set(names) - set(tables))
        log.warning(f"passed over {len(tables)} tables of {shown}, which holds arrays or sound: {printable(tables[0])}")
    if not names:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
        raise ValueError(f"no signal in {shown}: it holds {found or 'no file'}; expected {expected}")
    return root, sorted(names)


def open_signals(
    address: str | Path,
    how: SignalSettings | SignalPreparation,
    channels: int | None = None,
    option: str = "--data",
) -> Signals:
    """Open the signals at an address.

    Args:
        address: a folder or a file.
        how: settings; or what was done to the signals that a network has learned from, which is done to these too.
        channels: of the network; if None those that most signals have.
        option: that named the address, for messages.

    Raises:
        ValueError: if there are none, or they cannot be brought to one rate.
    """
    root, names = find_signals(address, option)
    try:
        survey = survey_signals(root, names, how, channels)
        preparation = as_learned(how) if isinstance(how, SignalPreparation) else prepare_signals(how, survey)
    except ValueError as error:
        raise ValueError(f"{option} {printable(str(root))}: {error}") from error
    return Signals(root, names, preparation, survey.usual_channels if channels is None else channels, survey)
