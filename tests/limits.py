"""Calls with little memory and time, for files that claim more than they hold."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

MEMORY = 2**27
"""Bytes of address space beyond what the process has: 128 MiB."""

SECONDS = 5


def limited(call: Callable[[], object]) -> object:
    """Return what a call returns, carried out in little memory and time."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        assert time.process_time() - start < SECONDS
