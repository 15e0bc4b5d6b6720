"""Work on many volumes in worker processes, and show how far it is."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from ...utils.interruption import leave_if_asked
from ...utils.logging import is_rank_zero, log
from ...utils.text import duration
from ..workers import Loader, ignore_signals

LINE_SECONDS = 10.0
"""Seconds between two lines at least, where there is no terminal."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Work(Dataset[Any], Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Result | _Failed:
        if get_worker_info() is None:
            return self.function(self.items[index])
        try:
            return self.function(self.items[index])
        except Exception as error:  # torch would put the traceback into its message
            error.add_note(traceback.format_exc())
            return _Failed(error)


class _Failed(NamedTuple):
    """What was raised in a worker process."""

    error: Exception


def each(function: Callable[[Item], Result], items: Sequence[Item], workers: int, doing: str) -> Iterator[Result]:
    """Apply a function to items, in worker processes if there are any, and yield the results in order.

    Args:
        function: picklable; what it raises ends the work.
        items: picklable.
        workers: processes; 0 works in this one.
        doing: what is shown, such as `measuring`.

    Raises:
        ChildProcessError: if a worker is killed.
        Interrupted: if a stop is asked for, see :func:`~sparkmim.utils.interruption.interruptible`.
    """
    workers = min(workers, len(items))
    loader: Any = Loader(
        _Work(function, items),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_prepare_worker,
    )
    progress = _Progress(len(items), doing)
    results = iter(loader)
    try:
        for _ in items:
            leave_if_asked()
            try:
                result = next(results)
            except RuntimeError as error:
                if workers and "DataLoader worker" in str(error):
                    raise ChildProcessError(
                        f"a process that was {doing} volumes ended ({str(error).strip().splitlines()[-1]}). Perhaps it "
                        "needed more memory than there is: use fewer --workers. What is done is kept"
                    ) from error
                raise
            if isinstance(result, _Failed):
                raise result.error
            progress.advance()
            yield result
    finally:
        getattr(results, "_shutdown_workers", lambda: None)()
        progress.close()


def _as_it_is(result: Result) -> Result:
    return result


def _prepare_worker(number: int) -> None:
    """Use one thread, and leave signals to the process that waits for the results."""
    ignore_signals(number)
    torch.set_num_threads(1)
    if "SimpleITK" in sys.modules:
        sys.modules["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(1)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; nothing if nobody listens to the logger."""

    def __init__(self, total: int, doing: str) -> None:
        from tqdm import tqdm

        self.total, self.doing, self.done = total, doing, 0
        self.start = self.last = time.monotonic()
        shown = sys.stderr is not None and sys.stderr.isatty() and is_rank_zero() and log.isEnabledFor(logging.INFO)
        self.bar = tqdm(total=total, desc=doing, unit="volume", dynamic_ncols=True) if shown and total else None

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if self.bar is not None:
            with suppress(OSError):  # a terminal that was closed
                self.bar.update()
        elif now - self.last >= LINE_SECONDS and self.done < self.total:
            self.last = now
            left = (now - self.start) / self.done * (self.total - self.done)
            log.info(f"{self.doing} volumes: {self.done} of {self.total}, {duration(left)} left")

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()
