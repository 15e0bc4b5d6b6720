"""Image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..decoding.arrays import KINDS
from ..decoding.images import read_image
from ..decoding.jpeg import Reduction


class Files:
    """Image files below a folder.

    Their names are kept as one array of bytes, which worker processes share instead of copying.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """The path below the folder."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The decoded image."""
        return read_image(self.root / self.name(index), channels, reduction)


def find_images(folder: str | Path, flag: str = "--data") -> Files:
    """All files below a folder, however nested, whose extension is that of an image or array, in alphabetical order.

    Hidden files and folders (`.name`) are passed over. Links to folders are followed, each folder once.

    Args:
        folder: of the images.
        flag: by which the user has named it.

    Raises:
        ValueError: if there is no such folder, no image in it, or a folder below that cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"{root} is a file; {flag} takes the folder" if root.exists() else f"there is no folder {root}; see {flag}"
        )
    Image.init()
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN} | set(KINDS)
    names: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if extension in known:
                names.append(os.path.relpath(os.path.join(parent, file), root))
            else:
                others[extension or "no extension"] += 1
    if not names:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
        raise ValueError(
            f"no image in {root}: it holds {found or 'no file'}; wanted are files that Pillow reads, as jpg or png"
        )
    return Files(root, sorted(names))


def _refuse(error: OSError) -> None:
    """os.walk would pass over a folder that cannot be listed, in silence."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or name a folder without it"
    ) from error
