"""A store of prepared volumes: a compressed blosc2 file each, of which a crop reads only the blocks that it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...utils.io import read_json, write_json
from ...utils.text import printable
from ..decoding.encoded import Croppable, UnreadableImage
from ..sources.base import ImageSource
from .fingerprint import Fingerprint
from .geometry import spacing_of
from .libraries import library
from .settings import PrepareSettings

VERSION = 1
"""Of the layout of a store."""

MANIFEST, CACHE, FOLDER = "store.json", "measured.jsonl", "volumes"

BLOCK_BYTES, CHUNK_BYTES = 128 * 1024, 6 * 1024**2
"""Most bytes of a block, which is decompressed as a whole and fits a core's own cache, and of the chunk that holds
blocks; as nnU-Net's."""

LEVEL = 1
"""Level of compression by LZ4HC: higher ones take longer and save a hundredth; ZSTD saves a tenth, and reads crops of
128 voxels a side at half the speed."""


class Entry(NamedTuple):
    """A volume of a store.

    Attributes:
        name: of the case.
        key: of its file.
        shape: `(C, *size)`, its axes in the order of the preparation's orientation.
        affine: 4x4, from voxels to the RAS world.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    affine: np.ndarray


class StoredVolume(Croppable):
    """A prepared volume, in a store or in memory.

    Attributes:
        affine: 4x4, from its voxels to the RAS world in millimeters.
    """

    def __init__(self, content: Path | np.ndarray, shape: Sequence[int], affine: np.ndarray) -> None:
        self._content = content
        self._shape = tuple(shape)
        self.affine = affine

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(C, *size)`, its axes in the order of the preparation's orientation."""
        return self._shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the millimeters between voxels along each axis."""
        return spacing_of(self.affine)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Read a part of the volume, decompressing no more blocks than it touches.

        Args:
            start: first voxel along each axis.
            stop: the one behind the last.

        Returns:
            `(C, *crop)`, float32.

        Raises:
            ValueError: if the crop is empty or reaches beyond the volume.
            UnreadableImage: if the file cannot be read.
        """
        space = self.shape[1:]
        if len(start) != 3 or len(stop) != 3 or any(not 0 <= a < b <= n for a, b, n in zip(start, stop, space)):  # noqa: B905
            raise ValueError(
                f"expected a crop within {space}, got {tuple(start)} to {tuple(stop)}; pad the volume, or take a "
                "smaller crop"
            )
        part = (slice(None), *map(slice, start, stop))
        if isinstance(self._content, np.ndarray):
            return torch.from_numpy(self._content[part].copy())
        try:
            array = open_array(self._content)
            if array.shape != self.shape:
                raise UnreadableImage(f"expected an array of shape {self.shape}, got {array.shape}")
            return torch.from_numpy(array[part])
        except UnreadableImage:
            raise
        except Exception as error:
            raise UnreadableImage(
                f"{type(error).__name__}: {error}; {printable(self._content.name)} of the store is missing or damaged: "
                "delete it and prepare again"
            ) from error


class PreparedVolumes(ImageSource):
    """The volumes of a store.

    Attributes:
        root: folder of the store.
        settings: how they were prepared.
        fingerprint: of the volumes before.
        unreadable: name and reason of each volume that could not be read.
    """

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        settings: PrepareSettings,
        fingerprint: Fingerprint,
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.root, self.settings, self.fingerprint = root, settings, fingerprint
        self.entries, self.unreadable = list(entries), list(unreadable)

    @classmethod
    def open_store(cls, path: str | Path) -> PreparedVolumes:
        """Open a store.

        Raises:
            ValueError: if there is none at the path, or it is of another version.
        """
        root = Path(path).expanduser()
        try:
            value = read_json(root / MANIFEST)
            if value["version"] != VERSION:
                raise ValueError(f"expected version {VERSION}, got {value['version']}")
            entries = [
                Entry(str(e["name"]), _plain(e["key"]), tuple(map(int, e["shape"])), np.array(e["affine"], np.float64))
                for e in value["volumes"]
            ]
            fingerprint = Fingerprint.from_json(value["fingerprint"])
            unreadable = [(str(name), str(reason)) for name, reason in value["unreadable"]]
            return cls(root, entries, PrepareSettings.from_json(value["settings"]), fingerprint, unreadable)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{printable(str(root))} is not a store of prepared volumes ({type(error).__name__}: {error}); prepare "
                "the volumes again"
            ) from error

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """Return the name of the case."""
        return self.entries[index].name

    @property
    def shapes(self) -> np.ndarray:
        """Return the shape of each volume, `(N, 3)`: voxels along each axis."""
        return np.array([entry.shape[1:] for entry in self.entries])

    def open(self, index: int) -> StoredVolume:
        """Return a volume, of which nothing is read yet."""
        entry = self.entries[index]
        return StoredVolume(volume_path(self.root, entry.key), entry.shape, entry.affine)


