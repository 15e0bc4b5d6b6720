"""A folder of bounded size for what was fetched from servers."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import struct
import zlib
from contextlib import suppress
from pathlib import Path

FOLDER_VARIABLE = "SPARKMIM_CACHE"
"""Environment variable that names the cache's folder."""

SIZE_VARIABLE = "SPARKMIM_CACHE_GB"
"""Environment variable that bounds it, which `--cache-gb` sets: processes that read inherit it."""

DEFAULT_GB = 10.0

PARTS = 64
"""Folders into which the content is divided; each has its share of the size, and a lock of its own."""

KEPT = 0.9
"""Share of a full folder that stays when its oldest files are removed."""

CHECKSUM = struct.Struct("<I")

COUNTER = ".bytes"


def cache_folder() -> Path:
    """Return the folder of the cache: `$SPARKMIM_CACHE`, else `sparkmim` in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "sparkmim"


def limit_cache(gigabytes: float | None) -> None:
    """Bound the cache for this process and those that it starts; None leaves it as it is."""
    if gigabytes is not None:
        os.environ[SIZE_VARIABLE] = repr(float(gigabytes))


def cache_bytes() -> int:
    """Return the most bytes that the cache may hold; 0 keeps nothing.

    Raises:
        ValueError: if the environment variable is not a number.
    """
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        size = float(text) * 1e9
        if not 0 <= size < 1e18:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"the environment variable {SIZE_VARIABLE} is {text!r}, not a number of gigabytes; unset it"
        ) from None
    return int(size)


class Cache:
    """Keep bytes by key; the oldest go when a part is full. What cannot be kept is not.

    Args:
        root: the folder.
        size: most bytes in it.
    """

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size = root, size

    def get(self, key: str) -> bytes | None:
        """Return what is kept by a key, None if nothing is, or not in full."""
        with suppress(OSError):
            content = self._path(key).read_bytes()
            if len(content) >= CHECKSUM.size:
                data = content[CHECKSUM.size :]
                if CHECKSUM.unpack(content[: CHECKSUM.size])[0] == zlib.crc32(data):
                    return data
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes by a key, unless they are more than a part may hold, or the folder cannot be written."""
        part, size = self.size // PARTS, len(data) + CHECKSUM.size
        if size > part:
            return
        path = self._path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(path.parent, size, part)
            name = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            try:
                name.write_bytes(CHECKSUM.pack(zlib.crc32(data)) + data)
                os.replace(name, path)
            except OSError:
                name.unlink(missing_ok=True)
                raise

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        return self.root / f"{int(digest[:8], 16) % PARTS:02d}" / digest

    def _make_room(self, folder: Path, size: int, most: int) -> None:
        """Count bytes that will be written to a folder, and remove its oldest files if it would hold too many."""
        with (folder / COUNTER).open("a+b") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            held = int(text) if text.isdigit() else most + 1  # unknown: it is measured
            if held + size > most:
                held = _shrink(folder, min(int(KEPT * most), most - size))
            file.seek(0)
            file.truncate()
            file.write(str(held + size).encode())


def _shrink(folder: Path, most: int) -> int:
    """Remove the oldest files of a folder until they have `most` bytes together, and return how many they have."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != COUNTER:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= most:
            break
        Path(path).unlink(missing_ok=True)
        held -= size
    return held
