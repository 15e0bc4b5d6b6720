"""Batches of masked views.

The images of a step, their crops and their masks depend on the seed, the epoch and the image alone, and not on workers,
processes or earlier steps.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..models.masking import random_visible, visible_where_data
from .decoding.encoded import UnreadableImage
from .normalize import join, where_data
from .sampler import InOrder, Key, Positions
from .seeding import Stream, keyed_generator
from .sources.base import ImageSource
from .views import View

MAX_REPLACEMENTS = 100
"""Unreadable images in a row, drawn at random, after which reading fails."""


T = TypeVar("T")


GRACE = 60
"""Seconds that a worker process stays alive after SIGTERM."""


class Batch(NamedTuple):
    """Masked views.

    Attributes:
        images: `(B, C, H, W)`, uint8, or float32 where images have more than 8 bits; see
            :class:`~sparkmim.data.normalize.Normalize`.
        visible: `(B, *grid)`, True = visible.
        indices: index of each image in the source; for an unreadable image, that of its replacement, if there is one.
        broken: index and error of each image that could not be read.
        has_data: `(B, C, H, W)`, True where a pixel has data; None if all have. The others are NaN in `images`.
    """

    images: Shaped[Tensor, "batch channel height width"]
    visible: Bool[Tensor, "batch *grid"]
    indices: list[int]
    broken: list[tuple[int, str]]
    has_data: Bool[Tensor, "batch channel height width"] | None = None


class MaskedViews(Dataset[Batch]):
    """Batches of one masked view each, looked up by epoch and index of the image.

    Args:
        source: the images.
        view: how they are cut.
        channels: of the network.
        grid: patches along each axis of a view.
        mask_ratio: share of patches to hide.
        seed: of views and masks.
        replace: show a random other image instead of one that cannot be read, as training does; otherwise its batch is
            empty, so that nothing is measured twice.
    """

    def __init__(
        self,
        source: ImageSource,
        view: View,
        channels: int,
        grid: Sequence[int],
        mask_ratio: float,
        seed: int,
        *,
        replace: bool = True,
    ) -> None:
        self.source, self.view, self.channels = source, view, channels
        self.grid, self.mask_ratio, self.seed, self.replace = tuple(grid), mask_ratio, seed, replace

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Batch]:
        """Return batches of one view. Masks are drawn first: decoding evicts small work from the CPU's cache."""
        generators = [keyed_generator(self.seed, Stream.VIEW, *key) for key in keys]
        masks = [random_visible(1, self.grid, self.mask_ratio, generator) for generator in generators]
        batches = []
        for (_, index), generator, visible in zip(keys, generators, masks, strict=True):
            batches.append(self._show(index, visible, generator))
        return batches

    def _show(self, index: int, visible: Tensor, generator: torch.Generator) -> Batch:
        if self.replace:
            view, shown, broken = random_view(self.source, self.view, self.channels, index, generator)
        else:
            try:
                view, shown, broken = self.view.look(self.source, index, self.channels, generator), index, []
            except UnreadableImage as error:
                nothing = torch.zeros(0, self.channels, *self.view.config.image_size, dtype=torch.uint8)
                return Batch(nothing, visible[:0], [], [(index, str(error))])
        images = view.unsqueeze(0)
        has_data = where_data(images)
        if has_data is not None:
            visible = visible_where_data(visible, has_data, generator)
        return Batch(images, visible, [shown], broken, has_data)


def random_view(
    source: ImageSource, view: View, channels: int, index: int, generator: torch.Generator
) -> tuple[Tensor, int, list[tuple[int, str]]]:
    """Return a view `(C, H, W)` of an image, or of a random other one if it cannot be read.

    Returns:
        The view, the index of the image that it shows, and index and error of each that could not be read.

    Raises:
        UnreadableImage: if a hundred in a row cannot be read.
    """
    broken: list[tuple[int, str]] = []
    while True:
        try:
            return view.look(source, index, channels, generator), index, broken
        except UnreadableImage as error:
            broken.append((index, str(error)))
            if len(broken) > MAX_REPLACEMENTS:
                raise
            # The replacement is the same whenever this view is asked for again.
            index = int(torch.randint(len(source), (), generator=generator))


