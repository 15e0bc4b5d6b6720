"""k-NN accuracy during pretraining: what `sparkmim knn` measures, without any effect on the run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from helpers import FOUR_STEPS, make_split, record
from sparkmim import pretrain
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.commands.knn import command as knn
from sparkmim.data.labels import read_labeled
from sparkmim.evaluation.frozen import FrozenEncoder
from sparkmim.evaluation.knn import leave_one_out
from sparkmim.training.errors import RunStopped
from sparkmim.training.loop import Outcome


def run(folder: Path, data: Path, after_step: Callable[[int], None] | None = None, **chosen: Any) -> Outcome:
    settings = FOUR_STEPS | {"data": data / "train"} | chosen
    outcome = pretrain(folder, chosen=settings, after_step=after_step)
    assert outcome is not None
    return outcome


def monitored(folder: Path) -> list[tuple[float, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["knn_top1"], line["knn_mean_per_class"]) for line in lines if "knn_top1" in line]


def final(folder: Path) -> dict[str, Any]:
    newest = RunFolder(folder).newest_checkpoint()
    assert newest is not None
    return newest[0]


def assert_same_training(one: Path, other: Path) -> None:
    states = [final(folder) for folder in (one, other)]
    for part in ("step", "model", "optimizer"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    losses = []
    for folder in (one, other):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["step"], line["loss"]) for line in lines if "loss" in line])
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run that nobody watches."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(folder, data, model="test_convnext", drop_path=0.3)
    return folder


@pytest.mark.slow
def test_does_not_disturb_and_survives_interruption(tmp_path: Path, data: Path, plain: Path) -> None:
    """Stochastic depth draws from the global generator."""
    watched: dict[str, Any] = {"model": "test_convnext", "drop_path": 0.3}
    watched |= {"monitor": "knn", "monitor_data": data, "monitor_every": 0.5}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = run(whole, data, **watched)
    assert_same_training(whole, plain)
    assert [step for step, _, _ in monitored(whole)] == [2, 4]
    assert outcome.measured["knn_top1"] == monitored(whole)[-1][1]

    def interrupt(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(parts, data, interrupt, **watched).interrupted == "SIGTERM"
    run(parts, data, **watched)
    assert_same_training(parts, plain)
    assert monitored(parts) == monitored(whole)


def test_may_be_changed_in_a_run(tmp_path: Path, data: Path, plain: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    settings: dict[str, Any] = {"model": "test_convnext", "drop_path": 0.3}
    run(tmp_path / "run", data, interrupt, **settings)
    run(tmp_path / "run", data, **settings, monitor="knn", monitor_data=data, monitor_every=0.25)
    assert [step for step, _, _ in monitored(tmp_path / "run")] == [2, 3, 4]
    assert_same_training(tmp_path / "run", plain)


@pytest.mark.parametrize("with_val", [True, False])
def test_is_what_the_command_measures(tmp_path: Path, data: Path, with_val: bool) -> None:
    labeled = data if with_val else data / "train"
    folder = tmp_path / "run"
    run(folder, data, monitor="knn", monitor_data=labeled)
    knn(folder, data / "train", (data / "val",) if with_val else (), tmp_path / "knn", workers=0, device="cpu")
    found = json.loads((tmp_path / "knn" / "results.json").read_text())
    wanted = found["test"] if with_val else found["leave_one_out"][str(found["neighbours"])]
    (seen,) = monitored(folder)
    assert seen == pytest.approx((4, wanted["top1"], wanted["class_mean"]))
    assert 0.4 < seen[1] <= 1, "tints are told apart"
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert board.Scalars("knn_top1")[0].value == pytest.approx(seen[1])
    page = (folder / "report.html").read_text()
    assert f"<dt>k-NN</dt><dd>{seen[1]:.1%}</dd>" in page
    assert "k-NN accuracy" in page


@pytest.mark.parametrize("crop", ["resized", "native"])
def test_features_are_those_of_the_command(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, crop: str
) -> None:
    """Whatever the precision of the run, and however its images are cut."""
    seen: list[Tensor] = []

    def noted(values: Tensor, *arguments: Any, **settings: Any) -> Any:
        seen.append(values)
        return leave_one_out(values, *arguments, **settings)

    monkeypatch.setattr("sparkmim.evaluation.evaluators.leave_one_out", noted)
    run(tmp_path / "run", data, precision="bf16-mixed", crop=crop, monitor="knn", monitor_data=data)
    train = read_labeled(data / "train")
    frozen = FrozenEncoder(tmp_path / "run", None, -1, None, 5, 0, "cpu", 0, data=data)
    wanted = frozen(train).values
    torch.testing.assert_close(seen[-1], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_images_that_have_gone(tmp_path: Path, data: Path) -> None:
    labeled = make_split(tmp_path / "labeled", 2)

    def empty(done: int) -> None:
        for path in labeled.rglob("*.png"):
            path.write_bytes(b"")

    with pytest.raises(RunStopped, match="--monitor-data can no longer be read"):
        run(tmp_path / "run", data, empty, monitor="knn", monitor_data=labeled)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"monitor": "knn"}, "--monitor knn requires --monitor-data"),
        ({"monitor_data": "train"}, r"--monitor-data \S+ has no effect without a monitor"),
        ({"monitor": "knn", "monitor_data": "nowhere"}, "there is no folder .*nowhere"),
        ({"monitor": "knn", "monitor_data": "train/red"}, "no class folders"),
        ({"monitor": "knn", "monitor_data": "train", "monitor_every": 0.0}, "--monitor-every is a number of epochs"),
    ],
)
def test_bad_input(tmp_path: Path, data: Path, chosen: dict[str, Any], message: str) -> None:
    if "monitor_data" in chosen:
        chosen = chosen | {"monitor_data": data / chosen["monitor_data"]}
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", data, **chosen)
    assert not (tmp_path / "run").exists()


def test_plan_says_what_is_measured(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    chosen = FOUR_STEPS | {"data": data / "train", "monitor": "knn", "monitor_data": data}
    record(said, pretrain, tmp_path / "run", plan=True, chosen=chosen)
    assert any("k-NN, 12 labeled images by 24 others, every 10 epochs" in line for line in said)
