"""Names in archives and lists that come from outside."""

from __future__ import annotations

from pathlib import PurePosixPath

from ...utils.text import printable
from ..sources.folder import is_junk


def is_hidden(name: str) -> bool:
    """Return whether a path has a hidden part, or one that operating systems leave behind; `..` is not hidden."""
    return any(is_junk(part) and part not in ("..", ".") for part in PurePosixPath(name).parts)


def is_safe_name(name: str) -> bool:
    """Return whether a name is relative and without `..`, on Windows too."""
    windows = "\\" in name and (name[0] == "\\" or ".." in name.split("\\"))
    return not (name.startswith("/") or name[1:3] in (":\\", ":/") or ".." in name.split("/") or windows)


def require_safe_name(archive: str, name: str) -> None:
    """Raise for a name in an archive that is absolute, or leaves the archive by `..`.

    Raises:
        ValueError: naming the archive and the name.
    """
    if not is_safe_name(name):
        raise ValueError(
            f"{archive} holds {printable(name)!r}, a name that leads out of the archive; write it anew with relative "
            "names"
        )