def is_store(path: str | Path) -> bool:
    """Return whether a folder is a store of prepared volumes."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def write_store(
    root: Path,
    settings: PrepareSettings,
    fingerprint: Fingerprint,
    entries: Sequence[Entry],
    unreadable: Sequence[tuple[str, str]],
) -> None:
    """Write the list of a store's volumes, atomically."""
    volumes = [entry._asdict() | {"affine": entry.affine.tolist()} for entry in entries]
    about = {"version": VERSION, "settings": asdict(settings), "volumes": volumes, "unreadable": list(unreadable)}
    write_json(root / MANIFEST, about | {"fingerprint": fingerprint.as_json()})


def volume_path(root: Path, key: str) -> Path:
    """Return the file of a volume."""
    return root / FOLDER / f"{key}.b2nd"


def read_entry(root: Path, name: str, key: str) -> Entry | None:
    """Return a volume that is in a store already, None if it is not or cannot be read."""
    path = volume_path(root, key)
    if not path.is_file():
        return None
    try:
        array = open_array(path)
        return Entry(name, key, tuple(array.shape), np.array(array.vlmeta["affine"], np.float64).reshape(4, 4))
    except Exception:  # it is prepared again
        return None


def compress(values: np.ndarray, affine: np.ndarray, about: str = "") -> bytes:
    """Return the content of a .b2nd file of a volume.

    Args:
        values: `(C, *size)`.
        affine: 4x4.
        about: JSON to keep with it.
    """
    blosc2 = library("blosc2")
    blocks, chunks = partition(values.shape)
    array = blosc2.asarray(
        np.ascontiguousarray(values),
        chunks=chunks,
        blocks=blocks,
        cparams={
            "codec": blosc2.Codec.LZ4HC,
            "clevel": LEVEL,
            "nthreads": 1,
            "filters": [blosc2.Filter.SHUFFLE],
            "filters_meta": [0],
        },
    )
    array.vlmeta["affine"] = affine.ravel().tolist()
    if about:
        array.vlmeta["about"] = about
    content: bytes = array.to_cframe()
    return content


def partition(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of blocks and of chunks of a volume, as near to cubes as they can be; one channel each.

    Args:
        shape: `(C, *size)`.
    """
    space = tuple(shape[1:])
    block = [1, 1, 1]
    while True:  # double the shortest side that is shorter than the volume
        sides = [axis for axis in (2, 1, 0) if block[axis] < space[axis]]
        if not sides or 8 * math.prod(block) > BLOCK_BYTES:
            break
        axis = min(sides, key=lambda side: block[side])
        block[axis] = min(2 * block[axis], space[axis])
    chunk = list(block)
    while True:
        sides = [axis for axis in (2, 1, 0) if chunk[axis] < space[axis]]
        sides = [a for a in sides if 4 * math.prod(chunk) // chunk[a] * (chunk[a] + block[a]) <= CHUNK_BYTES]
        if not sides:
            break
        axis = min(sides, key=lambda side: chunk[side])
        chunk[axis] = min(chunk[axis] + block[axis], space[axis])
    return (1, *block), (1, *chunk)


def open_array(path: Path) -> Any:
    """Open a .b2nd file for reading, mapped into memory, in one thread."""
    return library("blosc2").open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def _plain(key: str) -> str:
    """Return the key of a file, which must not lead out of the store.

    Raises:
        ValueError: if it is none.
    """
    if not key.isalnum():
        raise ValueError(f"expected a key of letters and digits, got {key!r}")
    return key
