"""Processes that read: what their loaders and they themselves have in common."""

from __future__ import annotations

import signal
from typing import TypeVar

from torch.utils.data import DataLoader

from ..utils.interruption import STOPS

T = TypeVar("T")


class Loader(DataLoader[T]):
    """torch's DataLoader without its warning about more workers than cores, a number that the user chose."""

    def check_worker_number_rationality(self) -> None:
        """Accept any number: many workers help where reading waits for a disk or a network."""


def ignore_signals(_: int) -> None:
    """Ignore the signals that ask for a stop: the process that waits for the results sees to it, and may need them.

    They often reach all processes of a job. A worker ends when that process tells it to or has ended, which it looks
    for every few seconds.

    Args:
        _: number of the worker, as torch passes it.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
