"""Running what is compiled eagerly, in several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Stance:
    """Torch's stance while any thread runs eagerly; it is one for all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.set: Any = None

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.set = torch.compiler.set_stance("force_eager")  # remembers the one before
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.set.__exit__(None, None, None)


_STANCE = _Stance()


@contextmanager
def force_eager() -> Iterator[None]:
    """Run compiled functions eagerly within, as `torch.compiler.set_stance("force_eager")` does.

    That one restores the stance which it found, so that of two threads one that leaves last restores the other's:
    nothing would be compiled any more in the whole process.
    """
    _STANCE.enter()
    try:
        yield
    finally:
        _STANCE.leave()
