"""The files that a run reads and writes in its folder are its own: plain files below it, reached by no link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..utils.io import HALF, foreign

FILES = (
    ".lock",
    "broken_held_out_images.txt",
    "broken_images.txt",
    "config.json",
    "encoder.safetensors",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    "plan.json",
    "report.html",
    "results.json",
    "tracking.json",
)
FOLDERS = ("checkpoints", "mistakes", "reconstructions", "tensorboard")


def require_own_files(root: Path) -> None:
    """Raise if a file or folder that a run owns is a link, a device or a pipe, or a file with another name elsewhere.

    A folder from elsewhere could have a run read, overwrite or delete what lies outside of it. The folder itself may be
    a link, and so may files in it that a run does not know.

    Args:
        root: of the run; nothing is said of one that does not exist.

    Raises:
        ValueError: naming the first such file, and the remedy.
    """
    for name in FILES:
        _require_plain_file(root / name)
    for name in FOLDERS:
        path = root / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise foreign(path)
        for entry in _entries(path):
            if entry.is_dir(follow_symlinks=False):
                continue
            _require_plain_file(Path(entry.path))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, links unfollowed; nothing if there is no folder."""
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _require_plain_file(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    shared = status.st_nlink > 1 and not HALF.fullmatch(path.name)
    if not stat.S_ISREG(status.st_mode) or (shared and path.name in (".lock", "metrics.jsonl")):
        raise foreign(path)
