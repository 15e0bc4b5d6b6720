"""Requests to stop: signals, and a limit of time, are recorded, and acted upon after the step."""

from __future__ import annotations

import math
import os
import secrets
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch.distributed
from lightning_fabric import Fabric

from ..utils.interruption import STOPS

AGAIN_SECONDS = 1.0
"""A second Ctrl-C counts from here on: torchrun passes on the first one, which its processes have received already."""

TIME_LIMIT = "time limit"
"""What asks for a stop where it is no signal."""

LIMIT_NUMBER = 1000
"""Its number, above those of all signals."""

ASK_SECONDS = 0.2
"""Between two times that a process asks whether another one was asked to stop."""


def command_began() -> float:
    """Return when the command began, a time of :func:`time.monotonic`.

    Processes of torchrun began with it, also those that it has started again: it takes a limit of time for a failure,
    and they would train for as long once more. Where the system has no `/proc`, they count from their own start.
    """
    now, parent = time.monotonic(), Path(f"/proc/{os.getppid()}/stat")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not parent.exists():
        return now
    started = int(parent.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")  # since the boot
    return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def number_of(name: str | None) -> int:
    """Return the number by which processes tell each other what asks for a stop; 0 for nothing."""
    if name is None:
        return 0
    return LIMIT_NUMBER if name == TIME_LIMIT else signal.Signals[name].value


def name_of(number: int) -> str | None:
    """Invert :func:`number_of`."""
    if not number:
        return None
    return TIME_LIMIT if number == LIMIT_NUMBER else signal.Signals(number).name


class StoppedEarly(KeyboardInterrupt):
    """A stop was asked for before the first step; its argument is the signal's name."""


class StopRequest:
    """Record the first signal in `signal` while active; a second Ctrl-C interrupts at once.

    SIGHUP stays ignored where it is ignored, as under `nohup`; SIGUSR1, SIGUSR2 and SIGXCPU stay with the program's
    own handlers, if it has any. Outside the main thread, which alone receives signals, nothing is recorded.

    Attributes:
        deadline: a time of :func:`time.monotonic` from which on a stop is asked for without a signal.
        at_once: raise :class:`StoppedEarly` instead of going on, while there is nothing to save.
    """

    def __init__(self) -> None:
        self.began = command_began()
        self.deadline = math.inf
        self.at_once = False
        self._signal: str | None = None
        self._when = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._hold = False
        self._depth = 0

    @property
    def signal(self) -> str | None:
        """Return the first signal's name, or :data:`TIME_LIMIT` once the time is over; None if nothing was asked."""
        if self._signal is None and time.monotonic() >= self.deadline:
            self._signal = TIME_LIMIT
        return self._signal

    def limit(self, minutes: float | None) -> None:
        """Ask for a stop so many minutes after the command began."""
        self.deadline = math.inf if minutes is None else self.began + 60 * minutes

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if self._takes(number):
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._hold else handler)

    @staticmethod
    def _takes(number: int) -> bool:
        before = signal.getsignal(number)
        if number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
            return before == signal.SIG_DFL
        return number != signal.SIGHUP or before != signal.SIG_IGN

    def hold(self) -> None:
        """Ignore all further signals until the process ends: when one process leaves, torchrun sends them to others."""
        self._hold = True

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._when = signal.Signals(number).name, time.monotonic()
            if self.at_once:
                raise StoppedEarly(self._signal)
        elif number == signal.SIGINT and time.monotonic() - self._when >= AGAIN_SECONDS:
            raise KeyboardInterrupt


class StopAnywhere:
    """Tell, between two collectives, whether any process of a run was asked to stop.

    Args:
        stop: the request of this process.
        fabric: of the run; all processes build this object together.
    """

    def __init__(self, stop: StopRequest, fabric: Fabric) -> None:
        self.stop = stop
        several = fabric.world_size > 1
        # Processes that torchrun starts again share the store of those before them, who may have been asked to stop.
        self.key = f"sparkmim/stop/{fabric.broadcast(secrets.token_hex(8)) if several else ''}"
        self.store = torch.distributed.distributed_c10d._get_default_store() if several else None
        self._next = 0.0
        self._told = False

    def __call__(self) -> bool:
        """Return whether a stop is asked for; a process asks the others at most every :data:`ASK_SECONDS`."""
        if self.store is None:
            return self.stop.signal is not None
        if self.stop.signal is not None and not self._told:
            self.store.set(self.key, self.stop.signal)
            self._told = True
        if not self._told and time.monotonic() >= self._next:
            self._next = time.monotonic() + ASK_SECONDS
            self._told = self.store.check([self.key])
        return self._told
