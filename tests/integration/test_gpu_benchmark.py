"""benchmarks/gpu.py, on the CPU: every stage but those that take minutes runs, and numbers are kept as they come."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        BENCHMARKS / "gpu.py",
        "--device",
        "cpu",
        "--tiny",
        "--output",
        tmp_path,
    ]
    command += ["--without", "compiled", "profile", "--seconds", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not [row for row in rows if {"error", "died with", "cut off after", "skipped"} & row.keys()]
    for model in ("resnet18", "convnext_atto"):
        measured = {row["what"]: row for row in rows if row["model"] == model and row["stage"] == "steps"}
        for what in (
            "packed, eager",
            "encoder",
            "densify",
            "decoder",
            "loss",
            "optimizer",
            "ordinary encoder, bf16 NHWC",
        ):
            assert measured[what]["ms"] > 0
            assert measured[what]["host_ms"] > 0
        predicted = {row["what"] for row in rows if row["model"] == model and row["stage"] == "predict"}
        assert {"packed, eager", "encoder", "densify", "decoder", "loss"} <= predicted
    table = (tmp_path / "table.md").read_text()
    assert "| packed, eager | " in table
    assert "**resnet18**" in table


def test_a_table_is_made_of_whatever_is_there(gpu: ModuleType) -> None:
    step = {"ms": 109.0, "row_ms": 110.0, "host_ms": 50.0, "batch": 256, "peak_gib": 20.0}
    rows = [
        {"stage": "correct", "model": None, "what": "versions", "torch": "2.11", "GPU": "H100"},
        {"stage": "predict", "model": "resnet50", "what": "packed, eager", "ms": 100.0, "kernels": 1700},
        {"stage": "steps", "model": "resnet50", "what": "packed, eager", **step},
        {"stage": "steps", "model": "resnet50", "what": "encoder", "error": "OutOfMemoryError: ..."},
        {"stage": "steps", "model": "resnet50", "cut off after": 120},
    ]
    table = gpu.to_markdown(rows)
    assert "| packed, eager | 109.0 | 100.0 | 110.0 | 50.0 | 2349 | 20.0 |" in table
    assert "| encoder | error OutOfMemoryError: ... | | | | | |" in table
    assert "| steps | cut off after 120 | | | | | |" in table


def test_a_stage_that_hangs_or_dies_is_told(gpu: ModuleType, tmp_path: Path) -> None:
    class Settings:
        output, seconds, cuda = tmp_path, 100.0, True

    driver = gpu.Driver(Settings())
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not driver.finish(sleeping, 0.1, stage="steps", model="resnet50")
    assert sleeping.poll() is not None
    assert not driver.finish(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]), 60, stage="steps")
    told = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert told[0] == {"stage": "steps", "model": "resnet50", "cut off after": 0.1}
    assert told[1] == {"stage": "steps", "died with": 3}
