"""Compute the maps of a frozen teacher once: in parallel, resumable, in half precision."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..data.config import DataConfig, FileConfig
from ..data.decoding.encoded import Croppable, UnreadableImage
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalize, join
from ..data.sources.base import ImageSource, Subset, open_image
from ..data.statistics import first_readable
from ..data.teachers.maps import (
    COMPUTED,
    UNREADABLE,
    ImageTeacherMaps,
    MapsLayout,
    TeacherMaps,
    open_array,
    read_identity,
)
from ..data.teachers.volume_maps import VolumeMapsLayout, VolumeTeacherMaps, map_of_tiles
from ..data.views import WholeView
from ..data.volumes.opening import prepared_as
from ..training.resume import fingerprint_of
from ..utils.distributed import by_first_process, gather
from ..utils.io import write_json
from ..utils.logging import log
from ..utils.text import counted, duration
from .teachers import Teacher
from .volumes import extents_of

SCALED_BY = {2: 32, 3: 4}
"""Images, and volumes, whose maps tell the scale by which all are divided."""

SAID = 30.0
"""Seconds between two lines on the progress."""


class TeacherStore(NamedTuple):
    """Where the maps of a teacher for some images are.

    Attributes:
        folder: of the store, named by what it is of: another run on the same images finds it again.
        identity: what it is of.
        layout: of its arrays.
        teacher: that computes it.
        source: the images.
        data: how files are read.
    """

    folder: Path
    identity: dict[str, Any]
    layout: MapsLayout | VolumeMapsLayout
    teacher: Teacher
    source: ImageSource
    data: DataConfig

    def maps(self, grid: Sequence[int], *, blank: bool = False) -> TeacherMaps:
        """Return the store to read from."""
        if isinstance(self.layout, VolumeMapsLayout):
            return VolumeTeacherMaps(self.folder, self.layout, grid, blank=blank)
        return ImageTeacherMaps(self.folder, self.layout, grid, blank=blank)

    def missing(self) -> np.ndarray:
        """Return the numbers of the images that are not computed yet."""
        if not (self.folder / "state.npy").is_file():
            return np.arange(self.layout.images)
        return np.flatnonzero(open_array(self.folder, "state", self.layout) == 0)

    def __str__(self) -> str:
        """Return its size and place, and how far it is."""
        layout, missing = self.layout, len(self.missing())
        about = "about " if layout.estimated else ""
        size = f"{layout.bytes / 2**30:.2f} GiB" if layout.bytes >= 2**30 / 10 else f"{layout.bytes / 2**20:.2g} MiB"
        state = "used again" if not missing else "to be computed" if missing == layout.images else "to be continued"
        return f"{layout}, {about}{size} in half precision, {state}: {self.folder}"


def find_store(root: Path, teacher: Teacher, source: ImageSource, data: DataConfig, files: FileConfig) -> TeacherStore:
    """Return the store of a teacher for some images below a folder; nothing is computed or written.

    Raises:
        ValueError: if the teacher cannot read the images.
    """
    first_readable(source, teacher.in_chans, files)
    maps, pooled = teacher.run(torch.zeros(1, teacher.in_chans, *teacher.size))
    layout: MapsLayout | VolumeMapsLayout
    if teacher.dims == 3:
        extents, stride = extents_of(source), _stride(teacher, maps)
        layout = VolumeMapsLayout(
            extents.sizes.tolist(), maps.shape[1], stride, pooled.shape[1], estimated=extents.estimated
        )
        mirrored = False
    else:
        mirrored = data.flip
        layout = MapsLayout(
            len(source), 2 if mirrored else 1, maps.shape[1], (maps.shape[2], maps.shape[3]), pooled.shape[1]
        )
    prepared = prepared_as(source)
    identity = {
        "format": 1,
        "teacher": teacher.digest(),
        "images": fingerprint_of(source),
        "mirrored": mirrored,
        "files": [files.pages, files.nodata],
        **({} if prepared is None else {"prepared": prepared.as_json()}),
    }
    identity = json.loads(json.dumps(identity))  # as it is read again
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    view = replace(data, image_size=teacher.size, mean=teacher.mean, std=teacher.std)
    return TeacherStore(root / f"teacher-{name}", identity, layout, teacher, source, view)


def compute_store(store: TeacherStore, fabric: Fabric, *, batch_size: int, workers: int) -> None:
    """Compute what a store lacks; all processes share the work.

    Raises:
        ValueError: if the disk is too full, the folder holds another store, or no image can be read.
    """
    missing = gather(fabric, store.missing())[0]
    if not len(missing):
        return
    by_first_process(fabric, lambda: _create(store))
    own = missing[fabric.global_rank :: fabric.world_size]
    teacher, device = store.teacher, fabric.device
    what = "image" if teacher.dims == 2 else "volume"
    teacher.network.to(device)
    scale = float(read_identity(store.folder)["scale"])
    arrays = {name: open_array(store.folder, name, store.layout, "r+") for name in ("maps", "pooled", "state")}
    begun = said = time.monotonic()
    done = 0
    if fabric.is_global_zero:
        log.info(f"teacher: computing {len(missing):,} of {counted(store.layout.images, what)} in {store.folder}")
    for part in _taught(store, own, device, batch_size, workers):
        for row, maps, pooled in zip(part.rows, part.maps, part.pooled, strict=True):
            arrays["maps"][store.layout.rows(row)] = _half(maps / scale)
            arrays["pooled"][row] = _half(pooled)
            arrays["state"][row] = COMPUTED
        arrays["state"][part.broken] = UNREADABLE
        done += len(part.rows) + len(part.broken)
        if fabric.is_global_zero and time.monotonic() - said > SAID:
            said = time.monotonic()
            left = (said - begun) / done * (len(own) - done)
            log.info(f"teacher: {done:,} of {counted(len(own), what)}; {duration(left)} left")
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    teacher.network.to("cpu")
    gather(fabric, None)  # nobody reads before all have written
    if fabric.is_global_zero:
        log.info(
            f"teacher: done in {duration(time.monotonic() - begun)}; runs on the same {what}s with --teacher-store "
            f"{store.folder.parent} use it again"
        )
    if not (open_array(store.folder, "state", store.layout) == COMPUTED).any():
        raise ValueError(f"the teacher can read none of {counted(store.layout.images, what)}; remove {store.folder}")


class TaughtPart(NamedTuple):
    """What a teacher makes of some images: maps and vectors by row, and rows of images that cannot be read."""

    rows: list[int]
    maps: list[Tensor]
    pooled: list[Tensor]
    broken: list[int]


def _taught(
    store: TeacherStore, own: np.ndarray, device: torch.device, batch_size: int, workers: int
) -> Iterator[TaughtPart]:
    """Yield what the teacher makes of the images of some rows, in order."""
    if store.teacher.dims == 3:
        yield from _taught_volumes(store, own, device)
        return
    layout = store.layout
    assert isinstance(layout, MapsLayout)
    views = PlainViews(Subset(store.source, own), WholeView(store.data), store.teacher.in_chans)
    normalize = Normalize(store.data, device)
    with read(plain_batches(views, batch_size, workers)) as batches:
        for batch in batches:
            broken = [int(own[index]) for index, _ in batch.broken]
            maps: list[Tensor] = []
            pooled: list[Tensor] = []
            if batch.images:
                images = normalize(join(batch.images))
                parts = [store.teacher.run(way) for way in [images, images.flip(-1)][: layout.ways]]
                maps = [*torch.stack([part[0] for part in parts], 1).cpu()]  # of a batch at once
                pooled = [*torch.stack([part[1] for part in parts], 1).cpu()]
            yield TaughtPart([int(own[index]) for index in batch.indices], maps, pooled, broken)


def _taught_volumes(store: TeacherStore, own: np.ndarray, device: torch.device) -> Iterator[TaughtPart]:
    """Yield what the teacher makes of each volume by tiles, its map as rows of positions."""
    layout, teacher = store.layout, store.teacher
    assert isinstance(layout, VolumeMapsLayout)
    normalize = Normalize(store.data, device)
    for row in own.tolist():
        try:
            volume = open_image(store.source, row, store.data)
            if not isinstance(volume, Croppable):
                raise UnreadableImage("it is a picture, and the teacher takes volumes")
            if volume.shape[0] != teacher.in_chans:
                raise UnreadableImage(f"it has {volume.shape[0]} channels, and the teacher takes {teacher.in_chans}")
            found = map_of_tiles(lambda tile: teacher.run(normalize(tile)), volume, teacher.size, layout.stride)
        except UnreadableImage:
            yield TaughtPart([], [], [], [row])
        else:
            yield TaughtPart([row], [found.maps.flatten(1).T], [found.pooled], [])


def _stride(teacher: Teacher, maps: Tensor) -> tuple[int, ...]:
    """Return the voxels between the positions of a teacher's map.

    Raises:
        ValueError: if they do not divide its tiles.
    """
    if any(n % m for n, m in zip(teacher.size, maps.shape[2:], strict=True)):
        raise ValueError(
            f"the teacher {teacher.name} makes maps of {tuple(maps.shape[2:])} positions of tiles of {teacher.size} "
            "voxels, which they do not divide; name a multiple of its stride with --teacher-size"
        )
    return tuple(n // m for n, m in zip(teacher.size, maps.shape[2:], strict=True))


def _half(values: Tensor) -> np.ndarray:
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half().cpu().numpy()  # type: ignore[no-any-return]


def _create(store: TeacherStore) -> None:
    """Create the files of a store, if there are none yet."""
    found = read_identity(store.folder)
    if found and {name: found.get(name) for name in store.identity} != store.identity:
        raise ValueError(f"{store.folder} holds maps of another teacher or of other images; remove it")
    if found and all((store.folder / f"{name}.npy").is_file() for name in store.layout.shapes):
        return
    root = store.folder
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if store.layout.bytes > free:
        raise ValueError(
            f"the teacher's maps take {store.layout.bytes / 2**30:.1f} GiB, and {root} has {free / 2**30:.1f} GiB "
            "free; name another disk with --teacher-store, or use a smaller --teacher-size"
        )
    for name, shape in store.layout.shapes.items():
        np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            root / f"{name}.npy", mode="w+", dtype=np.uint8 if name == "state" else np.float16, shape=shape
        )
    write_json(root / "identity.json", {**store.identity, "scale": _scale(store)})


def _scale(store: TeacherStore) -> float:
    """Return the root mean square of the maps of the first images that can be read."""
    first = np.arange(min(SCALED_BY[store.teacher.dims], len(store.source)))
    parts = _taught(store, first, torch.device("cpu"), 1, 0)
    squares = [maps.square().mean() for part in parts for maps in part.maps]
    found = float(torch.stack(squares).mean().sqrt()) if squares else 1.0
    return found or 1.0
