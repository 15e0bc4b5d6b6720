"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from ..checkpoints.run_folder import RunFolder
from .errors import FULL


@contextmanager
def claim(run: RunFolder) -> Iterator[None]:
    """Make the folder if there is none, and keep other processes from training in it.

    The claim ends with the process, however it dies. It is a lock of POSIX's, which processes that read images do not
    inherit and network file systems know; a file system that knows none is used without.

    Raises:
        ValueError: if another process trains there, or the folder cannot be written.
        OSError: if the disk is full.
    """
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("a+")
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(f"{run.root} cannot be written ({error.strerror}); use another --output") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ValueError(
                    f"{run.root} is in use: {file.read().strip() or 'another process'} trains there. Wait for its end, "
                    f"or use another --output"
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
