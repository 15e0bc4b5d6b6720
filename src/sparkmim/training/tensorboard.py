"""A file of numbers for TensorBoard, written without a thread: an error is the caller's, in the caller's words."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FLUSH_SECONDS = 30.0
"""Between two times that numbers are written through to the file."""


class EventFile:
    """A new event file.

    Args:
        folder: of the event files, which TensorBoard reads together.
        first: step from which on numbers of older files no longer count.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        if time.monotonic() >= self._flushed + FLUSH_SECONDS:
            self.flush()

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write what is buffered."""
        self._flushed = time.monotonic()
        self._file.flush()

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self._file.close()
