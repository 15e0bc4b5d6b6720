"""Read files, or ranges of them, by path or by URL."""

from __future__ import annotations

import os
import time
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from ...utils.text import printable
from .cache import Cache, cache_bytes, cache_folder
from .locations import is_remote

WAITS = (0.0, 0.5, 2.0, 8.0)
"""Seconds before each try of a request."""

REFUSED = (401, 403, 404, 410, 451)
"""Answers of a server that another try does not change."""

SECONDS = 30.0
"""How long a server may be silent."""

STAMPS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)
"""What file systems tell of a file by which a change is known, the best first."""

CLOUD_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class Facts(NamedTuple):
    """A file's size in bytes, and a text that differs when its content does, as far as is known."""

    size: int
    stamp: str


class BoundedFile:
    """An archive of which no more is read at a time than what it tells of itself may have.

    Args:
        file: the archive.
        most: bytes of one part, at most.
        what: is read, for messages.
        error: to raise for a longer part.
    """

    def __init__(self, file: IO[bytes], most: int, what: str, error: type[Exception]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self._most, self._what, self._error = most, what, error

    def read(self, size: int | None = None) -> bytes:
        """Read some bytes, or all that follow: a library that asks for those bounds them itself."""
        if size is None:
            return self._file.read()
        if not 0 <= size <= self._most:
            raise self._error(f"{self._what} claims {size:,} bytes, and may have {self._most:,}")
        return self._file.read(size)


def read_range(location: str, start: int, stop: int, stamp: str = "") -> bytes:
    """Return bytes of a file; those of a URL are kept in the cache.

    Args:
        location: path or URL.
        start: of the range.
        stop: its end.
        stamp: of the file's content, see :class:`Facts`.

    Raises:
        OSError: if they cannot be read, or the file is shorter.
    """
    if is_remote(location):
        return _cached(location, start, stop, stamp)
    with open(location, "rb", buffering=0) as file:
        file.seek(start)
        # Memory is taken for all that is asked for: no more than the file holds, whatever an archive claims.
        held = min(stop, os.fstat(file.fileno()).st_size) - start
        data = file.read(max(0, held))
        while len(data) < held and (more := file.read(held - len(data))):
            data += more
    if len(data) < stop - start:
        raise OSError(f"{os.path.basename(location)} ends before byte {stop}; it is cut off")
    return data


def read_whole(url: str) -> bytes:
    """Return the content of a URL, which is kept in the cache: it is not asked for again while it is there.

    Raises:
        OSError: if it cannot be read.
    """
    return _cached(url, None, None, "")


def keep(url: str, start: int | None, stop: int | None, stamp: str, data: bytes) -> None:
    """Keep what was fetched by :func:`fetch` in the cache."""
    size = cache_bytes()
    if size:
        Cache(cache_folder() / "files", size).put(_key(url, start, stop, stamp), data)


def kept(url: str, start: int | None, stop: int | None, stamp: str) -> bytes | None:
    """Return a range of a URL, None for all of it, from the cache; None if it is not there."""
    size = cache_bytes()
    return Cache(cache_folder() / "files", size).get(_key(url, start, stop, stamp)) if size else None


def _cached(url: str, start: int | None, stop: int | None, stamp: str) -> bytes:
    data = kept(url, start, stop, stamp)
    if data is None:
        data = fetch(url, start, stop)
        keep(url, start, stop, stamp, data)
    return data


def _key(url: str, start: int | None, stop: int | None, stamp: str) -> str:
    return f"{url}\n{start}\n{stop}\n{stamp}"


def fetch(url: str, start: int | None, stop: int | None) -> bytes:
    """Return bytes of a URL, tried several times.

    Raises:
        OSError: if they cannot be had; FileNotFoundError and PermissionError at once.
    """
    last: Exception | None = None
    for wait in WAITS:
        time.sleep(wait)
        try:
            system, path = file_system(url)
            data: bytes = system.cat_file(path, start=start, end=stop)
        except Exception as error:  # of any of the packages behind fsspec
            if _is_final(error):
                raise as_os_error(url, error) from error
            last = error
            continue
        if start is None or stop is None or len(data) == stop - start:
            return data
        last = OSError(f"expected {stop - start} bytes, got {len(data)}{NO_RANGES * (len(data) > stop - start)}")
    assert last is not None
    raise OSError(f"{url} failed {len(WAITS)} times ({_said(last)})") from last


NO_RANGES = "; its server does not answer requests for a range of bytes, so download the file"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, one of this process, and the path in it.

    Raises:
        ValueError: if the package for it is missing, or there is none.
    """
    try:
        import fsspec
    except ImportError:
        raise ValueError(f"{url} needs fsspec: pip install 'sparkmim[scale]'") from None
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            silent = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
            options = {"client_kwargs": {"timeout": silent}}
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = CLOUD_PACKAGES.get(scheme, "aiohttp" if scheme.startswith("http") else str(error))
        raise ValueError(f"{scheme}:// needs {package}: pip install 'sparkmim[scale]'") from None
    except ValueError as error:
        raise ValueError(f"{url}: fsspec has no file system for {scheme}:// ({error})") from error
    return found


def facts(location: str) -> Facts:
    """Return size and stamp of a file.

    Raises:
        ValueError: if it does not exist, cannot be reached, or has no size; with the reason.
    """
    if not is_remote(location):
        try:
            status = os.stat(location)
        except OSError as error:
            raise ValueError(f"{location} cannot be read ({error.strerror})") from error
        return Facts(status.st_size, str(status.st_mtime_ns))
    info = ask(location, "info")
    size = info.get("size")
    if size is None or info.get("partial") is False:
        raise ValueError(f"{location}: its server does not tell its size or give ranges of it; download the file")
    return Facts(int(size), next((str(info[name]) for name in STAMPS if info.get(name)), ""))


def ask(url: str, method: str, **options: Any) -> Any:
    """Return what a method of fsspec's file system says of a URL, tried several times.

    Raises:
        ValueError: if it fails, with the reason.
    """
    system, path = file_system(url)
    for wait in WAITS:
        time.sleep(wait)
        try:
            return getattr(system, method)(path, **options)
        except Exception as error:  # of any of the packages behind fsspec
            last = error
            if _is_final(error):
                break
    reason = as_os_error(url, last)
    raise ValueError(str(reason)) from reason


def open_remote(url: str) -> Any:
    """Return a file to read a URL from, a block at a time.

    Raises:
        ValueError: if it cannot be opened, with the reason.
    """
    system, path = file_system(url)
    try:
        return system.open(path, "rb", block_size=2**20)
    except Exception as error:  # of any of the packages behind fsspec
        raise ValueError(str(as_os_error(url, error))) from error


def as_os_error(url: str, error: Exception) -> OSError:
    """Return the error of a request in words."""
    error = _cause(error)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(f"{url} does not exist (the server has no such file)")
    if isinstance(error, PermissionError) or status in (401, 403, 451):
        code = f", {status}" if status else ""
        return PermissionError(f"{url} may not be read (access is refused{code}); see its permissions, or credentials")
    return OSError(f"{url} cannot be read ({_said(error)})")


def _cause(error: Exception) -> Exception:
    """Return why a file is not found: fsspec says so of any server that does not tell its size."""
    cause = error.__cause__
    asked = isinstance(cause, Exception) and type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and asked else error


def _is_final(error: Exception) -> bool:
    error = _cause(error)
    named = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError))
    return named or getattr(error, "status", None) in REFUSED


def _said(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:200])
