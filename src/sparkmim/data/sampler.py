"""The images of each step: deterministic from the seed, resumable from any step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Sampler

from .config import Order
from .permutation import KeyedOrder
from .seeding import Stream, keyed_generator

Key = tuple[int, int]
"""Epoch and index of an image."""


class Positions(Sampler[list[Key]]):
    """The micro-batches of one process, from a given step on.

    Epochs follow each other without a gap: step `s` has the images at positions `s * batch_size` to
    `(s + 1) * batch_size` of the endless sequence of shuffled epochs, so every epoch shows every image once. A step is
    divided into `accumulate * processes` micro-batches, and process `p` takes numbers `p`, `p + processes`, ...: N
    processes see what one process sees that accumulates N micro-batches.

    An epoch's order is listed, or computed place by place in constant memory ("keyed").

    With `repeats`, that many views of each image follow each other (repeated augmentation, Hoffer et al. 2020), and an
    epoch shows a part of the images.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int,
        seed: int,
        *,
        start: int = 0,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
        repeats: int = 1,
        order: Order = "listed",
    ) -> None:
        if batch_size % (accumulate * processes):
            raise ValueError(
                f"batch size {batch_size} does not divide among {processes} processes times {accumulate} accumulated "
                f"micro-batches; use a multiple of {accumulate * processes}"
            )
        self.images, self.batch_size, self.steps, self.seed = images, batch_size, steps, seed
        self.start, self.accumulate, self.process, self.processes = start, accumulate, process, processes
        self.repeats, self.order = repeats, order

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate

    def after(self, batches: int) -> Iterator[list[Key]]:
        """Return the micro-batches that follow some of them, without going through those."""
        steps, rest = divmod(batches, self.accumulate)
        later = copy.copy(self)
        later.start = self.start + steps
        return islice(iter(later), rest, None)

    def __iter__(self) -> Iterator[list[Key]]:
        micro = self.batch_size // (self.accumulate * self.processes)
        orders: dict[int, np.ndarray | KeyedOrder] = {}
        make = KeyedOrder if self.order == "keyed" else epoch_order
        for step in range(self.start, self.steps):
            for turn in range(self.accumulate):
                first = step * self.batch_size + (turn * self.processes + self.process) * micro
                keys = []
                for position in range(first, first + micro):
                    turn_of_image, repeat = divmod(position, self.repeats)
                    epoch, place = divmod(turn_of_image, self.images)
                    if epoch not in orders:
                        orders = {e: order for e, order in orders.items() if e == epoch - 1}
                        orders[epoch] = make(self.images, self.seed, epoch)
                    keys.append((epoch * self.repeats + repeat, int(orders[epoch][place])))
                yield keys


class InOrder(Sampler[list[Key]]):
    """Batches of every image once, in order, of which each process takes its share in turn; the epoch is 0."""

    def __init__(self, images: int, batch_size: int, *, process: int = 0, processes: int = 1) -> None:
        self.images, self.batch_size = images, batch_size
        self.starts = range(process * batch_size, images, processes * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self.starts:
            yield [(0, index) for index in range(start, min(start + self.batch_size, self.images))]


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the image shown at each place of an epoch, a permutation in 4 bytes an image (8 beyond 2^31 images).

    It is read by place alone. :class:`~sparkmim.data.permutation.KeyedOrder` takes its turn where a run's configuration
    says so.
    """
    dtype = torch.int32 if images < 2**31 else torch.int64  # the same numbers
    return torch.randperm(images, generator=keyed_generator(seed, Stream.ORDER, epoch), dtype=dtype).numpy()
