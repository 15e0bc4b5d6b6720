"""Lines of metrics: on the disk before the checkpoint that they lead to, and in TensorBoard's format."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import TINY_PRETRAIN, interrupt_at, lines
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.pretraining.run import pretrain
from sparkmim.training.metrics import Metrics


def test_numbers_are_read_by_tensorboard(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        metrics = Metrics(RunFolder(tmp_path), start)
        for step in steps:
            metrics.write({"step": step, "epoch": step / 2, "loss": 1 / step, "lr": 0.1 * start})
        metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["loss", "lr"]
    seen = {event.step: event.value for event in board.Scalars("loss")}
    assert seen == pytest.approx({1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_no_thread_writes_numbers(tmp_path: Path) -> None:
    """Its traceback would come before the message of a full disk."""
    before = threading.active_count()
    metrics = Metrics(RunFolder(tmp_path), 0)
    metrics.write({"step": 1, "loss": 1.0})
    assert threading.active_count() == before
    metrics.board._file.close()
    metrics.board._file = open("/dev/full", "wb")  # noqa: SIM115
    metrics.board._records._writer = metrics.board._file
    metrics.write({"step": 2, "loss": 1.0})
    with pytest.raises(OSError) as error:
        metrics.sync()
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        metrics.close()


@pytest.mark.slow
def test_lines_are_on_the_disk_before_the_checkpoint(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, events = RunFolder(tmp_path / "run"), []
    fsync, save = os.fsync, RunFolder.save_checkpoint

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        if run.metrics.exists() and os.path.samestat(os.fstat(descriptor), run.metrics.stat()):
            events.append(("synced", [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]))

    def saved(self: RunFolder, state: Any, step: int, keep: int) -> Path:
        events.append(("saved", step))  # type: ignore[arg-type]
        return save(self, state, step, keep)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(RunFolder, "save_checkpoint", saved)
    chosen = TINY_PRETRAIN | {"data": images, "checkpoint_minutes": 0.0, "pictures": 0}
    pretrain(run.root, chosen=chosen, after_step=interrupt_at(2))
    assert events == [("synced", [1]), ("saved", 1), ("synced", [1, 2]), ("saved", 2)]
