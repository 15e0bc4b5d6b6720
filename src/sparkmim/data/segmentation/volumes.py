"""Volumes with label maps, for segmentation in three dimensions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...utils.text import printable
from ..config import VolumeConfig
from ..sources.base import ImageSource, Subset
from ..tables import named
from ..volumes.base import CHANNEL, Case, Cases
from ..volumes.cases import find_cases, is_volumes
from ..volumes.extensions import READABLE
from ..volumes.label_store import LabelEntry, prepare_labels
from ..volumes.opening import Stores
from ..volumes.store import PreparedVolumes
from .classes import IGNORED, MOST_CLASSES, ClassTable, read_classes, table_of
from .pairs import Place, by_stem, files_below, find_folders, match, read_pairs

DESCRIPTION = "dataset.json"
"""What nnU-Net and the Decathlon describe a data set by."""


@dataclass(frozen=True)
class SegmentedVolumes:
    """Prepared volumes and their label maps.

    Attributes:
        source: the volumes.
        labels: the label maps, in the volumes' order.
        pixels: voxels of each class as drawn, `(N, classes)`.
        table: the classes.
    """

    source: ImageSource
    labels: tuple[LabelEntry, ...]
    pixels: np.ndarray
    table: ClassTable

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> SegmentedVolumes:
        """Return some of the volumes with their label maps."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = tuple(self.labels[index] for index in chosen.tolist())
        return replace(self, source=Subset(self.source, chosen), labels=labels, pixels=self.pixels[chosen])

    def digest(self) -> str:
        """Return a short digest of the classes and of how many voxels of each the label maps hold."""
        table = repr((self.table.names, self.table.values, self.table.ignore)).encode(errors="surrogateescape")
        return hashlib.sha256(table + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:16]

    def places(self, index: int) -> dict[int, list[list[int]]]:
        """Return some voxels of each class of a volume but the background, by the classes' values."""
        known = set(self.table.values)
        background = self.table.background
        aside = {self.table.ignore, *([] if background is None else [self.table.values[background]])}
        return {value: voxels for value, voxels in self.labels[index].places.items() if value in known - aside}

    def numbers(self, labels: Tensor) -> Tensor:
        """Return the number of the class of each label, uint8; 255 for those of none and for -1."""
        values = labels.numpy()
        found = self.table.numbers_of(np.where(values < 0, 0, values))
        return torch.from_numpy(np.where(values < 0, IGNORED, found).astype(np.uint8))


def holds_volumes(data: str | Path) -> bool:
    """Return whether an address is of volumes: by its scheme, or by the extensions of the files there."""
    place = Place.of(data)
    return place.volumes or (not place.is_coco and place.path.exists() and is_volumes(place.path))


def cases_of(place: Place, option: str) -> tuple[Cases, dict[str, Path]]:
    """Return the volumes of a split, and their label maps by the volumes' names.

    Raises:
        ValueError: for volumes without a label map, and label maps without a volume.
    """
    if place.is_table:
        pairs = read_pairs(place.path, place.split)
        cases = Cases(Case(pair.image, (place.path.parent / pair.image,)) for pair in pairs)
        return cases, {pair.image: pair.mask for pair in pairs}
    folders = find_folders(place, option)
    described = (place.path / DESCRIPTION).is_file() and folders.images.name == "imagesTr"
    cases = find_cases(place.path if described else folders.images, option)
    masks = by_stem(files_below(folders.masks, READABLE), folders.masks)
    paths = {stem: folders.masks / name for stem, name in masks.items()}
    stems = by_stem([case.name for case in cases], folders.images)
    stems = {_case_of(stem, paths): name for stem, name in stems.items()}
    if described:  # it may list a part of the files
        paths = {stem: path for stem, path in paths.items() if stem in stems}
    return cases, {pair.image: pair.mask for pair in match(stems, paths, folders)}


def _case_of(stem: str, masks: dict[str, Path]) -> str:
    """Return the name of a volume without the number of its only channel, if its label map is named so."""
    numbered = CHANNEL.fullmatch(stem)
    return numbered[1] if stem not in masks and numbered is not None and numbered[1] in masks else stem


def channels_of(place: Place, stores: Stores, option: str) -> int:
    """Return the channels of volumes.

    Raises:
        ValueError: if there are none, or none of them can be read.
    """
    stores.name_cases(_address(place), cases_of(place, option)[0])
    return stores.channels(_address(place), option)


def read_volumes(
    place: Place,
    stores: Stores,
    config: VolumeConfig,
    table: ClassTable | None,
    ignore: int,
    option: str,
    like: ImageSource | None = None,
) -> SegmentedVolumes:
    """Prepare volumes and label maps, and check each label map.

    Args:
        place: where they are.
        stores: prepares volumes.
        config: how.
        table: the classes; None to take nnU-Net's of the data set, or the values that label maps hold.
        ignore: value of voxels of no class.
        option: that named the place, for messages.
        like: prepared volumes by whose spacing and intensities these are prepared.

    Raises:
        ValueError: for volumes without label maps and label maps without volumes, other sizes and places in the world,
            values that are not classes, naming the file, the value and the remedy.
    """
    cases, files = cases_of(place, option)
    stores.name_cases(_address(place), cases)
    source = stores.open(_address(place), config, like, option)
    sizes: dict[str, tuple[int, ...]] = {}
    if isinstance(source, PreparedVolumes):
        sizes = {case.name: tuple(case.shape) for case in source.fingerprint.cases}
    labels = prepare_labels(source, files, sizes, stores.workers)
    if table is None:
        table = _found_table(place, labels, ignore, option)
    counts = np.array([_counts(entry, table) for entry in labels]).reshape(-1, len(table))
    if not counts.any():
        raise ValueError(f"no voxel of the label maps of {option} {printable(str(place.path))} has a class")
    return SegmentedVolumes(source, tuple(labels), counts, table)


def _address(place: Place) -> Path:
    """Return what a store is named after."""
    return place.path if place.split is None else Path(f"{place.path}-{place.split}")


def _counts(entry: LabelEntry, table: ClassTable) -> list[int]:
    table.require_known(entry.counts, entry.file, "label map", "voxels")
    return [entry.counts.get(value, 0) for value in table.values]


def _found_table(place: Place, labels: Sequence[LabelEntry], ignore: int, option: str) -> ClassTable:
    """Return the classes that nnU-Net's description names, or those that label maps hold."""
    description = place.path / DESCRIPTION
    if not place.is_table and description.is_file():
        return read_classes(description, ignore)
    values = sorted({value for entry in labels for value in entry.counts} - {ignore})
    if not 2 <= len(values) <= MOST_CLASSES:
        raise ValueError(
            f"the label maps of {option} {printable(str(place.path))} hold {len(values)} different values "
            f"({named(list(map(str, values)))}); expected 2 to {MOST_CLASSES} classes"
        )
    return table_of(values, ignore, volumes=True)


def sizes_of(volumes: SegmentedVolumes) -> np.ndarray:
    """Return the voxels of each prepared volume along each axis, `(N, 3)`."""
    return np.array([entry.shape[1:] for entry in volumes.labels])
