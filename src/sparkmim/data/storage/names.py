"""Many names in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

TOGETHER = 10_000
"""Names that are copied at a time when all are gone through."""


class Names:
    """A sequence of names in one array of bytes, which forked processes share instead of copying.

    Args:
        content: the encoded names, one after the other, uint8.
        ends: where each ends.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Return the names of an iterable."""
        encoded = [os.fsencode(name) for name in names]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(name) for name in encoded], dtype=int))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.content[start : self.ends[index]].tobytes())

    def ended_by_zeros(self) -> Iterator[bytes]:
        """Yield all names in blocks of bytes, a zero byte after each."""
        for first in range(0, len(self), TOGETHER):
            base = int(self.ends[first - 1]) if first else 0
            ends = np.asarray(self.ends[first : first + TOGETHER]) - base
            block = np.zeros(int(ends[-1]) + len(ends), np.uint8)
            kept = np.ones(len(block), bool)
            kept[ends + np.arange(len(ends))] = False
            block[kept] = self.content[base : base + ends[-1]]
            yield block.tobytes()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), TOGETHER):
            base = int(self.ends[first - 1]) if first else 0
            ends = self.ends[first : first + TOGETHER].tolist()
            content, start = self.content[base : ends[-1]].tobytes(), 0
            for end in ends:
                yield os.fsdecode(content[start : end - base])
                start = end - base
