"""Files of which no more is read than their headers may need, whatever they claim."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .encoded import UnreadableImage

HEADERS = 2**24
"""Bytes of headers, tags and texts that may be read of a file: 16 MiB."""

TOO_LONG = f"its header claims more than the {HEADERS >> 20} MiB that a header may have"

BYTES_OF_A_READ = 512
"""Bytes that each reading counts as, at least: some claim lists that are read a number at a time."""

HEADER_OF_A_PAGE = 2**14
"""Bytes that may be read for each page beyond that."""

NPY_HEADER = 2**16
"""Bytes of the header of an .npy file, at most."""

NUMBERS = "buif"
"""Kinds of numpy's types that are real numbers; of texts and records a single value may have gigabytes."""

DEFLATED = 1032
"""Bytes that one compressed byte unpacks to, at most (zlib's technical details)."""

PIECE = 2**20
"""Bytes of an array that are unpacked at a time to be counted."""

ARRAYS = 1000
"""Arrays of an .npz file, at most, where one of several is looked for."""


class Bounded(io.BufferedReader):
    """A file that counts what is read of it, and raises if that is more than headers may have.

    Args:
        raw: the file, or its bytes as one.
        each: bytes that each reading counts as, at least.
    """

    def __init__(self, raw: io.RawIOBase | io.BytesIO, each: int = BYTES_OF_A_READ) -> None:
        super().__init__(raw)
        self._each = each
        self._left: int | None = HEADERS

    def allow(self, size: int) -> None:
        """Allow to read some more bytes."""
        if self._left is not None:
            self._left += size

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Allow to read any number of bytes within the block: those of pixels, which have limits of their own."""
        before, self._left = self._left, None
        try:
            yield
        finally:
            self._left = before

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes.

        Raises:
            UnreadableImage: if they are more than headers may have.
        """
        if self._left is None:
            return super().read(size)
        content = super().read(self._left + 1 if size is None or not 0 <= size <= self._left else size)
        self._count(len(content))
        return content

    def readinto(self, buffer: Any, /) -> int:
        """Read bytes into a buffer.

        Raises:
            UnreadableImage: likewise.
        """
        if self._left is not None:
            self._count(memoryview(buffer).nbytes)
        return super().readinto(buffer)

    def _count(self, size: int) -> None:
        assert self._left is not None
        self._left -= max(self._each, size)
        if self._left < 0:
            raise UnreadableImage(TOO_LONG)


def bounded(content: Path | bytes, each: int = BYTES_OF_A_READ) -> Bounded:
    """Open a file, given by its path or its bytes, whose headers may take no more than :data:`HEADERS` bytes."""
    return Bounded(io.BytesIO(content) if isinstance(content, bytes) else io.FileIO(content), each)


@contextmanager
def reading_headers() -> Iterator[None]:
    """Take it for a claim of the file, not for a lack of memory, if memory cannot be had for its header.

    Raises:
        UnreadableImage: for MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        raise UnreadableImage(TOO_LONG) from error


class Npy(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    def require_numbers(self) -> None:
        """Raise unless its values are real numbers.

        Raises:
            UnreadableImage: with their type.
        """
        if self.dtype.kind not in NUMBERS:
            raise UnreadableImage(f"expected real numbers, got values of type {str(self.dtype)[:80]}")


def npy_header(file: IO[bytes], size: int) -> Npy:
    """Return shape and type of an .npy file, open at its start, and leave it there.

    Args:
        file: the file.
        size: bytes of it.

    Raises:
        UnreadableImage: if its header claims more bytes than any needs, more numbers than the file holds, or objects.
        ValueError: if it is none, as numpy raises it.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    width = 2 if version == (1, 0) else 4
    length = file.read(width)
    if (claimed := int.from_bytes(length, "little")) > NPY_HEADER:
        raise UnreadableImage(f"its header claims {claimed} bytes, more than any array needs")
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(length + file.read(claimed)))
    if dtype.hasobject:
        raise UnreadableImage("expected numbers, got Python objects, which are not loaded (allow_pickle is off)")
    if (numbers := math.prod(shape) * dtype.itemsize) > size:
        raise UnreadableImage(f"the file is truncated: its header claims {numbers} bytes of numbers, and it has {size}")
    file.seek(start)
    return Npy(shape, dtype)


def npy_file_header(path: Path) -> Npy:
    """Return shape and type of an .npy file of numbers, see :func:`npy_header`."""
    with path.open("rb") as file:
        found = npy_header(file, path.stat().st_size)
    found.require_numbers()
    return found


class Npz:
    """The arrays of an .npz file, whose headers are read before any of them is.

    Args:
        archive: the file, opened.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Npy:
        """Return shape and type of an array, see :func:`npy_header`."""
        with self._archive.open(f"{name}.npy") as file:
            return npy_header(file, self._bytes(self._archive.getinfo(f"{name}.npy")))

    def _bytes(self, entry: zipfile.ZipInfo) -> int:
        """Return the bytes of an array, whatever the archive claims: no more than its compressed ones unpack to."""
        packed = min(entry.compress_size, self._archive.start_dir)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # which numpy does not write
            with self._archive.open(entry) as file:
                return sum(map(len, iter(partial(file.read, PIECE), b"")))
        return min(entry.file_size, packed * (DEFLATED if entry.compress_type == zipfile.ZIP_DEFLATED else 1))

    def headers(self) -> dict[str, Npy]:
        """Return shape and type of each array.

        Raises:
            UnreadableImage: if they are too many, or as :func:`npy_header` does.
        """
        if len(self.names) > ARRAYS:
            raise UnreadableImage(f"expected at most {ARRAYS} arrays, got {len(self.names)}")
        return {name: self.header(name) for name in self.names}

    def array(self, name: str) -> np.ndarray:
        """Read an array of numbers.

        Raises:
            UnreadableImage: if it is one of others, or as :func:`npy_header` does.
        """
        self.header(name).require_numbers()
        with self._archive.open(f"{name}.npy") as file:
            array: np.ndarray = np.load(file, allow_pickle=False)
        return array


@contextmanager
def opened_npz(content: Path | bytes) -> Iterator[Npz]:
    """Open an .npz file, given by its path or its bytes."""
    with bounded(content) as source, zipfile.ZipFile(source) as archive, source.unbounded():
        yield Npz(archive)
