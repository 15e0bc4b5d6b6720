"""Open the volumes at an address: prepared in a store, or one by one as they are looked at."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from ...utils.io import lock_file
from ...utils.logging import log
from ...utils.orientation import RAS
from ...utils.text import printable
from ..config import VolumeConfig
from ..decoding.encoded import UnreadableImage
from ..sources.base import ImageSource, whole_of
from ..statistics import PROBED, spread_indices
from .cases import Cases, find_cases, is_volumes
from .preparing import Preparation, PrepareSettings, preparation_of, prepare
from .reading import read_volume
from .store import PreparedVolumes, is_store
from .unprepared import UnpreparedVolumes

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


def cases_at(address: str | Path, option: str = "--data", channels: int | None = None) -> Cases:
    """Return the volumes at an address.

    Args:
        address: a folder, a table, or a file that describes a data set.
        option: that named it, for messages.
        channels: of each volume, if that is known; see :func:`~sparkmim.data.volumes.cases.find_cases`.

    Raises:
        ValueError: if there are none.
    """
    return find_cases(path_of(address), option, channels=channels)


def path_of(address: str | Path) -> Path:
    """Return the folder, table or file of an address of volumes."""
    return Path(str(address).removeprefix(SCHEME)).expanduser().absolute()


def open_prepared(address: str | Path, preparation: Preparation, option: str = "--data") -> UnpreparedVolumes:
    """Return the volumes at an address, each prepared when it is opened, as those were that a network has learned from.

    Raises:
        ValueError: if there are none.
    """
    return UnpreparedVolumes(cases_at(address, option, len(preparation.kinds)), preparation)


class Stores:
    """Prepares the volumes of a run.

    Args:
        beside: the run's folder, whose neighbor holds the stores if the user names no other; None prepares nothing, and
            volumes are resampled whenever they are looked at.
        chosen: the folder that the user names. One that a run has recorded is read, but not written to.
        workers: processes that prepare volumes; as many as there are processor cores if None.

    Attributes:
        most_unreadable: share of the volumes that may be; with more, nothing is prepared.
    """

    most_unreadable: float = 1.0

    def __init__(
        self, beside: str | Path | None = None, chosen: str | Path | None = None, workers: int | None = None
    ) -> None:
        self.beside = None if beside is None else Path(beside).expanduser().absolute()
        self.chosen = None if chosen is None else Path(chosen).expanduser().absolute()
        self.workers = usable_cores() if workers is None else workers
        self._found: dict[str, Cases] = {}

    def name_cases(self, address: str | Path, cases: Cases) -> None:
        """Take these for the volumes at an address, which need not be one."""
        self._found[str(address)] = cases

    def _cases(self, address: str | Path, option: str) -> Cases:
        """Return the volumes at an address; those that were found before are not looked for again."""
        if str(address) not in self._found:
            self._found[str(address)] = cases_at(address, option)
        return self._found[str(address)]

    def channels(self, address: str | Path, option: str = "--data") -> int:
        """Return the channels of volumes: of most of a few that can be read. Nothing is prepared.

        Raises:
            ValueError: if there are none, or none of them can be read.
        """
        cases = self._cases(address, option)
        tried = [cases[index] for index in spread_indices(PROBED, len(cases))]
        errors, found = [], Counter[int]()
        for case in tried:
            try:
                found[len(read_volume(case).values)] += 1
            except UnreadableImage as error:
                errors.append(f"{printable(case.name)}: {error}")
            if found and max(found.values()) > len(tried) // 2:
                break
        if found:
            return found.most_common(1)[0][0]
        raise ValueError(f"{option} {address}: none of {len(tried)} volumes tried can be read; {errors[0]}")

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
        path, cases = path_of(address), self._cases(address, option)
        settings = PrepareSettings(**{field.name: getattr(config, field.name) for field in fields(PrepareSettings)})
        preparation = None if like is None else prepared_as(like)
        if self.beside is None:
            return UnpreparedVolumes(cases, settings if preparation is None else preparation)
        text = repr((str(path), settings, preparation)).replace(f", orientation={RAS!r}", "")  # as older versions did
        key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{path.name}-{key}"
        root = self.beside.parent / STORES if self.chosen is None else self.chosen
        if config.store is not None and self.chosen is None and is_store(Path(config.store) / name):
            root = Path(config.store)
        with locked(root / f".{name}.lock"):
            return prepare(
                cases,
                settings,
                root / name,
                workers=self.workers,
                preparation=preparation,
                most_unreadable=self.most_unreadable,
            )


def prepared_as(source: ImageSource) -> Preparation | None:
    """Return what was done to volumes; None for images."""
    source = whole_of(source)
    if isinstance(source, UnpreparedVolumes):
        return source.preparation
    return preparation_of(source) if isinstance(source, PreparedVolumes) else None


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        if not lock_file(file):
            log.info(f"waiting for another process that prepares {path.with_suffix('')}")
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
