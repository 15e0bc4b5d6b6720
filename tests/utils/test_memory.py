"""Memory that may be taken: of the machine and of each control group, cached files not counted as used."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkmim.utils import memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 40 of them available though 1 is free."""
    for name in ("MEMINFO", "OWN_GROUPS", "GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    lines = ["MemTotal: 67108864 kB", "MemFree: 1048576 kB", "MemAvailable: 41943040 kB", "Cached: 39000000 kB"]
    (tmp_path / "MEMINFO").write_text("\n".join(lines))
    return tmp_path


def limit(folder: Path, version: int, most: int | str, used: int, cached: int) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if version == 2 else "total_"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cached - 7}\n{prefix}active_file 7\n")


def test_the_machine(system: Path) -> None:
    assert memory.host_memory() == 40 * GIB


def test_a_system_without_meminfo(system: Path) -> None:
    (system / "MEMINFO").unlink()
    assert 0 < memory.host_memory() < 2**50


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [False, True], ids=["host", "container"])
def test_the_least_of_all_groups(system: Path, version: int, inside: bool) -> None:
    (system / "OWN_GROUPS").write_text("0::/job/step\n" if version == 2 else "7:cpu:/\n4:memory,hugetlb:/job/step\n")
    root = system / "GROUPS" / ("" if version == 2 else "memory")
    own = root if inside else root / "job" / "step"  # a container sees its group as the root
    limit(own, version, 16 * GIB, 12 * GIB, 9 * GIB)
    assert memory.host_memory() == 13 * GIB
    if not inside:
        limit(own.parent, version, 8 * GIB, 6 * GIB, 0)
        assert memory.host_memory() == 2 * GIB
        limit(own.parent, version, 4 * GIB, 6 * GIB, 0)
        assert memory.host_memory() == 0
        limit(own.parent, version, "max" if version == 2 else 2**63 - 4096, 6 * GIB, 0)
        assert memory.host_memory() == 13 * GIB
