"""How worker processes pass batches on: through shared memory, or through pipes where that is small."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import get_worker_info

SHARED_MEMORY = "/dev/shm"
"""The file system that holds what processes share; containers often have 64 MB of it."""

UNWRITTEN = 2
"""Batches that a worker may have collated and not yet written there."""


class PipedBatch(NamedTuple):
    """A batch as bytes, which pass through the pipe of a worker.

    Attributes:
        content: the pickled batch.
    """

    content: bytes


class PipedIfFull:
    """Collate views, and pass the batch as bytes if shared memory has no room for those of all workers.

    What is written beyond its size ends a worker by a bus error, or is lost.

    Args:
        collate: makes a batch, a tuple, of views.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, views: list[Any]) -> Any:
        """Return the batch, or a :class:`PipedBatch`."""
        batch = self.collate(views)
        worker = get_worker_info()
        if worker is None:
            return batch
        free = shared_memory_free()
        writers = worker.num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if free is None or free >= (UNWRITTEN * writers + 1) * tensor_bytes(batch):
            return batch
        return PipedBatch(pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL))


def tensor_bytes(value: Any) -> int:
    """Return the bytes of the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (tuple, list)) else 0


def shared_memory_free() -> int | None:
    """Return the bytes free in shared memory, None where it is not a file system."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
