"""Index the images of a tar file by offset, size and name, so that each can be read by itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ...utils.io import parse_json, write_atomically
from ...utils.text import printable
from ..decoding.images import image_extensions
from .locations import is_remote
from .names import Names
from .reading import BoundedFile, Facts, facts, fetch, open_remote, read_range
from .safety import is_hidden, require_safe_name

ENDING = ".index"
"""What follows a tar file's name in that of its index."""

MAGIC = b"sparkmim tar index 1\n"

BLOCK = 512
"""Bytes of a header in a tar file."""

CLASS = ".cls"
"""Extension of a member that holds the class of a sample."""

LONGEST_CLASS = 1000

LARGEST_HEADER = 2**20
"""Bytes of the header of an index, and of an extended header of a member, which gives its length itself."""


class TarIndex:
    """The images of a tar file in alphabetical order of their names.

    Attributes:
        tar: size and stamp of the tar file that was indexed.
        offsets: first byte of each image, int64.
        sizes: bytes of each image, int64.
        names: path of each image in the tar file.
        classes: class of each image; None if none has one, and an empty text for those that have none.
        several: a few images that share their webdataset key with others.
        skipped: number of other files.
    """

    def __init__(
        self,
        tar: Facts,
        offsets: np.ndarray,
        sizes: np.ndarray,
        names: Names,
        classes: Names | None,
        several: list[str],
        skipped: int,
        path: Path | None = None,
    ) -> None:
        self.tar, self.offsets, self.sizes, self.names = tar, offsets, sizes, names
        self.classes, self.several, self.skipped, self.path = classes, several, skipped, path

    def __len__(self) -> int:
        return len(self.offsets)

    def write(self, path: Path) -> None:
        """Write the index, so that there is the old or the new one at any moment."""
        content = self.to_bytes()
        write_atomically(path, lambda file: file.write(content))
        self.path = path

    def to_bytes(self) -> bytes:
        """Return the content of an index file: a line, the length of a JSON header, that header, and arrays."""
        arrays = [self.offsets, self.sizes, self.names.ends, self.names.content]
        if self.classes is not None:
            arrays += [self.classes.ends, self.classes.content]
        payload = b"".join(np.ascontiguousarray(array).tobytes() + bytes(-array.nbytes % 8) for array in arrays)
        header = json.dumps(
            {
                "tar": self.tar._asdict(),
                "lengths": [array.size for array in arrays],
                "several": self.several,
                "skipped": self.skipped,
                "checksum": zlib.crc32(payload),
            }
        ).encode()
        start = MAGIC + len(header).to_bytes(8, "little") + header
        return start + bytes(-len(start) % 64) + payload

    @classmethod
    def from_buffer(cls, content: np.ndarray, path: Path | None = None) -> TarIndex:
        """Return the index that the bytes of a file are, which stay where they are.

        Raises:
            ValueError: if they are not one, or damaged.
        """
        begin = len(MAGIC) + 8
        if content[: len(MAGIC)].tobytes() != MAGIC:
            raise ValueError("not an index of this version")
        length = int.from_bytes(content[len(MAGIC) : begin].tobytes(), "little")
        if not 0 < length <= min(LARGEST_HEADER, len(content)):
            raise ValueError("a damaged header")
        try:
            header: dict[str, Any] = parse_json(content[begin : begin + length].tobytes())
            tar = Facts(int(header["tar"]["size"]), str(header["tar"]["stamp"]))
            lengths = [int(number) for number in header["lengths"]]
            several, skipped = [str(name) for name in header["several"]], int(header["skipped"])
            checksum = int(header["checksum"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a damaged header ({error})") from error
        payload = content[-(-(begin + length) // 64) * 64 :]
        kinds: tuple[np.dtype[Any], ...] = tuple(map(np.dtype, ("<i8", "<i8", "<i8", "u1", "<i8", "u1")))
        sizes = [number * kind.itemsize for number, kind in zip(lengths, kinds, strict=False)]
        padded = [size + -size % 8 for size in sizes]
        if len(lengths) not in (4, 6) or min(lengths) < 0 or sum(padded) != len(payload):
            raise ValueError("another length than its header says")
        if zlib.crc32(payload.data) != checksum:
            raise ValueError("a wrong checksum")
        starts = np.cumsum([0, *padded])
        parts = [
            payload[start : start + size].view(kind) for start, size, kind in zip(starts, sizes, kinds, strict=False)
        ]
        if len({len(parts[place]) for place in (0, 1, 2, *([4] if len(parts) == 6 else []))}) > 1:
            raise ValueError("arrays of several lengths")
        classes = Names(parts[5], parts[4]) if len(parts) == 6 else None
        return cls(tar, parts[0], parts[1], Names(parts[3], parts[2]), classes, several, skipped, path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path alone where there is a file, which another process maps into its memory again."""
        if self.path is not None:
            return map_index, (self.path,)
        return TarIndex.from_buffer, (np.frombuffer(self.to_bytes(), np.uint8),)


def map_index(path: Path) -> TarIndex:
    """Return the index in a file, mapped into memory.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or not an index.
    """
    if not stat.S_ISREG(os.stat(path).st_mode) or not path.stat().st_size:
        raise ValueError("not an index of this version")
    return TarIndex.from_buffer(np.memmap(path, np.uint8, "r"), path)


def index_of(location: str, folder: Path) -> TarIndex:
    """Return the index of a tar file, made if there is none that fits the file's size and time.

    It is stored beside the tar file or, where that cannot be written, in a folder.

    Args:
        location: path or URL of the tar file.
        folder: of indexes.

    Raises:
        ValueError: if the tar file cannot be read, is cut off, compressed, or has unsafe members; with the remedy.
    """
    now = facts(location)
    stored = folder / f"{_digest(location)}{ENDING}"
    places = [stored] if is_remote(location) else [Path(f"{location}{ENDING}"), stored]
    for path in places:
        with suppress(OSError, ValueError):  # there is none, or it is damaged: it is made anew
            found = map_index(path)
            if found.tar == now:
                return found
    beside = _beside(location, now) if is_remote(location) else None
    made = build_index(location, now) if beside is None else beside
    for path in places:
        with suppress(OSError):
            made.write(path)
            return map_index(path)
    return made


def _beside(url: str, now: Facts) -> TarIndex | None:
    """Return the index that a server has beside a tar file, if it is of that file; stamps do not survive a copy."""
    try:
        found = TarIndex.from_buffer(np.frombuffer(fetch(f"{url}{ENDING}", None, None), np.uint8))
        if found.tar.size != now.size:
            return None
        for index in {0, len(found) - 1} if len(found) else ():
            read_member(url, int(found.offsets[index]), int(found.sizes[index]), now.stamp)
    except (OSError, ValueError):
        return None
    found.tar = now
    return found


def build_index(location: str, now: Facts | None = None) -> TarIndex:
    """Read the headers of a tar file, and return its index.

    Raises:
        ValueError: as :func:`index_of` does.
    """
    now = facts(location) if now is None else now
    try:
        with open_remote(location) if is_remote(location) else open(location, "rb") as file:
            return _read_headers(location, file, now)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{location} cannot be read as a tar file ({_reason(error, location)})") from error


def _reason(error: Exception, location: str) -> str:
    text = " ".join(str(error).split())
    if "unexpected end of data" in text:
        return "it is cut off: it ends within a member; copy it again"
    with suppress(OSError, ValueError):
        if read_range(location, 0, 2) == b"\x1f\x8b":
            return "it is compressed, and a compressed tar file cannot be read from its middle; decompress it"
    return text or type(error).__name__


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@contextmanager
def _damage() -> Iterator[None]:
    """Raise one kind of error for whatever the library raises on a damaged header.

    Raises:
        tarfile.ReadError: with what it says.
    """
    try:
        yield
    except RecursionError as error:
        raise tarfile.ReadError("hundreds of extended headers follow each other") from error
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(f"a header is damaged: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file.

    Raises:
        tarfile.TarError: for a damaged header.
    """
    while True:
        with _damage():
            member = tar.next()
        if member is None:
            return
        vars(tar)["members"] = []  # or it keeps all of them
        yield member


def _read_headers(location: str, file: IO[bytes], now: Facts) -> TarIndex:
    known = image_extensions()
    images: list[_Member] = []
    classes: dict[str, str] = {}
    skipped = 0
    headers: Any = BoundedFile(file, LARGEST_HEADER, "a header", tarfile.ReadError)
    with ExitStack() as stack:
        with _damage():  # the first header is read at once
            tar = stack.enter_context(tarfile.open(fileobj=headers, mode="r:", errors="surrogateescape"))
        for member in _members(tar):
            name = member.name.removeprefix("./")
            if member.isdir() or is_hidden(name):
                continue
            require_safe_name(location, member.name)
            extension = os.path.splitext(name)[1].lower()
            if extension not in known and extension != CLASS:
                skipped += 1
            elif not member.isreg() or member.sparse is not None:
                kind = "a link" if member.issym() or member.islnk() else "not a plain file"
                raise ValueError(
                    f"{location}: {printable(name)} is {kind}; write the tar file anew with its content "
                    "(tar --dereference --hard-dereference)"
                )
            elif extension == CLASS:
                classes[key_of(name)[0]] = _read_class(location, tar, member)
            else:
                images.append(_Member(name, member.offset_data, member.size))
        end = tar.offset
    _require_end(location, file, end, now.size)
    images.sort()
    return _index(location, images, classes, skipped, now)


def _index(location: str, images: list[_Member], classes: dict[str, str], skipped: int, now: Facts) -> TarIndex:
    keys: dict[str, str] = {}
    several: list[str] = []
    for before, member in zip([None, *images], images, strict=False):
        if before is not None and before.name == member.name:
            raise ValueError(
                f"{location} has {printable(member.name)} twice; names must be unique, so write the tar file anew "
                "without one of them"
            )
        other = keys.setdefault(key_of(member.name)[0], member.name)
        if other != member.name and len(several) < 4:
            several += [other, member.name]
    numbers = np.array([member[1:] for member in images], "<i8").reshape(-1, 2)
    return TarIndex(
        now,
        np.ascontiguousarray(numbers[:, 0]),
        np.ascontiguousarray(numbers[:, 1]),
        Names.of(member.name for member in images),
        Names.of(classes.get(key_of(member.name)[0], "") for member in images) if classes else None,
        list(dict.fromkeys(several)),
        skipped,
    )


def key_of(name: str) -> tuple[str, str]:
    """Return webdataset's key of a member, its path up to the first dot of its last part, and the rest."""
    folder, slash, last = name.rpartition("/")
    first, _, rest = last.partition(".")
    return f"{folder}{slash}{first}", rest


def _read_class(location: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member) if member.size <= LONGEST_CLASS else None
    text = "" if file is None else file.read().decode(errors="surrogateescape").strip()
    if not text or "\n" in text:
        raise ValueError(f"{location}: expected one class in {printable(member.name)}, such as 7 or dog")
    return text


def _require_end(location: str, file: IO[bytes], end: int, size: int) -> None:
    """Raise unless a tar file ends where its members do: by a block of zeros, and nothing but zeros behind it."""
    file.seek(end)
    first, left = True, size - end
    while left > 0:
        block = file.read(min(left, 2**20))
        if not block or block.count(0) != len(block) or (first and len(block) < BLOCK):
            break
        first, left = False, left - len(block)
    else:
        if not first:
            return
    raise ValueError(
        f"{location} is damaged or cut off: its members end at byte {end} of {size}, without the zeros that end a tar "
        "file; copy or write it again (tar files that were joined by cat are read by none: use tar -A)"
    )


def read_member(location: str, offset: int, size: int, stamp: str, read: Callable[..., bytes] = read_range) -> bytes:
    """Return a member of a tar file.

    Raises:
        OSError: if it cannot be read, or is not there.
    """
    return member_in(read(location, offset - BLOCK, offset + size, stamp), size)


def member_in(data: bytes, size: int) -> bytes:
    """Return the member that a header and its content hold.

    Raises:
        OSError: if it is not of the size that the index has, as the file has changed.
    """
    try:
        found = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        found = -1
    if found not in (size, 0):  # where an extended header has the size, this one may have none
        raise OSError("the tar file has changed since it was indexed; start again, which makes the index anew")
    return data[BLOCK:]


def _digest(location: str) -> str:
    path = location if is_remote(location) else os.path.realpath(location)
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
