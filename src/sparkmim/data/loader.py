"""Batches of masked views.

The images of a step, their crops and their masks depend on the seed, the epoch and the image alone, and not on workers,
processes or earlier steps.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..models.config import MaskShape
from ..models.masking import MASKS, visible_where_data
from ..objectives.distill import TeacherTargets
from ..utils.interruption import STOPS, leave_if_asked
from ..utils.logging import log
from .decoding.encoded import UnreadableImage
from .normalize import join, where_data
from .photometric import PhotometricChange
from .sampler import InOrder, Key, Positions
from .seeding import Stream, keyed_generator
from .shared_memory import SHARED_MEMORY, PipedBatch, PipedIfFull, shared_memory_free
from .sources.base import ImageSource
from .teachers.maps import Taught, TaughtView, TeacherMaps
from .views import AnyView, ClipView
from .workers import Loader, ignore_signals

MAX_REPLACEMENTS = 100
"""Unreadable images in a row, drawn at random, after which reading fails."""

FROM_OUTSIDE = (*STOPS, signal.SIGKILL)
"""Signals that another process sends; SIGKILL comes of the system if memory is short."""

T = TypeVar("T")

SeenT = TypeVar("SeenT")

SeenInT = TypeVar("SeenInT", covariant=True)


class Looking(Protocol[SeenInT]):
    """A view, or what looks by one."""

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> SeenInT:
        """Return what is seen of an image."""


class Batch(NamedTuple):
    """Masked views.

    Attributes:
        images: `(B, C, *size)`, uint8, or float32 where images have more than 8 bits; see
            :class:`~sparkmim.data.normalize.Normalize`.
        visible: `(B * masks, *grid)`, True = visible: the masks of the first image, then those of the second...
        indices: index of each image in the source; for an unreadable image, that of its replacement, if there is one.
        broken: index and error of each image that could not be read.
        has_data: `(B, C, *size)`, True where a pixel has data; None if all have. The others are NaN in `images`.
        targets: of a frozen teacher, one an image; None without.
    """

    images: Shaped[Tensor, "batch channel *size"]
    visible: Bool[Tensor, "batch *grid"]
    indices: list[int]
    broken: list[tuple[int, str]]
    has_data: Bool[Tensor, "batch channel *size"] | None = None
    targets: TeacherTargets | None = None


class MaskedViews(Dataset[Batch]):
    """Batches of one masked view each, looked up by epoch and index of the image.

    Args:
        source: the images.
        view: how they are cut.
        channels: of the network.
        grid: patches along each axis of a view.
        mask_ratio: share of patches to hide.
        seed: of views and masks.
        shape: of the masks.
        masks: of each view.
        teacher: maps of a frozen teacher, to be sampled at each view of an image.
        change: of the colors of views, which the teacher's maps do not see.
        replace: show a random other image instead of one that cannot be read, as training does; otherwise its batch is
            empty, so that nothing is measured twice.
    """

    def __init__(
        self,
        source: ImageSource,
        view: AnyView,
        channels: int,
        grid: Sequence[int],
        mask_ratio: float,
        seed: int,
        *,
        shape: MaskShape = "random",
        masks: int = 1,
        teacher: TeacherMaps | None = None,
        change: PhotometricChange | None = None,
        replace: bool = True,
    ) -> None:
        self.source, self.view, self.channels, self.shape = source, view, channels, shape
        self.grid, self.mask_ratio, self.seed, self.replace = tuple(grid), mask_ratio, seed, replace
        self.masks, self.change = masks, change
        if teacher is None:
            self._look: AnyView | TaughtView = view
        else:
            assert not isinstance(view, ClipView)
            self._look = TaughtView(view, teacher)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Batch]:
        """Return batches of one view. Masks are drawn first: decoding evicts small work from the CPU's cache."""
        self.source.prefetch([index for _, index in keys])
        generators = [keyed_generator(self.seed, Stream.VIEW, *key) for key in keys]
        masks = [MASKS[self.shape](self.masks, self.grid, self.mask_ratio, generator) for generator in generators]
        batches = []
        for (_, index), generator, visible in zip(keys, generators, masks, strict=True):
            batches.append(self._show(index, visible, generator))
        return batches

    def _show(self, index: int, visible: Tensor, generator: torch.Generator) -> Batch:
        if self.replace:
            seen, shown, broken = random_view(self.source, self._look, self.channels, index, generator)
        else:
            try:
                seen, shown, broken = self._look.look(self.source, index, self.channels, generator), index, []
            except UnreadableImage as error:
                nothing = torch.zeros(0, self.channels, *self.view.config.image_size, dtype=torch.uint8)
                return Batch(nothing, visible[:0], [], [(index, str(error))])
        view, targets = seen if isinstance(seen, Taught) else (seen, None)
        assert isinstance(view, Tensor)
        images = (view if self.change is None else self.change(view, generator)).unsqueeze(0)
        has_data = where_data(images)
        if has_data is not None:
            visible = visible_where_data(visible, has_data.expand(self.masks, *has_data.shape[1:]), generator)
        return Batch(images, visible, [shown], broken, has_data, targets)


