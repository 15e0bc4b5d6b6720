"""An interrupted run, continued, is the run that was not interrupted: bitwise, whenever and however often."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from helpers import (
    STEPS,
    TINY_PRETRAIN,
    assert_equal,
    assert_same_training,
    final,
    interrupt_at,
    lines,
    make_images,
    numbers,
    record,
)
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import main
from sparkmim.pretraining.run import pretrain
from sparkmim.training.loop import Outcome
from sparkmim.training.step import Trainer

pytestmark = pytest.mark.slow

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stochastic-depth": {"model": "test_convnext", "drop_path": 0.5},
    "bf16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate": 2},
    "keyed-order": {"order": "keyed"},
    "adamw-one-epoch": {"optimizer": "adamw", "epochs": 0.8, "warmup_epochs": 0.0},
    "held-out": {"val_share": 0.2, "val_every": 0.4, "pictures": 3, "epochs": 3.0},
}


class Stages:
    """Runs of one folder, one after the other."""

    def __init__(self, folder: Path, images: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, TINY_PRETRAIN | {"data": images} | settings
        self.said: list[str] = []

    def __call__(self, stop: int | None = None, by: signal.Signals = signal.SIGTERM, **settings: Any) -> Outcome:
        after = None if stop is None else interrupt_at(stop, by)
        self.said.clear()
        chosen = self.settings | settings
        outcome = record(self.said, pretrain, self.folder, chosen=chosen, after_step=after)
        assert outcome is not None
        return outcome


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_continued(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path], variant: str
) -> None:
    whole = uninterrupted(**VARIANTS[variant])
    run = Stages(tmp_path / "run", images, **VARIANTS[variant])
    first = run(1)
    assert (first.step, first.interrupted) == (1, "SIGTERM")
    if first.steps > 2:
        second = run(first.steps // 2 + 1, signal.SIGINT)  # within an epoch
        assert (second.step, second.interrupted) == (first.steps // 2 + 1, "SIGINT")
        assert f"continuing after step 1 of {first.steps}" in run.said
    last = run()
    assert (last.step, last.interrupted) == (first.steps, None)
    assert_same_training(run.folder, whole)
    assert_equal(final(run.folder)["told"], final(whole)["told"])  # what the user sees at the end
    held_out = [(line["step"], line["val_loss"]) for line in lines(run.folder) if "val_loss" in line]
    assert held_out == [(line["step"], line["val_loss"]) for line in lines(whole) if "val_loss" in line]
    assert len(held_out) == len(dict(held_out)) == (0 if variant != "held-out" else first.steps)
    assert [number[0] for number in numbers(run.folder)] == list(range(1, first.steps + 1))
    mine, theirs = (load((folder / "encoder.safetensors").read_bytes()) for folder in (run.folder, whole))
    assert_equal(mine, theirs, "encoder")
    drawn = [sorted(path.name for path in (folder / "reconstructions").iterdir()) for folder in (run.folder, whole)]
    assert drawn[0] == drawn[1]


def test_the_variants_are_not_the_plain_run(uninterrupted: Callable[..., Path]) -> None:
    """Stochastic depth, precision and accumulation are really switched on."""
    plain = [number[2] for number in numbers(uninterrupted())]
    without = [number[2] for number in numbers(uninterrupted(model="test_convnext"))]
    assert [n[2] for n in numbers(uninterrupted(**VARIANTS["stochastic-depth"]))] != without
    for variant in ("bf16", "accumulated"):
        assert [n[2] for n in numbers(uninterrupted(**VARIANTS[variant]))] != plain


def test_every_number_of_workers_gives_the_same_run(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    run = Stages(tmp_path / "run", images)
    assert run(2, workers=2).step == 2
    assert run(3, workers=0).step == 3
    assert run(5, workers=1, checkpoint_minutes=0.0).step == 5
    assert run(workers=2).step == STEPS
    assert_same_training(run.folder, uninterrupted())


def test_pictures_and_held_out_images_do_not_disturb(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    other = make_images(tmp_path / "other", 3, seed=5)
    run = Stages(
        tmp_path / "run", images, val_data=other, val_every=0.4, pictures=3, checkpoint_minutes=0.0, log_every=2
    )
    outcome = run()
    assert "val_loss" in outcome.measured
    first, second = final(run.folder), final(uninterrupted())
    for part in ("model", "optimizer"):
        assert_equal(first[part], second[part], part)
    assert sum("val_loss" in line for line in lines(run.folder)) == STEPS
    assert len(list((run.folder / "reconstructions").iterdir())) == 3


def test_lines_of_many_steps_do_not_depend_on_interruptions(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    run = Stages(tmp_path / "run", images, log_every=4)
    run(3, checkpoint_minutes=0.0)
    assert lines(run.folder) == []
    run(5)
    run()
    every, fourth = numbers(uninterrupted()), numbers(run.folder)
    assert [number[0] for number in fourth] == [4, 6]
    assert [number[2] for number in fourth] == [
        sum(number[2] for number in every[:4]) / 4,
        sum(number[2] for number in every[4:]) / 2,
    ]


def test_schedules_continue(tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]) -> None:
    run = Stages(tmp_path / "run", images)
    run(3)
    recorded = final(run.folder)["optimizer"]["param_groups"][0]["lr"]
    assert recorded == numbers(uninterrupted())[2][3]
    run(4)
    assert [n[3:5] for n in numbers(run.folder)] == [n[3:5] for n in numbers(uninterrupted())[:4]]


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Stages(tmp_path / "run", images, epochs=0.8, warmup_epochs=0.0)
    run()
    (checkpoint,) = RunFolder(run.folder).list_checkpoints()
    encoder = run.folder / "encoder.safetensors"
    before = checkpoint.stat().st_mtime_ns, (run.folder / "metrics.jsonl").read_bytes(), load(encoder.read_bytes())
    encoder.write_bytes(b"of an older step")  # as a crash after the checkpoint leaves it
    outcome = run()
    assert outcome == Outcome(2, 2, None, {}, None)
    assert "this run is done (2 steps); nothing is left to do" in run.said
    assert checkpoint.stat().st_mtime_ns == before[0]
    assert (run.folder / "metrics.jsonl").read_bytes() == before[1]
    assert_equal(load(encoder.read_bytes()), before[2])
    monkeypatch.setattr(sys, "argv", ["sparkmim", "pretrain", "--output", str(run.folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "nothing is left to do" in printed
    assert f"sparkmim embed --encoder {encoder} --data FOLDER" in printed


def test_a_broken_newest_checkpoint_is_passed_over_with_a_word(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    run = Stages(tmp_path / "run", images, checkpoint_minutes=0.0, keep_checkpoints=2)
    run(4)
    newest = RunFolder(run.folder).list_checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    outcome = run(keep_checkpoints=1)
    assert outcome.step == STEPS
    (said,) = [line for line in run.said if line.startswith("step-000000004.pt cannot be read")]
    assert "cut off, or of another format); continuing from the older step-000000003.pt" in said
    assert (newest.parent / f"{newest.name}.unreadable").stat().st_size == 1000
    assert f"continuing after step 3 of {STEPS}" in run.said
    assert_same_training(run.folder, uninterrupted())


def test_a_named_checkpoint_is_continued_from(tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]) -> None:
    run = Stages(tmp_path / "run", images, checkpoint_minutes=0.0, keep_checkpoints=9)
    run(4)
    named = RunFolder(run.folder).list_checkpoints()[1]
    elsewhere = Stages(tmp_path / "elsewhere", images)
    record(elsewhere.said, pretrain, elsewhere.folder, resume=str(named), chosen=elsewhere.settings)
    assert f"continuing after step 2 of {STEPS}" in elsewhere.said
    assert [number[0] for number in numbers(elsewhere.folder)] == [3, 4, 5, 6]
    assert_equal(final(elsewhere.folder)["model"], final(uninterrupted())["model"])
    record(run.said, pretrain, run.folder, resume=str(named))  # goes back within the same folder
    assert_same_training(run.folder, uninterrupted())
    kept = [path.name for path in RunFolder(run.folder).list_checkpoints()]
    assert kept == [f"step-{step:09}.pt" for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("moment", ["metrics", "step"])
@pytest.mark.parametrize("where", ["same", "elsewhere"])
def test_a_run_that_ends_right_after_it_went_back(
    tmp_path: Path,
    images: Path,
    uninterrupted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    moment: str,
) -> None:
    """It goes on from the checkpoint that was named: not from a later one without its metrics, nor the beginning."""
    run = Stages(tmp_path / "run", images, checkpoint_minutes=0.0, keep_checkpoints=9)
    run(4)
    named = RunFolder(run.folder).list_checkpoints()[1]
    folder = run.folder if where == "same" else tmp_path / "elsewhere"
    where_it_ends: tuple[Any, str] = (RunFolder, "truncate_metrics") if moment == "metrics" else (Trainer, "train_step")
    with monkeypatch.context() as patch:
        patch.setattr(*where_it_ends, die)
        with pytest.raises(KeyboardInterrupt):
            record(run.said, pretrain, folder, resume=str(named))
    assert [path.name for path in RunFolder(folder).list_checkpoints()][-1] == named.name
    wanted = torch.load(named, weights_only=True)
    assert_equal(final(folder) | {name: wanted[name] for name in ("origin", "origin_file")}, wanted)
    run.said.clear()
    outcome = record(run.said, pretrain, folder)
    assert outcome is not None
    assert f"continuing after step 2 of {STEPS}" in run.said
    assert_equal(final(folder)["model"], final(uninterrupted())["model"])
    assert numbers(folder) == numbers(uninterrupted())[0 if where == "same" else 2 :]


def die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_named_checkpoint_brings_its_settings(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    run = Stages(tmp_path / "run", images)
    run(2)
    named = str(RunFolder(run.folder).list_checkpoints()[-1])
    elsewhere = tmp_path / "elsewhere"
    record(run.said, pretrain, elsewhere, resume=named, after_step=interrupt_at(3))
    outcome = record(run.said, pretrain, elsewhere)
    assert outcome is not None
    assert_equal(final(elsewhere)["model"], final(uninterrupted())["model"])
    longer = record(
        run.said, pretrain, tmp_path / "longer", resume=named, chosen={"epochs": 4.0}, after_step=interrupt_at(3)
    )
    assert longer is not None
    assert (longer.step, longer.steps) == (3, 10)


def test_output_alone_continues_with_what_was_recorded(
    tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((uninterrupted() / "encoder.safetensors").read_bytes())
    folder = tmp_path / "moved"
    moved = make_images(folder)
    run = Stages(tmp_path / "run", moved, init=str(weights))
    run(2)
    weights.unlink()  # it is needed for the beginning only
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there is no folder .*moved"):
        record(run.said, pretrain, run.folder)
    outcome = record(run.said, pretrain, run.folder, chosen={"data": tmp_path / "elsewhere"})
    assert outcome is not None
    assert outcome.step == STEPS
    assert json.loads((run.folder / "config.json").read_text())["data"]["data"] == str(tmp_path / "elsewhere")


def test_the_recorded_device_is_used(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Stages(tmp_path / "run", images)
    run(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # what auto would take
    outcome = record(run.said, pretrain, run.folder, after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.step == 2


def test_signal_handlers_are_as_before(tmp_path: Path, images: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    Stages(tmp_path / "run", images)(1)
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_closed_terminal_saves_unless_it_is_to_be_survived(tmp_path: Path, images: Path) -> None:
    run = Stages(tmp_path / "run", images)
    assert run(1, signal.SIGHUP).interrupted == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        assert run(2, signal.SIGHUP).step == STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_stops_at_once(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.training.signals.AGAIN_SECONDS", 0.0)

    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = Stages(tmp_path / "run", images)
    with pytest.raises(KeyboardInterrupt):
        record(run.said, pretrain, run.folder, chosen=run.settings, after_step=twice)
    assert RunFolder(run.folder).newest_checkpoint() is None
    assert run(1).step == 1


def command(output: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sparkmim", "pretrain", "--output", str(output), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_outlives_what_reads_its_lines(tmp_path: Path, images: Path) -> None:
    """As with `| head`, or `| tee` after Ctrl-C, which ends both."""
    settings = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --epochs 2.4 --workers 0"
    process = command(tmp_path / "run", "--data", images, *settings.split())
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    assert final(tmp_path / "run")["step"] == STEPS


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    path = folder / "metrics.jsonl"
    start = time.monotonic()
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < 120
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True], ids=["trainer", "all-processes"])
def test_the_command_saves_exits_with_75_and_continues(tmp_path: Path, images: Path, everyone: bool) -> None:
    """A scheduler may signal all processes of a job, those that read images too; so does a terminal that is closed."""
    folder = tmp_path / "run"
    settings = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --epochs 1000 --log-every 1"
    process = command(folder, "--data", images, *settings.split(), "--workers", 2 if everyone else 0, "--pictures", 1)
    for by, arguments in ((signal.SIGTERM, []), (signal.SIGHUP if everyone else signal.SIGINT, None)):
        if arguments is None:
            process = command(folder)
        before = len(lines(folder)) if arguments is None else 0
        wait_for_lines(folder, before + 3, process)
        (os.killpg if everyone else os.kill)(process.pid, by)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert "Traceback" not in err
        newest = final(folder)
        assert newest["step"] > before
        assert f"{by.name}: saved after step {newest['step']} of 2500" in out
        assert f"sparkmim pretrain --output {folder}" in out
        assert [number[0] for number in numbers(folder)] == list(range(1, newest["step"] + 1))


def test_a_run_that_is_done_goes_on_for_more_epochs(tmp_path: Path, images: Path) -> None:
    """As it does in another folder from its last checkpoint, and the schedule is told."""
    run = Stages(tmp_path / "run", images, epochs=1.6, warmup_epochs=0.4)
    assert run(1).interrupted
    with pytest.raises(ValueError, match=r"another configuration \(epochs: 1.6 there, 3.2 asked for\)"):
        run(epochs=3.2)
    assert run().step == 4
    with pytest.raises(ValueError, match="another configuration"):
        run(epochs=0.8)
    with pytest.raises(ValueError, match="another configuration"):
        run(epochs=3.2, lr=0.02)
    (checkpoint,) = RunFolder(run.folder).list_checkpoints()[-1:]
    pretrain(tmp_path / "new", resume=str(checkpoint), chosen={"epochs": 3.2})
    assert run(5, epochs=3.2).interrupted
    (said,) = (line for line in run.said if line.startswith("this run was done after 1.6 epochs, and goes on to 3.2"))
    assert "without another warm-up" in said
    assert run(epochs=3.2).step == 8  # as a scheduler gives the command again
    assert not any(line.startswith("this run was done") for line in run.said)
    assert_equal(final(run.folder)["model"], final(tmp_path / "new")["model"])
    assert numbers(run.folder)[4:] == numbers(tmp_path / "new")
    rates = [line[3] for line in numbers(run.folder)]
    assert f"{rates[4]:.3g} instead of {rates[3]:.3g}" in said
    assert rates[4] > rates[3]
    assert [line[0] for line in numbers(run.folder)] == list(range(1, 9))
