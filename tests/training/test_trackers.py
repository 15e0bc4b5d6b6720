"""Metrics reach Weights & Biases and MLflow by their packages; nothing of theirs ends a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, lines
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.training.waits import LEAST_SECONDS, Waits


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretraining, "check", lambda *_: None)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


class Wandb(ModuleType):
    """As much of the package as is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Any:
        self.begun.append(settings)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


class MlflowFake(ModuleType):
    """As much of the package as is used."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str, float, int]] = []
        self.params: dict[str, str] = {}
        self.ended = 0

    def MlflowClient(self) -> MlflowFake:
        return self

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "sparkmim"

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=str(number)))
            for number, tags in enumerate(self.runs)
            if f"tags.sparkmim = '{tags['sparkmim']}'" == filter_string
        ][:max_results]

    def update_run(self, run: str, status: str) -> None:
        assert status == "RUNNING"

    def create_run(self, experiment: str, tags: dict[str, str]) -> Any:
        self.runs.append(tags)
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs) - 1)))

    def log_param(self, run: str, name: str, value: str) -> None:
        self.params[name] = value

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.metrics.append((run, name, value, step))

    def set_terminated(self, run: str) -> None:
        self.ended += 1


def chosen(images: Path, log: str) -> dict[str, Any]:
    return TINY_PRETRAIN | {"data": images, "pictures": 0, "log": log}


def test_wandb_gets_each_line_and_a_resumed_run_its_identity(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    pretrain(tmp_path / "run", chosen=chosen(images, "wandb"), after_step=interrupt_at(3))
    pretrain(tmp_path / "run")
    first, second = fake.begun
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["project"] == "sparkmim"
    assert first["name"] == "run"
    assert first["config"]["run"]["batch_size"] == 4
    assert fake.finished == 2
    written = [(line["step"], line["loss"]) for line in lines(tmp_path / "run")]
    assert [(step, values["loss"]) for step, values in fake.logged] == written


def test_mlflow_gets_each_line_and_a_resumed_run_its_run(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = MlflowFake()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    pretrain(tmp_path / "run", chosen=chosen(images, "mlflow"), after_step=interrupt_at(3))
    pretrain(tmp_path / "run")
    assert len(fake.runs) == 1
    assert fake.ended == 2
    assert fake.params["batch_size"] == "4"
    losses = [(step, value) for _, name, value, step in fake.metrics if name == "loss"]
    assert losses == [(line["step"], line["loss"]) for line in lines(tmp_path / "run")]


def test_a_service_that_fails_ends_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Wandb()

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fake, "log", fail)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    outcome = pretrain(tmp_path / "run", chosen=chosen(images, "wandb"))
    assert outcome is not None
    assert outcome.step == outcome.steps == len(lines(tmp_path / "run"))
    said = [line for line in caplog.messages if "no route to host" in line]
    assert len(said) == 1
    assert "metrics.jsonl" in said[0]


def test_a_missing_package_is_told_before_the_run(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"--log wandb needs its package .*pip install wandb"):
        pretrain(tmp_path / "run", chosen=chosen(images, "wandb"))
    assert not (tmp_path / "run").exists()


def test_the_share_of_waiting_is_written(tmp_path: Path, images: Path) -> None:
    pretrain(tmp_path / "run", chosen=chosen(images, "none") | {"epochs": 0.8, "warmup_epochs": 0.4})
    assert all(0 < line["data_wait"] <= 1 for line in lines(tmp_path / "run"))


@pytest.mark.parametrize(("waited", "warnings"), [(0.2, 0), (0.3, 1), (1.0, 1)])
def test_a_run_that_waits_for_images_is_warned_once(
    waited: float, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    waits = Waits(workers=0)
    for _ in range(4):
        waits.add(waited * LEAST_SECONDS, LEAST_SECONDS)
    assert len(caplog.messages) == warnings
    assert all("--workers" in line for line in caplog.messages)


def test_a_start_that_is_slow_is_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    waits = Waits(workers=1)
    waits.add(LEAST_SECONDS / 2, LEAST_SECONDS / 2)
    assert not caplog.messages


def test_a_time_limit_saves_and_the_next_life_goes_on(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any
) -> None:
    """As a job whose scheduler gives it so long."""
    ahead, running = 0.0, time.monotonic
    monkeypatch.setattr("sparkmim.training.signals.time.monotonic", lambda: running() + ahead)

    def later(step: int) -> None:
        nonlocal ahead
        ahead = 3600.0 if step >= 2 else 0.0

    settings = TINY_PRETRAIN | {"data": images}
    outcome = pretrain(tmp_path / "run", chosen=settings | {"time_limit": 60.0}, after_step=later)
    assert outcome is not None
    assert (outcome.step, outcome.interrupted) == (2, "time limit")
    outcome = pretrain(tmp_path / "run", chosen={"time_limit": 1e6})
    assert outcome is not None
    assert outcome.interrupted is None
    assert_same_training(tmp_path / "run", uninterrupted())
