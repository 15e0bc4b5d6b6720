"""A lock on a run's folder: one run at a time trains there."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from ..checkpoints.run_folder import RunFolder
from ..utils.io import lock_file, open_own
from .errors import DISK_FULL


@contextmanager
def lock(run: RunFolder) -> Iterator[None]:
    """Make the folder if there is none, and keep other processes from training in it.

    Raises:
        ValueError: if another process trains there, or the folder cannot be written.
        OSError: if the disk is full.
    """
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        file = open_own(run.lock, "a+")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ValueError(f"{run.root} cannot be written ({error.strerror}); use another --output") from error
    with file:
        if not lock_file(file):
            file.seek(0)
            raise ValueError(
                f"{run.root} is in use: {file.read().strip() or 'another process'} trains there. Wait until it "
                f"ends, or use another --output"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