def random_view(
    source: ImageSource, view: Looking[SeenT], channels: int, index: int, generator: torch.Generator
) -> tuple[SeenT, int, list[tuple[int, str]]]:
    """Return a view `(C, *size)` of an image, or of a random other one if it cannot be read, as :func:`first_shown`."""

    def show(index: int, generator: torch.Generator) -> SeenT:
        return view.look(source, index, channels, generator)

    return first_shown(show, index, len(source), generator)


def first_shown(
    show: Callable[[int, torch.Generator], SeenT], index: int, images: int, generator: torch.Generator
) -> tuple[SeenT, int, list[tuple[int, str]]]:
    """Return what is shown of an image, or of a random other one if it cannot be read.

    Args:
        show: an image, given its number and a generator; raises UnreadableImage.
        index: number of the image.
        images: how many there are.
        generator: where others come from.

    Returns:
        What is shown, the index of the image that it is of, and index and error of each that could not be read.

    Raises:
        UnreadableImage: if a hundred in a row cannot be read.
    """
    broken: list[tuple[int, str]] = []
    while True:
        try:
            return show(index, generator), index, broken
        except UnreadableImage as error:
            broken.append((index, str(error)))
            if len(broken) > MAX_REPLACEMENTS:
                raise
            # The replacement is the same whenever this view is asked for again.
            index = int(torch.randint(images, (), generator=generator))


class PlainViews(Dataset["PlainBatch"]):
    """Batches of one unmasked view each, empty where an image cannot be read."""

    def __init__(self, source: ImageSource, view: AnyView, channels: int) -> None:
        self.source, self.view, self.channels = source, view, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> list[PlainBatch]:
        """Return a batch of one view for each image."""
        self.source.prefetch(indices)
        return [self[index] for index in indices]

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
        collate_fn=PipedIfFull(_collate_plain) if workers else _collate_plain,
        worker_init_fn=ignore_signals,
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
def read(batches: DataLoader[T]) -> Iterator[Batches[T]]:
    """Iterate over batches, and end the worker processes with the block.

    If it raises, the traceback would keep them alive, and torch would wait for them in vain when it is collected.
    """
    reading = Batches(batches)
    try:
        yield reading
    finally:
        reading.close()


