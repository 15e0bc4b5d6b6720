"""Open the volumes at an address: prepared in a store, or one by one as they are looked at."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...utils.logging import log
from ..config import VolumeConfig
from ..sources.base import ImageSource
from .cases import find_cases, is_volumes
from .preparing import PrepareSettings, is_prepared, prepare, store_key
from .store import StoredVolume, UnpreparedVolumes

SCHEME = "volumes://"
"""Begins an address of volumes whose files may be pictures too, as those of `.npy` and `.tif`."""

STORES = "volumes"
"""Folder beside run folders that holds the stores of volumes, if no other is named."""


def are_volumes(address: str | Path | None) -> bool:
    """Return whether an address is of volumes: by its scheme, or by the extensions of the files there."""
    if address is None:
        return False
    if str(address).startswith(SCHEME):
        return True
    path = Path(address).expanduser()
    return "://" not in str(address) and path.exists() and is_volumes(path)


def channels_of(source: ImageSource) -> int:
    """Return the channels of the first volume of a source."""
    first = source.open(0)
    assert isinstance(first, StoredVolume)
    return int(first.shape[0])


class Stores:
    """Prepares the volumes of a run.

    Args:
        beside: the run's folder, whose neighbor holds the stores if the user names no other; None prepares nothing, and
            volumes are resampled whenever they are looked at.
        chosen: the folder that the user names. One that a run has recorded is read, but not written to.
    """

    def __init__(self, beside: str | Path | None = None, chosen: str | Path | None = None) -> None:
        self.beside = None if beside is None else Path(beside).expanduser().absolute()
        self.chosen = None if chosen is None else Path(chosen).expanduser().absolute()

    def open(
        self, address: str | Path, config: VolumeConfig, like: ImageSource | None = None, option: str = "--data"
    ) -> ImageSource:
        """Return the volumes at an address, prepared as the settings say.

        Args:
            address: a folder, a table, or a file that describes a data set.
            config: how they are prepared.
            like: prepared volumes by whose spacing and intensities these are prepared.
            option: that named the address, for messages.

        Raises:
            ValueError: if there are none, or they cannot be prepared.
        """
        path = Path(str(address).removeprefix(SCHEME)).expanduser()
        try:
            cases = find_cases(path)
        except ValueError as error:
            raise ValueError(f"{option} {address}: {error}") from error
        settings = PrepareSettings(config.spacing, config.intensity, config.foreground)
        model = None if like is None else like.fingerprint  # type: ignore[attr-defined]
        if self.beside is None:
            return UnpreparedVolumes(cases, settings, fingerprint=model)
        key = store_key(cases, settings, model)
        root = self.beside.parent / STORES if self.chosen is None else self.chosen
        if config.store is not None and self.chosen is None and is_prepared(Path(config.store) / key):
            root = Path(config.store)
        with locked(root / f"{key}.lock"):
            return prepare(cases, settings, root / key, workers=os.cpu_count() or 1, fingerprint=model)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the processes of a run, or several runs, prepare the same store: one does, all wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ValueError(
            f"{path.parent} cannot be written ({error.strerror}); name another folder by --store"
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # other errors are of file systems without locks
                log.info(f"waiting for another process that prepares {path.with_suffix('')}")
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield
