"""Label maps of volumes in the geometry of the prepared volumes: kept in the store beside them, read by crops."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.io import write_atomically
from ...utils.text import printable
from ..decoding.encoded import UnreadableImage
from ..sources.base import ImageSource
from .formats import read_files
from .geometry import axes_along, reordered, require_rectangular, to_ras
from .parallel import each
from .store import PreparedVolumes, StoredVolume, compress, open_array

VERSION = 1
"""Of what is done to label maps; another one prepares them anew."""

LABELS = "labels"
"""Folder of a store."""

PLACES = 1000
"""Voxels of each label whose places are kept, spread over all of them."""

LARGEST = 65_535

ALONG = 0.02
"""Largest cosine between axes of a volume and of its label map, and share of a voxel by which grids may differ."""


class LabelMap(NamedTuple):
    """A label map as it was drawn, in RAS orientation.

    Attributes:
        values: `(X, Y, Z)`, uint16.
        affine: 4x4, from voxels to the RAS world.
    """

    values: np.ndarray
    affine: np.ndarray


class LabelEntry(NamedTuple):
    """A label map of a store.

    Attributes:
        file: of it as it was drawn.
        content: file of the prepared one, or itself, `(1, *size)`, uint16.
        shape: `(1, *size)`, its axes in the order of the preparation's orientation.
        affine: 4x4, from voxels to the RAS world.
        counts: voxels of each label as it was drawn.
        places: some voxels of each label other than 0, prepared.
        size: voxels along each axis as it was drawn, RAS.
    """

    file: Path
    content: Path | np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    counts: Mapping[int, int]
    places: Mapping[int, list[list[int]]]
    size: tuple[int, ...]

    def open(self) -> StoredVolume:
        """Return the prepared label map, of which nothing is read yet."""
        return StoredVolume(self.content, self.shape, self.affine)


def read_label_map(path: Path) -> LabelMap:
    """Read the file of a label map.

    Raises:
        ValueError: if it cannot be read, has several channels, or values that are not labels, naming the file.
    """
    where = f"the label map {printable(str(path))}"
    try:
        grid = read_files([path])
        require_rectangular(grid.affine)
    except UnreadableImage as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if len(grid.values) != 1:
        raise ValueError(
            f"{where} has {len(grid.values)} channels; expected one label for each voxel, as np.argmax over channels "
            "gives"
        )
    values, affine = to_ras(*grid)
    values = values[0]
    odd = ~((values >= 0) & (values <= LARGEST) & (values == np.round(values)))
    if odd.any():
        raise ValueError(
            f"{where} holds {float(values[odd].flat[0]):g}, which is not a label; expected whole numbers from 0 to "
            f"{LARGEST}"
        )
    return LabelMap(values.astype(np.uint16), affine)


def grid_in(affine: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return how the voxels of one grid lie in another one: scale and offset along each axis.

    Voxel `i` of the grid `affine` is at `scale * i + offset` in that of `other`.

    Returns:
        None if their axes are not the same.
    """
    between = np.linalg.inv(other) @ affine
    scale = np.diag(between)[:3]
    crossed = np.abs(between[:3, :3] - np.diag(scale)).max()
    if crossed > ALONG * np.abs(scale).min() or (scale <= 0).any():
        return None
    return scale, between[:3, 3]


def resample_labels(labels: LabelMap, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Return the label map on another grid, that of the nearest voxel at each of its places.

    Args:
        labels: as drawn.
        affine: of the grid, whose axes may be in another order.
        shape: of the grid.

    Returns:
        None if the grids have different axes, or the label map does not cover the other one.
    """
    axes = axes_along(labels.affine, affine)
    placed = None if axes is None else grid_in(affine, reordered(labels.affine, axes))
    if axes is None or placed is None:
        return None
    values = labels.values.transpose(axes)
    for axis, (scale, offset, size) in enumerate(zip(*placed, shape, strict=True)):
        places = np.arange(size) * scale + offset
        extent = values.shape[axis]
        if places[0] < -0.5 - ALONG or places[-1] > extent - 0.5 + ALONG:
            return None
        # Half a voxel up, less what rounding adds, as slices are chosen when volumes are resampled.
        values = values.take(np.clip(np.floor(places + 0.5 - 1e-6), 0, extent - 1).astype(int), axis)
    return values


def places_of(values: np.ndarray) -> dict[int, list[list[int]]]:
    """Return up to a thousand voxels of each label but 0, spread evenly over them."""
    found: dict[int, list[list[int]]] = {}
    for label in np.unique(values).tolist():
        if label:
            voxels = np.argwhere(values == label)
            rows = np.unique(np.linspace(0, len(voxels) - 1, min(PLACES, len(voxels))).astype(int))
            found[label] = voxels[rows].tolist()
    return found


class _Job(NamedTuple):
    name: str
    file: Path
    affine: np.ndarray
    shape: tuple[int, ...]
    size: tuple[int, ...] | None
    path: Path | None


def prepare_labels(
    source: ImageSource, files: Mapping[str, Path], sizes: Mapping[str, tuple[int, ...]], workers: int
) -> list[LabelEntry]:
    """Bring label maps into the geometry of prepared volumes, in their order.

    Those of a store are kept in it; of volumes that are prepared in memory they are too.

    Args:
        source: prepared volumes.
        files: of the label maps, by the volumes' names.
        sizes: voxels of the volumes as they were taken, RAS, by name, where they are known.
        workers: processes.

    Raises:
        ValueError: if a label map is none, or does not lie on its volume's grid; naming the file.
    """
    jobs = []
    for index in range(len(source)):
        name = source.name(index)
        if isinstance(source, PreparedVolumes):
            entry = source.entries[index]
            key = hashlib.sha256(json.dumps([VERSION, entry.key, _identity(files[name])]).encode()).hexdigest()[:32]
            path: Path | None = source.root / LABELS / f"{key}.b2nd"
            jobs.append(_Job(name, files[name], entry.affine, entry.shape[1:], sizes.get(name), path))
        else:
            volume: Any = source.open(index)
            jobs.append(_Job(name, files[name], volume.affine, volume.shape[1:], sizes.get(name), None))
    found = {job.name: _read_entry(job) for job in jobs}
    left = [job for job in jobs if found[job.name] is None]
    for job, result in zip(left, each(_prepare, left, workers, "preparing labels"), strict=True):
        if isinstance(result, str):
            raise ValueError(result)
        found[job.name] = _read_entry(job) if job.path is not None else result
    entries = [found[job.name] for job in jobs]
    lost = [str(job.path) for job, entry in zip(jobs, entries, strict=True) if entry is None]
    if lost:
        raise ValueError(f"{printable(lost[0])} cannot be read after it was written; is the disk full?")
    return [entry for entry in entries if entry is not None]


def _identity(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def _prepare(job: _Job) -> LabelEntry | str | None:
    """Prepare a label map, into its file if it has one; return the error as text, since workers raise otherwise."""
    try:
        labels = read_label_map(job.file)
    except ValueError as error:
        return str(error)
    size = labels.values.shape
    if job.size is not None and tuple(job.size) != size:
        return (
            f"the label map {printable(str(job.file))} has {_by(size)} voxels, and the volume {printable(job.name)} "
            f"{_by(job.size)} (right, anterior, superior): they must be equal; resample the label map to the volume's "
            "grid without interpolation"
        )
    values = resample_labels(labels, job.affine, job.shape)
    if values is None:
        return (
            f"the label map {printable(str(job.file))} has the size of the volume {printable(job.name)} and lies "
            "elsewhere in the world (another position, spacing or direction in its header); write it with the volume's "
            "affine"
        )
    numbers, counts = np.unique(labels.values, return_counts=True)
    known = {int(value): int(count) for value, count in zip(numbers, counts, strict=True)}
    places = places_of(values)
    if job.path is None:
        return LabelEntry(job.file, values[None], (1, *values.shape), job.affine, known, places, size)
    about = {"counts": known, "places": places, "size": size}
    content = compress(np.ascontiguousarray(values[None]), job.affine, json.dumps(about))
    job.path.parent.mkdir(exist_ok=True)
    write_atomically(job.path, lambda file: file.write(content))
    return None


def _read_entry(job: _Job) -> LabelEntry | None:
    """Return a label map that was prepared before, None if it was not or cannot be read."""
    if job.path is None or not job.path.is_file():
        return None
    try:
        array = open_array(job.path)
        about = json.loads(array.vlmeta["about"])
        counts = {int(value): int(count) for value, count in about["counts"].items()}
        places = {int(value): voxels for value, voxels in about["places"].items()}
        if tuple(array.shape) != (1, *job.shape):
            return None
        return LabelEntry(
            job.file, job.path, tuple(array.shape), job.affine, counts, places, tuple(map(int, about["size"]))
        )
    except Exception:  # it is prepared again
        return None


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
