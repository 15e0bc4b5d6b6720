"""What the user sees while a run lasts."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import TINY_PRETRAIN, record
from sparkmim.pretraining.run import pretrain
from sparkmim.training.progress import Progress
from sparkmim.utils.logging import printing

LINE = {"step": 1, "epoch": 0.5, "loss": 0.9, "images_per_second": 30.0}


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Somebody listens to the logger, as the command line does."""
    with printing():
        yield


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_what_was_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(4, 0)
    progress.advance()
    progress.show(LINE)
    progress.show({"step": 1, "epoch": 0.5, "val_loss": 0.75})
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert "1/4 steps" in last
    assert last.rstrip().endswith("loss 0.9000, held-out loss 0.7500, 30 images/s")


def test_what_is_measured_before_the_first_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(4, 0)
    progress.show({"step": 1, "epoch": 0.5, "val_loss": 0.75})
    progress.close()
    assert terminal.getvalue().rstrip().endswith("left, held-out loss 0.7500")


def test_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(4, 0)
    progress.advance()
    progress.show(LINE)
    progress.show({"step": 1, "epoch": 0.5, "val_loss": 0.75})
    for _ in range(3):
        progress.advance()
    progress.show(LINE | {"step": 4, "epoch": 2.0})  # the last one, although it comes soon after the first
    progress.show({"step": 4, "epoch": 2.0, "val_loss": 0.25})
    progress.close()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1/4, epoch 0.50: loss 0.9000, 30 images/s, ")
    assert last.startswith("step 4/4, epoch 2.00: loss 0.9000, held-out loss 0.2500, 30 images/s, 0 s left")


def test_a_run_that_goes_on_shows_the_average_of_one_that_was_never_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = [0.9, 0.8, 0.3]
    whole = Progress(4, 0)
    for loss in losses:
        whole.show(LINE | {"loss": loss})
    first = Progress(4, 0)
    first.show(LINE | {"loss": losses[0]})
    first.show({"val_loss": 0.75})
    second = Progress(4, 1, loss=first.loss, measured=first.measured)
    for loss in losses[1:]:
        second.show(LINE | {"loss": loss})
    assert second.loss == whole.loss
    assert "held-out loss 0.7500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "length", "clipping"),
    [
        ({"epochs": 1.2, "warmup_epochs": 0.5}, "1.2 epochs = 3 steps, 0.5 epochs", ", gradients clipped at 5"),
        ({"epochs": 1.0, "warmup_epochs": 0.5, "clip": 0.0}, "1 epoch = 2 steps, 0.5 epochs", ""),
    ],
)
def test_the_plan(tmp_path: Path, images: Path, settings: dict[str, float], length: str, clipping: str) -> None:
    said: list[str] = []
    record(said, pretrain, tmp_path / "run", plan=True, chosen=TINY_PRETRAIN | {"data": images} | settings)
    assert f"length       {length} of warm-up" in said
    assert any(line.startswith("optimizer ") and line.endswith(f"betas 0.9 0.95{clipping}") for line in said)
    assert not (tmp_path / "run").exists()
