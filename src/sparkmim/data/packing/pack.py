"""Pack images into tar files with an index: resumable, each file whole or not there, and read back."""

from __future__ import annotations

import io
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch.utils.data import Dataset

from ...utils.fields import validate_as
from ...utils.io import HALF, require_utf8, write_atomically
from ...utils.logging import log
from ...utils.text import counted, duration, printable
from ..config import ViewConfig
from ..decoding.encoded import UnreadableImage
from ..sources.address import open_source
from ..sources.base import ImageSource
from ..storage.reading import facts
from ..storage.tar_index import ENDING, build_index, key_of, map_index, read_member
from ..volumes.opening import are_volumes
from ..workers import Loader, ignore_signals
from .encoding import encode
from .plan import (
    Plan,
    address_of,
    classes_to_record,
    estimate,
    images_of,
    in_units,
    packed_name,
    plan_at,
    read_content,
    require_own_names,
    require_room,
    shard_name,
    share_keys,
)

SHARD_MB = 500.0
"""Size of a tar file in megabytes, about."""

LINE_SECONDS = 5.0
"""Seconds between two lines of progress, at least."""


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        address: of the tar files.
        images: number of them.
        size: bytes of all tar files.
        shards: number of tar files.
        skipped: name and error of each image that cannot be read, of those packed now.
    """

    address: str
    images: int
    size: int
    shards: int
    skipped: list[tuple[str, str]]


class _Done(NamedTuple):
    """A tar file that is there: its images and bytes, and what could not be packed into it."""

    images: int
    size: int
    skipped: list[tuple[str, str]]


def pack(
    data: str | Path,
    output: str | Path,
    *,
    shard_mb: float = SHARD_MB,
    resize: int | None = None,
    quality: int | None = None,
    workers: int = 2,
) -> Packed:
    """Pack images into tar files. What is there of an earlier call, which was interrupted, is kept.

    Args:
        data: folder or address of the images.
        output: folder of the tar files.
        shard_mb: megabytes of a tar file, about.
        resize: most pixels of an image's shorter side.
        quality: of JPEG, from 1 to 100, as which all images of 8 bits are written; files stay as they are if None.
        workers: processes that read and encode, each a tar file at a time.

    Raises:
        ValueError: for settings and images that do not fit, or an output folder of other images.
        OSError: if a tar file cannot be written, or does not hold what was written.
    """
    validate_as(ViewConfig, workers=workers)
    if not shard_mb > 0 or (resize is not None and resize < 1) or (quality is not None and not 1 <= quality <= 100):
        raise ValueError(
            f"--shard-mb {shard_mb:g} must be above 0, --resize {resize} at least 1, and --quality {quality} 1 to 100"
        )
    if are_volumes(data):
        raise ValueError(
            f"{data} holds volumes, which are not packed: they are prepared into a store, which is compressed and read "
            "by crops (sparkmim pretrain --store)"
        )
    output = Path(output).expanduser().absolute()
    require_utf8(output, "--output")
    source = open_source(data)
    if resize is not None or quality is not None:
        require_own_names(source)
    several = share_keys(source)
    classes = classes_to_record(source)
    if several and classes is not None:
        raise ValueError("images that share a key (a.1.png and a.2.png) cannot have classes of their own; rename them")
    each = estimate(source, resize, quality)
    log.info(f"{counted(len(source), 'image')}, about {in_units(each * len(source))} packed")
    plan = Plan(images_of(source), max(1, round(shard_mb * 1e6 / each)), resize, quality)
    if not output.exists():
        require_room(output, each * len(source))
    plan = plan_at(output, plan)
    for left in output.iterdir():
        if HALF.fullmatch(left.name):
            left.unlink()
    done = list(_each_shard(_Shards(source, output, plan, classes), workers))
    skipped = [pair for shard in done for pair in shard.skipped]
    for name, error in skipped:
        log.warning(f"not packed: {printable(name)}: {error}")
    return Packed(
        address_of(output, len(done), several=several),
        sum(shard.images for shard in done),
        sum(shard.size for shard in done),
        len(done),
        skipped,
    )


class _Failed(NamedTuple):
    """What was raised in a worker process."""

    error: Exception


class _Shards(Dataset[Any]):
    """Tar files, each written when it is looked up."""

    def __init__(self, source: ImageSource, output: Path, plan: Plan, classes: Sequence[str] | None) -> None:
        self.source, self.output, self.plan, self.classes = source, output, plan, classes
        self.shards = plan.shards(len(source))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> _Done | _Failed:
        try:
            return self._write(number)
        except (OSError, ValueError) as error:  # torch would put a traceback into its message
            return _Failed(error)

    def _write(self, number: int) -> _Done:
        path = self.output / shard_name(number)
        index = Path(f"{path}{ENDING}")
        with suppress(OSError, ValueError):  # it is not there, or not whole
            found = map_index(index)
            if found.tar == facts(str(path)):
                return _Done(len(found), found.tar.size, [])
        checksums: dict[str, int] = {}
        skipped: list[tuple[str, str]] = []
        write_atomically(path, lambda file: self._fill(file, number, checksums, skipped))
        _verify(path, checksums)
        return _Done(len(checksums), path.stat().st_size, skipped)

    def _fill(self, file: BinaryIO, number: int, checksums: dict[str, int], skipped: list[tuple[str, str]]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for index in self.shards[number]:
                try:
                    content = read_content(self.source, index)
                except UnreadableImage as error:
                    skipped.append((self.source.name(index), str(error)))
                    continue
                plan, extension = self.plan, None
                if plan.resize is not None or plan.quality is not None:
                    content, extension = encode(content, self.source.name(index), plan.resize, plan.quality)
                name = packed_name(self.source, index, content, extension)
                _add(tar, name, content)
                checksums[name] = zlib.crc32(content)
                if self.classes is not None:
                    _add(tar, f"{key_of(name)[0]}.cls", self.classes[index].encode(errors="surrogateescape"))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _verify(path: Path, checksums: dict[str, int]) -> None:
    """Read a tar file back, and write its index, which says that it is whole.

    Raises:
        OSError: if it does not hold what was written; it is removed.
    """
    try:
        found = build_index(str(path))
        if sorted(found.names) != sorted(checksums):
            raise OSError("its names are not those that were written")
        for place, name in enumerate(found.names):
            content = read_member(str(path), int(found.offsets[place]), int(found.sizes[place]), found.tar.stamp)
            if zlib.crc32(content) != checksums[name]:
                raise OSError(f"{printable(name)} is not what was written")
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path} could not be read back ({error}); see the disk, and pack again") from error
    found.write(Path(f"{path}{ENDING}"))


def _each_shard(shards: _Shards, workers: int) -> Iterator[_Done]:
    """Write all tar files, and say how far it is.

    Raises:
        OSError: if one cannot be written; those that are whole stay.
    """
    workers = min(workers, len(shards))
    loader: Any = Loader(
        shards, batch_size=None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=ignore_signals
    )
    start = last = time.monotonic()
    for number, done in enumerate(loader, start=1):
        if isinstance(done, _Failed):
            raise done.error
        yield done
        now = time.monotonic()
        if now - last >= LINE_SECONDS and number < len(shards):
            last = now
            left = (now - start) / number * (len(shards) - number)
            log.info(f"packed {number} of {counted(len(shards), 'tar file')}, {duration(left)} left")


def _as_it_is(done: Any) -> Any:
    return done
