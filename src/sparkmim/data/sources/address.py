"""Open image sources by address: a folder, or `scheme://rest`."""

from __future__ import annotations

import copyreg
import pkgutil
import re
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ...utils.specs import absolute_spec, load_object
from ..storage.locations import absolute, is_remote
from ..storage.mixtures import addresses_in
from .base import ImageSource, inside_of
from .folder import Files, find_images
from .servers import Remote

SEPARATOR = "://"

AS_CLASSES = "/."
"""End of a folder's name that says that all folders in it are classes, whatever their names."""

BUILTIN = f"builtin{SEPARATOR}"
"""Address of the built-in photographs."""

OF_FILES = ("list", "mix", "parquet", "wds", "zip")
"""Schemes that a path or a URL follows."""

GROUP = "sparkmim.sources"
"""Entry points of installed packages: the name is the scheme, the value an :class:`ImageSource` subclass."""


def open_source(address: str | Path | None, settings: Any = None, option: str = "--data") -> ImageSource:
    """Open the images at an address.

    Args:
        address: a folder; `scheme://rest`, with a scheme of a class in this package or of an entry point in the group
            `sparkmim.sources`; `FILE.py:CLASS://rest` or `MODULE:CLASS://rest`; the built-in photographs if None.
        settings: an instance of the class's `settings_type`; its defaults if not given.
        option: the command-line option that named the address, for messages.

    Raises:
        ValueError: if the scheme is unknown, or there is no image at the address.
    """
    address = BUILTIN if address is None else str(address)
    kind = source_type(address, option)
    if kind.settings_type is not None and settings is None:
        settings = kind.settings_type()
    if not isinstance(settings, kind.settings_type or type(None)):
        expected = "no settings" if kind.settings_type is None else f"settings of type {kind.settings_type.__name__}"
        raise ValueError(f"{option} {address}: expected {expected}, got {type(settings).__name__}")
    _, found, rest = address.partition(SEPARATOR)
    if not found:
        return find_images(address, option)
    try:
        return kind.from_address(rest, settings)
    except ValueError as error:
        raise ValueError(f"{option} {address}: {error}") from error


def source_type(address: str | Path | None, option: str = "--data") -> type[ImageSource]:
    """Return the class that opens an address, without opening it.

    Raises:
        ValueError: if the scheme is unknown, or names something else than a subclass of :class:`ImageSource`.
    """
    address = BUILTIN if address is None else str(address)
    scheme, found, _ = address.partition(SEPARATOR)
    if not found:
        return Files
    kind: Any
    if ":" in scheme:
        kind = load_object(scheme, "class")
    else:
        classes, plugins = _classes(), {point.name: point for point in entry_points(group=GROUP)}
        known = sorted({*classes, *plugins})
        if scheme not in known:
            close = "".join(f"; did you mean {name}{SEPARATOR}" for name in get_close_matches(scheme, known, n=1))
            raise ValueError(
                f"{option} {address}: unknown scheme {scheme!r}{close}. Known schemes: {', '.join(known)}. Write "
                f"FILE.py:CLASS{SEPARATOR}... for a class of your own, and a folder without {SEPARATOR}"
            )
        kind = classes[scheme] if scheme in classes else plugins[scheme].load()
    if not (isinstance(kind, type) and issubclass(kind, ImageSource)):
        raise ValueError(f"{option} {address}: expected {scheme} to be a subclass of ImageSource, got {kind!r}")
    if ".py:" in scheme:
        spec = absolute_spec(scheme)
        copyreg.pickle(kind, lambda source: (_blank, (spec,), source.__getstate__()))
    return kind


def absolute_address(address: str | Path) -> str:
    """Return an address that holds in any working directory.

    Folders, FILE.py and the part after `://`, if it is an existing file or folder, become absolute paths; `folder://`
    is left out. The end of `FOLDER/.`, which says that its folders are classes, is kept.
    """
    scheme, found, rest = str(address).partition(SEPARATOR)
    path = Path(rest if found else address).expanduser()
    if not found or scheme in Files.schemes:
        return f"{path.absolute()}{AS_CLASSES * str(address).endswith(AS_CLASSES)}"
    scheme = absolute_spec(scheme) if ".py:" in scheme else scheme
    if rest and scheme in OF_FILES and not is_remote(rest):
        location, inside = inside_of(rest)
        return f"{scheme}{SEPARATOR}{absolute(location)}{f'#{inside}' * bool(inside)}"
    return f"{scheme}{SEPARATOR}{path.absolute() if rest and path.exists() else rest}"


def is_fetched(address: str) -> bool:
    """Return whether images come from elsewhere than this machine's disks; of a list or a mixture, whether any do."""
    scheme, found, rest = address.partition(SEPARATOR)
    if not found:
        return False
    if scheme == "hf":
        return not Path(re.split(r"[:#]", rest, maxsplit=1)[0]).expanduser().exists()
    if scheme == "mix":
        return any(map(is_fetched, addresses_in(rest)))
    if scheme == "list" and not is_remote(rest):
        with suppress(OSError):  # it is said when the list is opened
            return SEPARATOR.encode() in Path(rest).expanduser().read_bytes()
    return is_remote(rest) or issubclass(_classes().get(scheme, ImageSource), Remote)


def _classes() -> dict[str, type[ImageSource]]:
    """Return the classes of this package by scheme."""
    package = import_module(__package__)
    found: dict[str, type[ImageSource]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for kind in vars(import_module(f"{__package__}.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, ImageSource):
                found |= dict.fromkeys(kind.__dict__.get("schemes", ()), kind)
    return found


def _blank(spec: str) -> ImageSource:
    """Create a source without state, in a process that unpickles one whose class is in a file."""
    kind: Any = load_object(spec, "class")
    return kind.__new__(kind)  # type: ignore[no-any-return]
