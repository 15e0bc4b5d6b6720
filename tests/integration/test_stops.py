"""A signal to any process of a run, at any moment, leaves a checkpoint of the last finished step; nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from helpers import TINY_PRETRAIN, assert_same_training, final, lines, make_images, numbers
from integration.stops import AT
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.training.errors import RunStopped
from sparkmim.training.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]

STOPPED = [
    "prepare:SIGTERM:trainer:1",
    "prepare:SIGUSR2:trainer:2",
    "accumulate:SIGUSR1:all:1",
    "validate:SIGHUP:trainer:1",
    "save:SIGUSR2:all:1",
    "step:SIGTERM:trainer:2",
    "validate:SIGINT:trainer:2",
]
"""Phase, signal, target and number of processes; `python stops.py IMAGES OUTPUT all` goes through all of them."""

IGNORED = ["read:SIGTERM:readers:1", "save:SIGINT:readers:2"]
"""Readers outlive what is meant for the run, and nothing of theirs ends it."""

SCENARIOS = ["unlike", "unlike_settings", "unlike_code", "crashed", "stuck", "locked", "other_processes"]


def stops(folder: Path, images: Path, *cases: str) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("stops.py")
    paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(script), str(images), str(folder), *cases],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {seen["case"]: seen for seen in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stops")


@pytest.fixture(scope="module")
def seen(folder: Path, images: Path) -> dict[str, dict[str, Any]]:
    """All runs of this file, forked from one process."""
    return stops(folder, images, *STOPPED, *IGNORED, *SCENARIOS)


def log_of(folder: Path, case: str, rank: int = 0) -> str:
    return (folder / f"{case.replace(':', '-')}.{rank}.log").read_text()


@pytest.mark.parametrize("case", STOPPED)
def test_a_signal_saves_the_last_finished_step(folder: Path, seen: dict[str, dict[str, Any]], case: str) -> None:
    phase, name, _, processes = case.split(":")
    run, log = seen[case], log_of(folder, case)
    assert run["codes"] == [75] * int(processes), log
    assert run["ended"] == [0] * int(processes), log
    assert run["partial"] == []
    if phase == "prepare":
        assert run["checkpoints"] == []
        assert f"{name}: ended before the first step; give the same command again" in log
    else:
        newest = int(run["checkpoints"][-1][5:14])
        assert newest in (AT, AT + 1)  # the step in which the signal came, or the one that was to be saved
        assert f"{name}: saved after step {newest} of 6" in log
    assert "Traceback" not in log
    if processes == "1":
        assert_same_training(folder / case.replace(":", "-"), folder / IGNORED[0].replace(":", "-"))
    measured = [line["step"] for line in lines(folder / case.replace(":", "-")) if "val_loss" in line]
    assert measured == list(range(1, 7))  # a validation that was left is made up for


@pytest.mark.parametrize("case", IGNORED)
def test_readers_outlive_signals(folder: Path, seen: dict[str, dict[str, Any]], case: str) -> None:
    assert set(seen[case]["codes"]) == {0}, log_of(folder, case)
    assert final(folder / case.replace(":", "-"))["step"] == 6


def test_one_process_and_two_train_alike(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    one, two = (torch.tensor(numbers(folder / case.replace(":", "-"))) for case in IGNORED)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_processes_with_unlike_images_are_refused(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    assert seen["unlike"]["codes"] == [2, 2]
    log = log_of(folder, "unlike")
    assert "the processes of this run differ (images: 10 (" in log
    assert ") in process 0, 9 (" in log
    assert ") in process 1). Give all the same images" in log
    assert "sparkmim: " not in log_of(folder, "unlike", 1)  # one line, from one process
    assert not (folder / "unlike").exists()


def test_processes_with_unlike_settings_are_refused(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    """Also those that change no number, but decide when processes wait for each other; and code of the same name."""
    assert seen["unlike_settings"]["codes"] == [[2, 2]] * 3
    log = log_of(folder, "unlike_settings")
    for flag, here, there in (("log-every", 1, 2), ("val-every", 0.5, 1.0), ("pictures", 0, 2)):
        assert f"the processes of this run differ (--{flag}: {here} in process 0, {there} in process 1)" in log
    assert seen["unlike_code"]["codes"] == [2, 2]
    assert "(--model: net of net.py (" in log_of(folder, "unlike_code")


def test_an_image_that_ends_a_reader_of_one_process_saves_in_all(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    assert seen["crashed"]["codes"] == [[3, 3], [0, 0]]
    log = log_of(folder, "crashed", 1)
    assert "process 1: a process that reads images died at step 2 (DataLoader worker" in log
    assert ".png; put another file of that name in its place. Last good state: " in log
    assert "step-000000002.pt" in log
    assert "continuing after step 2 of 10" in log_of(folder, "crashed")
    assert "Traceback" not in log + log_of(folder, "crashed")


def test_a_stuck_process_ends_the_others_with_a_message(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    assert seen["stuck"]["codes"] == [3, 9]
    log = log_of(folder, "stuck")
    assert "another process of this run has ended, or did not answer for 0.05 minutes, at step 2" in log
    assert "Traceback" not in log


def test_a_folder_in_use_is_one_line_of_one_process(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    assert seen["locked"]["codes"] == [2, 3]
    assert log_of(folder, "locked").count("is in use: process") == 1
    other = log_of(folder, "locked", 1)
    assert "sparkmim: " not in other
    assert "Traceback" not in other


def test_the_same_computation_continues_with_other_processes(folder: Path, seen: dict[str, dict[str, Any]]) -> None:
    assert seen["other_processes"]["codes"] == [[75], [75, 75], [2, 2, 2], [0]]
    log = log_of(folder, "other_processes")
    assert "3 processes cannot share the 4 images of each step of this run; use one of 1, 2, 4" in log
    assert log.count("from here on steps are computed in other parts") == 1  # four parts by two processes are the same
    assert "(2 of 2, batch norm over 2 now, 4 of 1, batch norm over 1 before)" in log
    assert [line["step"] for line in lines(folder / "other_processes") if "loss" in line] == list(range(1, 7))


def test_a_reader_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    """As by the system, when memory is short: the step is read to its end in the training process, and saved."""

    def kill_readers(step: int) -> None:
        if step == 2:
            for child in multiprocessing.active_children():
                child.kill()

    images = make_images(tmp_path / "images")
    chosen = TINY_PRETRAIN | {"data": images, "workers": 1, "epochs": 8.0, "accumulate": 2}
    with pytest.raises(RunStopped, match=r"a process that reads images died at step \d+ .*state: .*step-0"):
        pretrain(tmp_path / "run", chosen=chosen, after_step=kill_readers)
    saved = final(tmp_path / "run")["step"]
    assert saved >= 3
    pretrain(tmp_path / "run", chosen={"workers": 0})
    pretrain(tmp_path / "whole", chosen=chosen | {"workers": 0})
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_the_held_out_loss_of_two_processes_is_of_the_model_that_is_saved(
    folder: Path, seen: dict[str, dict[str, Any]]
) -> None:
    """Each has batch norm statistics of its own, and the checkpoint those of the first one."""
    run = folder / IGNORED[1].replace(":", "-")
    kind = Pretraining()
    ready = prepare(kind, run, None, "auto", {"workers": 0}, 1)
    task = kind.build(ready, Fabric(accelerator="cpu", devices=1))
    assert ready.state is not None
    task.model.load_state_dict(ready.state["model"])
    told = [line["val_loss"] for line in lines(run) if "val_loss" in line][-1]
    assert task.measure_held_out()["val_loss"] == pytest.approx(told, rel=1e-6)
