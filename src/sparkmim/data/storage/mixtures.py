"""Read which sets of images are mixed, and with which weights."""

from __future__ import annotations

import math
from pathlib import Path

from ...utils.text import printable
from .locations import SEPARATOR

COMMENT = "#"
"""Begins a line that is passed over."""

LARGEST = 1000.0
"""Weight of a set, relative to the least one."""


def read_mixture(path: str) -> list[tuple[float, str]]:
    """Return the weights and addresses that a text file lists; relative paths are relative to its folder.

    Raises:
        ValueError: if it cannot be read, or a line is not a weight and an address.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list cannot be read ({getattr(error, 'strerror', None) or error})") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(COMMENT):
            continue
        first, *rest = line.split(None, 1)
        weight = _weight(first)
        if weight is None or not rest:
            raise ValueError(
                f"line {number} is {printable(line[:80])!r}; expected a weight above 0 and an address, such as 3 "
                "wds:///data/a/"
            )
        address = rest[0].strip()
        scheme, found, _ = address.partition(SEPARATOR)
        if found and scheme == "mix":
            raise ValueError(f"line {number}: a mixture cannot be part of another one; list its sets here, a line each")
        if found and ":" in scheme:
            raise ValueError(
                f"line {number}: {printable(scheme)}{SEPARATOR} cannot be part of a mixture, which is data and runs no "
                "code; name a class of your own by an entry point"
            )
        if not found:
            address = str(file.absolute().parent / Path(address).expanduser())
        entries.append((weight, address))
    if not entries:
        raise ValueError("the file lists no images; expected a weight and an address in each line")
    weights = [weight for weight, _ in entries]
    if max(weights) > LARGEST * min(weights):
        raise ValueError(f"the weights {min(weights):g} and {max(weights):g} are more than {LARGEST:g} times apart")
    return entries


def _weight(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def addresses_in(path: str) -> list[str]:
    """Return the addresses of a mixture; none if it cannot be read, which is said when it is opened."""
    try:
        return [address for _, address in read_mixture(path)]
    except ValueError:
        return []
