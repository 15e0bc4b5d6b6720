"""Many names in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np


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

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
