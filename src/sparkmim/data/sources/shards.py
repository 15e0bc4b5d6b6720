"""Images in tar files, in webdataset's format or any other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from ...utils.logging import log
from ...utils.text import counted, printable
from ..decoding.encoded import EncodedImage
from ..storage.ahead import Ahead, Piece
from ..storage.cache import cache_folder
from ..storage.fetched import FetchedFile
from ..storage.locations import expand_braces, is_remote, local_files, missing_files
from ..storage.reading import ask, facts, read_range
from ..storage.tar_index import BLOCK, TarIndex, index_of, key_of, member_in
from .base import ImageSource, inside_of

TOGETHER = 16
"""Tar files that are indexed at a time."""

ALL = "*"
"""What stands for the name of a field where every image of a sample is one of its own."""


class Shard(NamedTuple):
    """A tar file and the index of its images."""

    location: str
    images: TarIndex


class Shards(ImageSource):
    """The images of tar files, in alphabetical order of their paths in them, however they are spread over the files.

    Each is read by itself, from its offset.

    Args:
        shards: the tar files.
        order: place of each image among those of all files, one after the other; None if that is their order.
    """

    schemes = ("wds",)

    def __init__(self, shards: Sequence[Shard], order: np.ndarray | None) -> None:
        self.shards, self.order = list(shards), order
        self._ends = np.cumsum([len(shard.images) for shard in shards])
        self._ahead = Ahead()

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Shards:
        """Open tar files: a path, a pattern such as `shards-{0000..0012}.tar`, a folder, or a URL of either.

        `#jpg` at the end names the image of samples that have several, and `#*` takes all of them.
        """
        pattern, field = inside_of(rest)
        return open_shards(find_shards(pattern), field)

    def __len__(self) -> int:
        return len(self.order) if self.order is not None else int(self._ends[-1])

    def _find(self, index: int) -> tuple[Shard, int]:
        """Return the tar file of an image, and its place in that file's index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index if self.order is None else int(self.order[index])
        number = int(np.searchsorted(self._ends, place, "right"))
        return self.shards[number], place - (int(self._ends[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        """Return the path in the tar file."""
        shard, place = self._find(index)
        return shard.images.names[place]

    def each_name(self) -> Iterator[str]:
        """Yield the names of all images."""
        if self.order is not None:
            return super().each_name()
        return chain.from_iterable(shard.images.names for shard in self.shards)

    def names_ended_by_zeros(self) -> Iterator[bytes]:
        """Yield the names of all images in blocks of bytes, a zero byte after each."""
        if self.order is not None:
            return super().names_ended_by_zeros()
        return chain.from_iterable(shard.images.names.ended_by_zeros() for shard in self.shards)

    def open(self, index: int) -> EncodedImage:
        """Return the image, which is read when it is decoded."""
        shard, place = self._find(index)
        return FetchedFile(partial(self._read, shard, place), shard.images.names[place])

    def _read(self, shard: Shard, place: int) -> bytes:
        piece = _piece(shard, place)
        data = self._ahead.read(piece, lambda: read_range(shard.location, *_range(piece), piece.stamp))
        return member_in(data, int(shard.images.sizes[place]))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images from servers."""
        self._ahead.fetch([_piece(*found) for found in map(self._find, indices) if is_remote(found[0].location)])

    def class_names(self) -> list[str] | None:
        """Return what the samples' `.cls` files hold; the folders of the paths if there are none.

        Raises:
            ValueError: if some samples have one and others do not.
        """
        if all(shard.images.classes is None for shard in self.shards):
            return self.folders_of_names()
        found = []
        for index in range(len(self)):
            shard, place = self._find(index)
            name = "" if shard.images.classes is None else shard.images.classes[place]
            if not name:
                raise ValueError(f"{printable(self.name(index))} has no .cls file beside it, and others have; add it")
            found.append(name)
        return found


def _range(piece: Piece) -> tuple[int, int]:
    assert piece.start is not None
    assert piece.stop is not None
    return piece.start, piece.stop


def _piece(shard: Shard, place: int) -> Piece:
    offset, size = int(shard.images.offsets[place]), int(shard.images.sizes[place])
    return Piece(shard.location, offset - BLOCK, offset + size, shard.images.tar.stamp)


def find_shards(pattern: str) -> list[str]:
    """Return the paths or URLs of the tar files that a pattern stands for.

    Raises:
        ValueError: if one is missing, or there is none.
    """
    if not pattern:
        raise ValueError("expected a tar file, a folder of them or a pattern such as PATH/shards-{0000..0012}.tar")
    if not is_remote(pattern):
        return local_files(pattern, ".tar")
    if pattern.endswith("/"):
        scheme = pattern.partition("://")[0]
        listed = [str(name) for name in ask(pattern, "ls", detail=False)]
        found = sorted(name if is_remote(name) else f"{scheme}://{name.lstrip('/')}" for name in listed)
        found = [name for name in found if name.endswith(".tar")]
        if not found:
            raise ValueError(f"there is no .tar file in {pattern}")
        return found
    found = expand_braces(pattern)
    missing = []
    with ThreadPoolExecutor(TOGETHER) as pool:
        for name, error in zip(found, pool.map(_error_of, found), strict=True):
            if error is not None and not isinstance(error.__cause__, FileNotFoundError):
                raise error
            missing += [name] * (error is not None)
    if missing:
        raise ValueError(missing_files(missing, len(found)))
    return found


def _error_of(location: str) -> ValueError | None:
    try:
        facts(location)
    except ValueError as error:
        return error
    return None


def open_shards(locations: Sequence[str], field: str = "") -> Shards:
    """Return the images of tar files, each of which is indexed if it is not.

    Args:
        locations: paths or URLs.
        field: of samples with several images, the extension of the one that is taken; `*` for all; empty where each
            sample has one.

    Raises:
        ValueError: if a file cannot be indexed, has no image, or names are not unique.
    """
    if len(locations) > 1:
        log.info(f"opening {counted(len(locations), 'tar file')}")
    build: Callable[[str], TarIndex] = partial(index_of, folder=cache_folder() / "indexes")
    with ThreadPoolExecutor(TOGETHER) as pool:
        shards = [Shard(name, images) for name, images in zip(locations, pool.map(build, locations), strict=True)]
    several = next((shard for shard in shards if shard.images.several), None)
    if several is not None and not field:
        one, other = several.images.several[:2]
        raise ValueError(
            f"{several.location}: the sample {printable(key_of(one)[0])} has several images, {printable(one)} and "
            f"{printable(other)}; name the one that is wanted at the end of the address (#{key_of(one)[1]}), or take "
            f"each as an image of its own (#{ALL})"
        )
    filled = [shard for shard in shards if len(shard.images)]
    if not filled:
        others = sum(shard.images.skipped for shard in shards)
        raise ValueError(f"no image in the tar file{'s' * (len(shards) > 1)}: {counted(others, 'other file')}")
    chosen = None if field in ("", ALL) else _of_field(filled, field)
    return Shards(filled, _order(filled, chosen))


def _of_field(shards: Sequence[Shard], field: str) -> np.ndarray:
    """Return the places of the images with an extension."""
    names = (name for shard in shards for name in shard.images.names)
    chosen = [place for place, name in enumerate(names) if key_of(name)[1].lower() == field.lower()]
    if not chosen:
        found = sorted({key_of(name)[1] for name in list(shards[0].images.names)[:1000]})
        raise ValueError(f"no image is named .{field}; the first are named .{', .'.join(found[:5])}")
    return np.array(chosen)


def _order(shards: Sequence[Shard], chosen: np.ndarray | None) -> np.ndarray | None:
    """Return the places of images in alphabetical order; None where all are in order already.

    Raises:
        ValueError: if two have the same name.
    """
    bounds = [(shard.images.names[0], shard.images.names[len(shard.images) - 1]) for shard in shards]
    if all(before[1] < after[0] for before, after in pairwise(bounds)):
        return chosen
    names = [name for shard in shards for name in shard.images.names]
    order = sorted(range(len(names)) if chosen is None else chosen.tolist(), key=names.__getitem__)
    for one, other in pairwise(order):
        if names[one] == names[other]:
            ends = np.cumsum([len(shard.images) for shard in shards])
            files = [os.path.basename(shards[int(np.searchsorted(ends, p, "right"))].location) for p in (one, other)]
            raise ValueError(
                f"{printable(names[one])} is in {files[0]} and in {files[1]}; names must be unique over all tar files"
            )
    return np.array(order)
