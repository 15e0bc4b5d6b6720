"""Leave long work that needs no saving, such as a validation, when a stop is asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that ask for a stop: of schedulers, terminals and people; SIGXCPU of a limit of processor time."""


class Interrupted(Exception):
    """Work was left because a stop is asked for; nothing of it is kept."""


_asked: ContextVar[Callable[[], bool] | None] = ContextVar("asked", default=None)


@contextmanager
def interruptible(asked: Callable[[], bool]) -> Iterator[None]:
    """Let :func:`leave_if_asked` raise within the block once `asked` returns true."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def leave_if_asked() -> None:
    """Raise if a stop is asked for within a block that is :func:`interruptible`.

    Raises:
        Interrupted: in that case.
    """
    asked = _asked.get()
    if asked is not None and asked():
        raise Interrupted
