"""Memory that this process may still take, of the machine and of the container that it runs in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def host_memory() -> int:
    """Return the bytes of the CPU's memory that this process may still take.

    It is the least of what the machine has and of what each control group leaves. Cached files do not count as used:
    the system drops them when the memory is asked for.
    """
    return max(0, min([machine_memory(), *control_groups()]))


def machine_memory() -> int:
    """Return the bytes that the machine has available, by its own estimate where it gives one."""
    with suppress(OSError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    free = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(free) * os.sysconf("SC_PAGE_SIZE")


def control_groups() -> Iterator[int]:
    """Yield the bytes that each control group with a limit leaves: this process's, and those above it."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield from _left(GROUPS, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            yield from _left(GROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(root: Path, path: str, limit_name: str, used_name: str, prefix: str) -> Iterator[int]:
    """Yield what is left of each limit from a group up to the root; a container sees its own group as the root."""
    own = root / path.lstrip("/")
    for folder in [own, *own.parents]:
        if folder.is_relative_to(root):
            with suppress(OSError, ValueError):  # no limit ("max"), or no such group in this container
                limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
                yield limit - used + _cached(folder / "memory.stat", prefix)


def _cached(stat: Path, prefix: str) -> int:
    """Return the bytes of cached files in a group's use."""
    with suppress(OSError):
        pairs = [line.split() for line in stat.read_text().splitlines()]
        return sum(int(value) for name, value in pairs if name in (f"{prefix}inactive_file", f"{prefix}active_file"))
    return 0
