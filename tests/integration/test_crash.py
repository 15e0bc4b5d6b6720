"""Runs killed without warning lose at most what came after their last checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import assert_same_training, numbers
from integration.crash import EPOCHS

KILLS = 16

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def crash(scenario: str, output: Path, images: Path, kills: int) -> dict[str, Any]:
    script = Path(__file__).with_name("crash.py")
    arguments = [scenario, str(output), str(images), str(kills)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["log"] = output.with_suffix(".log").read_text()
    return seen


def test_killed_at_random_moments(tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]) -> None:
    seen = crash("random", tmp_path / "run", images, KILLS)
    first, *killed, last = seen["codes"]
    assert first == last == 0, seen["log"]
    assert killed == [-9] * KILLS, seen["log"]
    # Once there is a checkpoint there always is one that can be read, and none of an earlier step.
    steps = [0 if step is None else step for step in seen["steps"]]
    assert steps == sorted(steps), steps
    assert all(step is None or step > 0 for step in seen["steps"]), seen["steps"]
    assert len(set(steps)) > 1, f"killed before anything happened, or after it: {steps}"
    assert "cannot be read" not in seen["log"]
    assert seen["partials"] == []
    assert_same_training(tmp_path / "run", uninterrupted(epochs=EPOCHS))
    assert [number[0] for number in numbers(tmp_path / "run")] == list(range(1, 21))


def test_killed_at_bad_moments(tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]) -> None:
    seen = crash("bad", tmp_path / "run", images, 0)
    *killed, last = seen["codes"]
    assert set(killed) == {-9}, seen
    assert last == 0, seen["log"]
    # Half a checkpoint is never taken for one: the one before it is gone on from.
    assert seen["steps"] == [None, None, None, 2, 3, 4, 4]
    assert seen["left"] == [0, 0, 1, 1, 0, 0, 0]
    assert seen["partials"] == []
    assert_same_training(tmp_path / "run", uninterrupted())
