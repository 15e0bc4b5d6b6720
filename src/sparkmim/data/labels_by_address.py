"""Labeled images of sources that know the classes of their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..utils.text import printable
from .sources.address import SEPARATOR, open_source, source_type
from .sources.base import ImageSource
from .sources.folder import Files


def is_address(data: str | Path | None) -> bool:
    """Return whether labeled images are named by an address, not by a folder or a file."""
    return data is not None and SEPARATOR in str(data) and not str(data).startswith(f"{Files.schemes[0]}{SEPARATOR}")


def classes_at(address: str, option: str) -> tuple[ImageSource, np.ndarray, tuple[str, ...]]:
    """Return the images at an address, the class index of each, and the names of the classes in alphabetical order.

    Raises:
        ValueError: if the source does not know the classes, or some images have none.
    """
    source = open_source(address, option=option)
    try:
        found = source.class_names()
    except ValueError as error:
        raise ValueError(f"{option} {address}: {error}") from error
    if found is None:
        kind = source_type(address, option).__name__
        raise ValueError(
            f"{option} {address}: {kind} does not know the classes of images; name class folders, a CSV file, or an "
            "address of files that say them"
        )
    classes = tuple(sorted(set(found)))
    number = {name: index for index, name in enumerate(classes)}
    odd = [name for name in classes if not name.strip()]
    if odd:
        raise ValueError(f"{option} {address}: a class is {printable(odd[0])!r}; expected a name or a number")
    return source, np.array([number[name] for name in found], np.int64), classes
