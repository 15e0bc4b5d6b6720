"""Images in a zip file."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...utils.text import printable
from ..decoding.encoded import EncodedImage
from ..decoding.images import image_extensions
from ..storage.ahead import Ahead, Piece
from ..storage.fetched import FetchedFile
from ..storage.locations import is_remote
from ..storage.names import Names
from ..storage.reading import BoundedFile, Facts, facts, open_remote, read_range
from ..storage.safety import is_hidden, require_safe_name
from .base import ImageSource, inside_of

HEADER = struct.Struct("<4s22xHH")
"""Signature of a member's own header, and the lengths of its name and of what follows it."""

SIGNATURE = b"PK\x03\x04"

SLACK = 512
"""Bytes beyond those of a member that are read along, for what follows its name."""

LARGEST = 2**31
"""Bytes of a member, unpacked; those of images are fewer."""

LARGEST_LIST = 2**30
"""Bytes of the list of members at the end of a zip file, which is read as a whole: that of ten million."""

PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Ways of packing that are read."""


class Zipped(ImageSource):
    """Images in a zip file, in alphabetical order, each read by itself from its offset.

    Args:
        location: path or URL of the zip file.
        now: its size and time.
        members: the images.
        inside: folder in it below which images are named.
    """

    schemes = ("zip",)

    def __init__(self, location: str, now: Facts, members: Sequence[zipfile.ZipInfo], inside: str = "") -> None:
        self.archive, self.facts = location, now
        self._names = Names.of(member.filename for member in members)
        self._prefix = len(inside)
        self._numbers = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in members], np.int64
        )
        self._ahead = Ahead()

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Zipped:
        """Open a zip file by path or URL; `#FOLDER` at the end names a folder in it, whose images alone are read."""
        location, inside = inside_of(rest)
        if not location:
            raise ValueError("expected a zip file after ://")
        return open_zip(location if is_remote(location) else str(Path(location).expanduser().absolute()), inside)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the path in the zip file, below the folder that was named."""
        return self._names[index][self._prefix :]

    def each_name(self) -> Iterator[str]:
        """Yield the names of all images."""
        return (name[self._prefix :] for name in self._names)

    def open(self, index: int) -> EncodedImage:
        """Return the image, which is read when it is decoded."""
        return FetchedFile(partial(self._read, index), self.name(index))

    def _piece(self, index: int) -> Piece:
        offset, packed = (int(number) for number in self._numbers[index, :2])
        length = HEADER.size + len(os.fsencode(self._names[index])) + packed + SLACK
        return Piece(self.archive, offset, min(offset + length, self.facts.size), self.facts.stamp)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images from a server."""
        if is_remote(self.archive):
            self._ahead.fetch([self._piece(index) for index in indices])

    def _read(self, index: int) -> bytes:
        offset, packed, size, checksum, method = (int(number) for number in self._numbers[index])
        piece = self._piece(index)
        assert piece.stop is not None
        stop: int = piece.stop
        data = self._ahead.read(piece, lambda: read_range(self.archive, offset, stop, piece.stamp))
        if data[:4] != SIGNATURE:
            raise OSError("the zip file has changed since it was opened, or is damaged")
        _, name, extra = HEADER.unpack(data[: HEADER.size])
        start = HEADER.size + name + extra
        if len(data) < start + packed:
            data += read_range(self.archive, stop, offset + start + packed, piece.stamp)
        return unpack(data[start : start + packed], size, checksum, method)

    def class_names(self) -> list[str] | None:
        """Return the first folder of each path, as in a folder of class folders."""
        return self.folders_of_names()


def unpack(packed: bytes, size: int, checksum: int, method: int) -> bytes:
    """Return a member of a zip file, of the size that it is said to have.

    Raises:
        OSError: if it is not, or damaged.
    """
    data = packed
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        except zlib.error as error:
            raise OSError(f"damaged in the zip file ({error})") from error
    if len(data) != size or zlib.crc32(data) != checksum:
        raise OSError(
            f"damaged in the zip file: expected {size} bytes, got {'more' if len(data) > size else len(data)}"
            + ", of another checksum" * (len(data) == size)
        )
    return data


def open_zip(location: str, inside: str = "") -> Zipped:
    """Return the images in a zip file, or in one folder in it.

    Raises:
        ValueError: if it cannot be read, has no image, or members that are encrypted, links, too large, named twice or
            outside of it.
    """
    now = facts(location)
    try:
        with open_remote(location) if is_remote(location) else open(location, "rb") as file:
            members = _members(location, file)
    except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{location} cannot be read as a zip file ({error}); it may be cut off") from error
    folder = f"{inside.strip('/')}/" if inside.strip("/") else ""
    chosen = sorted((m for m in members if m.filename.startswith(folder)), key=lambda member: member.filename)
    if not chosen:
        where = f"the folder {printable(folder)} of {location}" if folder else location
        raise ValueError(f"no image in {where}")
    for member in chosen:
        _require_readable(location, member)
    for before, member in pairwise(chosen):
        if before.filename == member.filename:
            raise ValueError(f"{location} has {printable(member.filename)} twice; write the zip file anew")
    return Zipped(location, now, chosen, folder)


def _members(location: str, file: IO[bytes]) -> list[zipfile.ZipInfo]:
    known = image_extensions()
    found = []
    bounded: Any = BoundedFile(file, LARGEST_LIST, "its list of members", OSError)
    with zipfile.ZipFile(bounded) as archive:
        for member in archive.infolist():
            if member.is_dir() or is_hidden(member.filename):
                continue
            require_safe_name(location, member.orig_filename)
            if os.path.splitext(member.filename)[1].lower() in known:
                found.append(member)
    return found


def _require_readable(location: str, member: zipfile.ZipInfo) -> None:
    name = printable(member.filename)
    if member.flag_bits & 1:
        raise ValueError(f"{location}: {name} is encrypted; write the zip file anew without a password")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{location}: {name} is a link; write the zip file anew with its content")
    if member.compress_type not in PACKED:
        raise ValueError(
            f"{location}: {name} is packed by method {member.compress_type}; write it anew, deflated or stored"
        )
    if max(member.header_offset, member.compress_size) >= 2**63 or member.header_offset < 0:
        raise ValueError(f"{location}: {name} lies outside of the file; write the zip file anew")
    if member.file_size > LARGEST:
        raise ValueError(
            f"{location}: {name} would unpack to {member.file_size:,} bytes; images have {LARGEST:,} at most"
        )
