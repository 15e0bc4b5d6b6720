"""Compute the maps of a frozen teacher once: in parallel, resumable, in half precision."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..data.config import DataConfig, FileConfig
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalize, join
from ..data.sources.base import ImageSource, Subset
from ..data.statistics import first_readable
from ..data.teachers.maps import COMPUTED, UNREADABLE, MapsLayout, TeacherMaps, open_array, read_identity
from ..data.views import WholeView
from ..training.resume import fingerprint_of
from ..utils.distributed import by_first_process, gather
from ..utils.io import write_json
from ..utils.logging import log
from ..utils.text import duration
from .teachers import Teacher

SCALED_BY = 32
"""Images whose maps tell the scale by which all are divided."""

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
    layout: MapsLayout
    teacher: Teacher
    source: ImageSource
    data: DataConfig

    def maps(self, grid: Sequence[int], *, blank: bool = False) -> TeacherMaps:
        """Return the store to read from."""
        return TeacherMaps(self.folder, self.layout, grid, blank=blank)

    def missing(self) -> np.ndarray:
        """Return the numbers of the images that are not computed yet."""
        if not (self.folder / "state.npy").is_file():
            return np.arange(self.layout.images)
        return np.flatnonzero(open_array(self.folder, "state", self.layout) == 0)

    def __str__(self) -> str:
        """Return its size and place, and how far it is."""
        layout, missing = self.layout, len(self.missing())
        size = f"{layout.bytes / 2**30:.2f} GiB" if layout.bytes >= 2**30 / 10 else f"{layout.bytes / 2**20:.2g} MiB"
        mirrors = " and their mirrors" if layout.ways > 1 else ""
        state = "used again" if not missing else "to be computed" if missing == layout.images else "to be continued"
        return (
            f"maps of {layout.channels} x {layout.size[0]} x {layout.size[1]} and vectors of {layout.pooled} of "
            f"{layout.images:,} images{mirrors}, {size} in half precision, {state}: {self.folder}"
        )


def find_store(root: Path, teacher: Teacher, source: ImageSource, data: DataConfig, files: FileConfig) -> TeacherStore:
    """Return the store of a teacher for some images below a folder; nothing is computed or written.

    Raises:
        ValueError: if the teacher cannot read the images.
    """
    first_readable(source, teacher.in_chans, files)
    maps, pooled = teacher.run(torch.zeros(1, teacher.in_chans, *teacher.size))
    ways = 2 if data.flip else 1
    layout = MapsLayout(len(source), ways, maps.shape[1], (maps.shape[2], maps.shape[3]), pooled.shape[1])
    identity = {
        "format": 1,
        "teacher": teacher.digest(),
        "images": fingerprint_of(source),
        "mirrored": ways > 1,
        "files": [files.pages, files.nodata],
    }
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
    teacher.network.to(device)
    scale = float(read_identity(store.folder)["scale"])
    arrays = {name: open_array(store.folder, name, store.layout, "r+") for name in ("maps", "pooled", "state")}
    views = PlainViews(Subset(store.source, own), WholeView(store.data), teacher.in_chans)
    normalize = Normalize(store.data, device)
    begun = said = time.monotonic()
    done = 0
    if fabric.is_global_zero:
        log.info(f"teacher: computing {len(missing):,} of {store.layout.images:,} images in {store.folder}")
    with read(plain_batches(views, batch_size, workers)) as batches:
        for batch in batches:
            if batch.images:
                images = normalize(join(batch.images))
                ways = [images, images.flip(-1)][: store.layout.ways]
                parts = [teacher.run(way) for way in ways]
                rows = own[batch.indices]
                arrays["maps"][rows] = _half(torch.stack([maps for maps, _ in parts], 1) / scale)
                arrays["pooled"][rows] = _half(torch.stack([pooled for _, pooled in parts], 1))
                arrays["state"][rows] = COMPUTED
            for index, _ in batch.broken:
                arrays["state"][own[index]] = UNREADABLE
            done += len(batch.indices) + len(batch.broken)
            if fabric.is_global_zero and time.monotonic() - said > SAID:
                said = time.monotonic()
                left = (said - begun) / done * (len(own) - done)
                log.info(f"teacher: {done:,} of {len(own):,} images; {duration(left)} left")
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    teacher.network.to("cpu")
    gather(fabric, None)  # nobody reads before all have written
    if fabric.is_global_zero:
        log.info(
            f"teacher: done in {duration(time.monotonic() - begun)}; runs on the same images with --teacher-store "
            f"{store.folder.parent} use it again"
        )
    if not (open_array(store.folder, "state", store.layout) == COMPUTED).any():
        raise ValueError(f"the teacher can read none of {store.layout.images} images; remove {store.folder}")


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
    views = PlainViews(store.source, WholeView(store.data), store.teacher.in_chans)
    normalize, squares = Normalize(store.data), []
    for index in range(min(SCALED_BY, len(store.source))):
        batch = views[index]
        if batch.images:
            squares.append(store.teacher.run(normalize(join(batch.images)))[0].square().mean())
    found = float(torch.stack(squares).mean().sqrt()) if squares else 1.0
    return found or 1.0
