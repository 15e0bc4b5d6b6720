"""A permutation that is computed place by place, in constant memory."""

from __future__ import annotations

import numpy as np

from .seeding import Stream, keyed_seed

ROUNDS = 8
"""Rounds of the Feistel network: four mix well, and more cost little."""

BLOCK = 4096
"""Places that are computed together."""


class KeyedOrder:
    """The image shown at each place of an epoch, as :func:`~sparkmim.data.sampler.epoch_order` lists them.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of an even number of bits. One that is not below the
    number of images is permuted again until it is (cycle walking, Black and Rogaway 2002): four times on average, at
    most.

    Args:
        images: their number.
        seed: of the run.
        epoch: number of the epoch.
    """

    def __init__(self, images: int, seed: int, epoch: int) -> None:
        self.images = images
        self._half = np.uint64(max(1, (max(1, images - 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        keys = np.full(ROUNDS, keyed_seed(seed, Stream.ORDER, epoch), np.uint64)
        self._keys = _mix(keys + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        self._start, self._block = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, place: int) -> int:
        start = place // BLOCK * BLOCK
        if start != self._start:
            self._start, self._block = start, self.at(np.arange(start, min(start + BLOCK, self.images)))
        return int(self._block[place - start])

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the images at some places, int64."""
        found = self._encrypt(places.astype(np.uint64))
        while (outside := np.flatnonzero(found >= self.images)).size:
            found[outside] = self._encrypt(found[outside])
        return found.astype(np.int64)

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Return a hash of 64 bits. Source: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
