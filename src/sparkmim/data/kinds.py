"""Tell what an address holds: images, signals, volumes or clips.

An address may say so (`signals://`, `volumes://`, `clips://`). Else the files of the folder decide, and where they may
be several things, such as arrays, the number of axes of the network does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Literal

from ..utils.text import printable
from .clips.opening import SCHEME as CLIPS
from .clips.reading import VIDEOS
from .decoding.images import image_extensions
from .signals.opening import SCHEME as SIGNALS
from .signals.reading import ARRAYS, SOUND, TABLES, extension_of
from .sources.folder import walk
from .volumes.opening import SCHEME as VOLUMES
from .volumes.opening import are_volumes

Kind = Literal["images", "signals", "volumes", "clips"]

SCHEMES: dict[str, Kind] = {SIGNALS: "signals", VOLUMES: "volumes", CLIPS: "clips"}

AXES: dict[Kind, int] = {"images": 2, "signals": 1, "volumes": 3, "clips": 3}
"""Spatial axes of a network for each kind; those of clips are time, height and width."""

LOOKED_AT = 20_000
"""Files that are looked at to tell what a folder holds."""


def kind_of(
    address: str | Path | None,
    axes: Callable[[], int] | None = None,
    option: str = "--data",
    likely: Kind | None = None,
) -> Kind:
    """Return what an address holds.

    Args:
        address: a folder, a file, or SCHEME://...; the built-in photographs if None.
        axes: returns the number of axes of the network; called only where files may be several things. None if there
            is no network: arrays are images then, as pictures are, and tables signals.
        option: that named the address, for messages.
        likely: what arrays are for a network of three axes.

    Raises:
        ValueError: if a folder of arrays may hold volumes or clips.
    """
    if address is None:
        return "images"
    for scheme, kind in SCHEMES.items():
        if str(address).startswith(scheme):
            return kind
    path = Path(address).expanduser()
    if "://" in str(address) or not path.exists():
        return "images"
    if are_volumes(path):
        return "volumes"
    found = _contents(path)
    pictured = found & {"pictures", "frames"}
    if not pictured and "videos" in found and ("sound" not in found or (axes is not None and axes() == 3)):
        return "clips"
    if not pictured and "sound" in found:
        return "signals"
    if axes is None or not found:
        return "signals" if found == {"tables"} else "images"
    dims = axes()
    if dims == 1 and found - pictured:
        return "signals"
    if dims != 3 or "pictures" in found:
        return "images"
    if "frames" in found or "videos" in found:
        return "clips"
    if likely is None and "arrays" in found:
        raise ValueError(
            f"{option} {printable(str(path))} holds arrays, which may be volumes or clips; write "
            f"{VOLUMES}{path} or {CLIPS}{path}"
        )
    return likely or "images"


def _contents(path: Path) -> set[str]:
    """Return which kinds of files a folder holds, or what kind a file is.

    They are sound, videos, tables, arrays, pictures of the folder itself, and frames: pictures of folders below it.
    """
    pictured = image_extensions() - {*ARRAYS}
    kinds = {
        "sound": frozenset(SOUND),
        "videos": VIDEOS - pictured,
        "tables": frozenset(TABLES),
        "arrays": frozenset(ARRAYS),
    }
    files: list[tuple[str, str]] = [] if path.is_dir() else [("", path.name)]
    if path.is_dir():
        for below, entry in islice(walk(path), LOOKED_AT):
            files.append((below, entry.name))
    found = set()
    for below, name in files:
        extension = extension_of(name)
        if extension in pictured:
            found.add("frames" if below else "pictures")
        else:
            found |= {kind for kind, known in kinds.items() if extension in known}
    return found