class ReaderDied(Exception):
    """A worker process died of what it read.

    Args:
        message: what torch says of it.
        indices: of the images that it was reading.
    """

    def __init__(self, message: str, indices: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.indices = list(indices)


class Batches(Iterator[T]):
    """The batches of a loader, also if its worker processes are killed: the rest is read in this process then.

    Torch raises wherever the training process is when a worker dies, in the midst of a checkpoint too. Here the death
    is found where the next batch is missing.

    Attributes:
        died: what torch says of a worker that has died; None while all are well.
    """

    def __init__(self, loader: DataLoader[T]) -> None:
        self.loader = loader
        self.died: str | None = None
        self._count = 0
        self._warned = False
        self._loading: Iterator[Any] = iter(loader)
        self._iterator = self._loading
        self._handler = self._replace_handler(signal.SIG_DFL) if loader.num_workers else None

    def __next__(self) -> T:
        """Return the next batch.

        Raises:
            Interrupted: if a stop is asked for and the work may be left.
            ReaderDied: if a worker died of what it read.
        """
        leave_if_asked()
        try:
            batch = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the last two of a batch that it had not passed on wholly
            if not worker_died(error) and not self._a_worker_ends():
                raise
            self.died = str(error).strip().splitlines()[-1]
            if not self._ended_from_outside():
                raise ReaderDied(self.died, self._dead_reader_s_images()) from error
            self._iterator = self._read_here()
            batch = next(self._iterator)
        self._count += 1
        if isinstance(batch, PipedBatch):
            self._warn()
            batch = pickle.loads(batch.content)
        return batch  # type: ignore[no-any-return]

    def _a_worker_ends(self) -> bool:
        """Return whether a worker has ended, or does so within a second."""
        workers = list(getattr(self._iterator, "_workers", []))
        return bool(workers) and bool(wait([worker.sentinel for worker in workers], timeout=1.0))

    def _ended_from_outside(self) -> bool:
        """Return whether workers were ended by a signal, not by what they read, which might end this process too."""
        codes = [worker.exitcode for worker in getattr(self._iterator, "_workers", [])]
        return all(code is None or code in (0, *(-number for number in FROM_OUTSIDE)) for code in codes)

    def _left(self) -> Iterator[list[Key]]:
        """Return the keys of the batches that are left."""
        sampler: Any = self.loader.batch_sampler
        return (
            iter(sampler.after(self._count)) if hasattr(sampler, "after") else islice(iter(sampler), self._count, None)
        )

    def _dead_reader_s_images(self) -> list[int]:
        """Return the indices of the images in the first batch that a dead worker has not delivered."""
        workers = list(getattr(self._iterator, "_workers", []))
        dead = [number for number, worker in enumerate(workers) if worker.exitcode]
        if not dead:
            return []
        ahead = (dead[0] - self._count) % len(workers)  # batches are dealt to the workers in turn
        keys: Any = next(islice(self._left(), ahead, None), [])
        return [key[1] if isinstance(key, tuple) else key for key in keys]

    def _read_here(self) -> Iterator[Any]:
        """Return the batches that are left, read in this process."""
        left = self._left()
        views: Any = self.loader.dataset
        for keys in left:
            parts = views.__getitems__(keys) if hasattr(views, "__getitems__") else [views[key] for key in keys]
            yield self.loader.collate_fn(parts)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            free = shared_memory_free() or 0
            log.warning(
                f"shared memory ({SHARED_MEMORY}) has {free / 2**20:.0f} MiB free, too few for the batches of "
                f"{self.loader.num_workers} workers: they pass through pipes, which is slower. Enlarge it (docker run "
                f"--shm-size 8g), or use fewer --workers"
            )

    @staticmethod
    def _replace_handler(handler: Any) -> Any:
        """Set the handler of ended children, which is torch's; return the one before, None outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return None
        return signal.signal(signal.SIGCHLD, handler)

    def close(self) -> None:
        """End the worker processes, also those that hang."""
        workers = list(getattr(self._loading, "_workers", []))
        getattr(self._loading, "_shutdown_workers", lambda: None)()  # what the iterator does when it is deleted
        for worker in workers:
            if worker.is_alive():  # it ignores the signal by which torch would end it
                worker.kill()
        if self._handler is not None:
            self._replace_handler(self._handler)


def worker_died(error: Exception) -> bool:
    """Return whether an error of a loader says that a worker process has ended."""
    text = str(error)
    return "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)


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
        collate_fn=PipedIfFull(collate) if workers else collate,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
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
        _all_targets(shown),
    )


def _all_targets(views: list[Batch]) -> TeacherTargets | None:
    found = [view.targets for view in views if view.targets is not None]
    return TeacherTargets(*(torch.cat(parts) for parts in zip(*found, strict=True))) if found else None


def _known(batch: Batch) -> Tensor:
    return torch.ones_like(batch.images, dtype=torch.bool) if batch.has_data is None else batch.has_data


def _collate_plain(parts: list[PlainBatch]) -> PlainBatch:
    return PlainBatch(
        [image for part in parts for image in part.images],
        [index for part in parts for index in part.indices],
        [broken for part in parts for broken in part.broken],
    )
