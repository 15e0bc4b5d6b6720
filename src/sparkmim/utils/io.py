"""Write files atomically: a crash never leaves half of one. Read and open files that others may have prepared."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from .text import printable

SUFFIX = ".partial"
"""Ending of files that are being written. Those left by a crash can be deleted."""

HALF = re.compile(rf".+\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")
"""Names that :func:`write_atomically` gives them; other files of this ending are the user's, as downloads are."""

LARGEST = 1e300
"""Numbers from here on are no metric's; integers of a file may have any length."""

LONGEST_JSON = 2**26
"""Bytes of the largest JSON file that is read."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is the old or the new one at any moment, also after a power loss.

    Its permissions are those that the process's umask leaves. A link in its place is replaced, not followed.

    Args:
        path: of the file; its folder is made if missing.
        write: writes the content to the open file that it is given.

    Raises:
        OSError: if the file cannot be written (the old one is unchanged).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f"{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_suffix(path: Path, *suffixes: str) -> None:
    """Raise unless an output file has one of some suffixes.

    Raises:
        ValueError: naming the suffixes, and a name that has one where that is plain.
    """
    if path.name.lower().endswith(suffixes) and path.stem:
        return
    if not path.name or path.is_dir():
        raise ValueError(f"--output {printable(str(path))} is a folder; name a file in it that ends in {suffixes[0]}")
    raise ValueError(
        f"--output {printable(str(path))} must end in {' or '.join(suffixes)}; write "
        f"{printable(str(path.with_suffix(suffixes[0])))}"
    )


def require_utf8(path: Path, option: str) -> None:
    """Raise unless a path is UTF-8: safetensors and TensorBoard open no others.

    Raises:
        ValueError: with the path.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{option} {printable(str(path.absolute()))} is not UTF-8, as safetensors needs it; rename the folder or "
            "the file, or give it a link whose name is"
        ) from error


def require_writable(path: Path) -> None:
    """Validate, before any work on its content, that a file and its missing folders can be written.

    Raises:
        ValueError: if not, with the reason.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"--output {path} cannot be written ({error.strerror}); name another file") from error


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def open_own(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """Open a file of a folder that others may have prepared, for reading or appending: never through a link.

    Args:
        path: of the file.
        mode: as for :func:`open`; the file is made if it is missing and the mode writes.
        buffering: likewise.

    Raises:
        ValueError: if it is a link, has another name elsewhere, or is no regular file.
        OSError: if it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # a pipe would wait for a writer
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise foreign(path) from error
            raise
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise foreign(path)
        return descriptor

    return open(path, mode, buffering, opener=opener)


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file for this process, and return True; False if another process has locked it.

    The lock ends with the file or the process, however it dies. It is a POSIX lock, which processes that read images do
    not inherit and network file systems support; a file system without locks is used without one.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def foreign(path: Path) -> ValueError:
    """Return the error of a file of a run that is not a file of its own, with what it is."""
    if path.is_symlink():
        what = f"a link to {printable(os.readlink(path))}"
    elif path.is_dir():
        what = "a folder"
    elif path.is_file():
        what = "a file that has another name elsewhere"
    else:
        what = "a device, a pipe or a socket"
    return ValueError(
        f"{printable(str(path))} is {what}, and what a run reads and writes are its own plain files; remove it, or put "
        "a copy in its place"
    )


def read_json(path: Path) -> Any:
    """Read a JSON file that others may have written.

    Raises:
        ValueError: if it is not JSON, or too large or too deep to be one of ours.
        OSError: if it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # pipes wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a plain file")
        content = file.read(LONGEST_JSON + 1)
    if len(content) > LONGEST_JSON:
        raise ValueError(f"it is larger than {LONGEST_JSON:,} bytes")
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: if it is none, also where Python's parser gives up for its depth.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_metrics(line: str) -> dict[str, float] | None:
    """Return the numbers of a line of `metrics.jsonl`, `step` among them; None for a line cut off, or of others."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or "step" not in values:
        return None
    sound = all(isinstance(value, (int, float)) and abs(value) < LARGEST for value in values.values())
    return values if sound else None


def require_honest_archive(path: Path) -> None:
    """Raise if the parts of a zip archive, which torch stores as they are, are together larger than the file.

    Raises:
        ValueError: with both sizes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError, NotImplementedError):
        return  # of the older format, or damaged: torch says so
    size = path.stat().st_size
    if claimed > size:
        raise ValueError(f"{path} is not a checkpoint: it claims {claimed:,} bytes of content, and has {size:,}")
