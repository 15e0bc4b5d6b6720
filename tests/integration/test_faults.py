"""A short form of the campaign of faults, `benchmarks/faults.py`: nothing is lost, nothing differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux's processes")]

KINDS = ("clock", "nan", "checkpoint", "store")
"""Kills, signals, disks, folders and broken images have tests of their own."""


def test_runs_that_are_disturbed_end_as_others(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "faults.py"
    command = [sys.executable, str(script), "--share", "0.01", "--output", str(tmp_path / "table.md"), "--only", *KINDS]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > len(KINDS)