class Loader(DataLoader[T]):
    """torch's DataLoader without its warning about more workers than cores, a number that the user chose."""

    def check_worker_number_rationality(self) -> None:
        """Accept any number: many workers help where reading waits for a disk or a network."""


class PlainViews(Dataset["PlainBatch"]):
    """Batches of one unmasked view each, empty where an image cannot be read."""

    def __init__(self, source: ImageSource, view: View, channels: int) -> None:
        self.source, self.view, self.channels = source, view, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> PlainBatch:
        try:
            pixels = self.view.look(self.source, index, self.channels)
        except UnreadableImage as error:
            return PlainBatch([], [], [(index, str(error))])
        return PlainBatch([pixels.unsqueeze(0)], [index], [])


class PlainBatch(NamedTuple):
    """Unmasked views, for :func:`~sparkmim.data.normalize.join` and :class:`~sparkmim.data.normalize.Normalize`.

    Attributes:
        images: `(1, C, H, W)` for each image that could be read.
        indices: their indices in the source.
        broken: index and error of each image that could not be read.
    """

    images: list[Tensor]
    indices: list[int]
    broken: list[tuple[int, str]]


def plain_batches(views: PlainViews, batch_size: int, workers: int) -> DataLoader[PlainBatch]:
    """Load every image once, in order."""
    return Loader(
        views,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate_plain,
        worker_init_fn=_ignore_interrupts,
    )


def training_batches(
    views: MaskedViews, positions: Positions, workers: int, *, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Load the batches of one process, see :class:`Positions`."""
    return load(views, positions, workers, _collate, pin_memory=pin_memory)


def evaluation_batches(
    views: MaskedViews, batch_size: int, workers: int, *, process: int = 0, processes: int = 1, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Load every image once, with the same mask each time; batches are dealt to the processes in turn."""
    order = InOrder(len(views), batch_size, process=process, processes=processes)
    return load(views, order, workers, _collate, pin_memory=pin_memory)


@contextmanager
def read(batches: DataLoader[T]) -> Iterator[Iterator[T]]:
    """Iterate over batches, and end the worker processes with the block.

    If it raises, the traceback would keep them alive, and torch would wait for them in vain when it is collected.
    """
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        getattr(iterator, "_shutdown_workers", lambda: None)()  # what the iterator does when it is deleted


def load(
    views: Dataset[T],
    batches: Sampler[list[Key]] | list[list[Key]],
    workers: int,
    collate: Callable[[list[T]], T],
    *,
    pin_memory: bool = False,
) -> DataLoader[T]:
    """Load batches of views, looked up by epoch and index, in a given order."""
    return Loader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_interrupts,
    )


def _collate(views: list[Batch]) -> Batch:
    shown = [view for view in views if len(view.images)] or views[:1]
    with_gaps = any(view.has_data is not None for view in shown)
    return Batch(
        join([view.images for view in shown]),
        torch.cat([view.visible for view in shown]),
        [index for view in views for index in view.indices],
        [broken for view in views for broken in view.broken],
        torch.cat([_known(view) for view in shown]) if with_gaps else None,
    )


def _known(batch: Batch) -> Tensor:
    return torch.ones_like(batch.images, dtype=torch.bool) if batch.has_data is None else batch.has_data


def _collate_plain(parts: list[PlainBatch]) -> PlainBatch:
    return PlainBatch(
        [image for part in parts for image in part.images],
        [index for part in parts for index in part.indices],
        [broken for part in parts for broken in part.broken],
    )


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C and hang-up reach all processes of a terminal, and SIGTERM often all of a job. The trainer saves then, and
    # still needs the batches of the step it is in, so the workers outlive it for a while.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
