"""The logger "sparkmim". As a library the package prints nothing; the command line prints what is logged.

Only the first process (rank zero) logs: records of the others are dropped, so that callers need not ask.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from .text import harmless

log = logging.getLogger("sparkmim")
log.addHandler(logging.NullHandler())  # without any handler, logging would print warnings on standard error


def is_rank_zero() -> bool:
    """Return whether this is the only process, or the first of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


log.addFilter(lambda record: is_rank_zero())


class PrintHandler(logging.Handler):
    """Print messages as they are: warnings and errors on standard error, all others on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        print_line(self.format(record), sys.stderr if record.levelno >= logging.WARNING else sys.stdout)


@contextmanager
def printing() -> Iterator[None]:
    """Print what is logged at level INFO and above."""
    handler, level = PrintHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def without_repeats() -> Iterator[None]:
    """Drop warnings that are equal to an earlier one within the block: a network that is built twice warns once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        known = record.levelno == logging.WARNING and text in said
        said.add(text)
        return not known

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def print_line(text: str, stream: TextIO | None) -> None:
    """Write a line, above a progress bar if one is shown.

    Does nothing if the stream is missing or closed, and redirects it to /dev/null if its reader has ended: a run
    continues when its terminal is closed, or when `| head` has seen enough.
    """
    from tqdm import tqdm  # in the function: --help needs none of it

    if stream is None or stream.closed:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = f"{harmless(text)}\n".encode(encoding, "backslashreplace").decode(encoding)
    try:
        with tqdm.external_write_mode(file=stream):
            stream.write(line)  # in one call: the lines of several processes do not mix
            stream.flush()
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that neither later lines nor the end of the interpreter raise."""
    with suppress(OSError):  # a stream without a file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
