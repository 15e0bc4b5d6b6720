"""Requests to stop: which signals are taken, and what is left to the program around."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkmim.commands.outcome import report_outcome
from sparkmim.training import signals
from sparkmim.training.loop import Outcome
from sparkmim.training.signals import TIME_LIMIT, StoppedEarly, StopRequest
from sparkmim.utils.interruption import STOPS, Interrupted, interruptible, leave_if_asked


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_is_recorded(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == number.name
    assert signal.getsignal(number) == before  # type: ignore[unreachable]


@pytest.mark.parametrize("number", STOPS)
def test_before_the_first_step_it_stops_at_once(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.at_once = True
        with pytest.raises(StoppedEarly, match=number.name):
            os.kill(os.getpid(), number)


def test_what_torchrun_passes_on_is_not_a_second_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_handlers_of_the_program_around_stay(number: signal.Signals) -> None:
    seen: list[int] = []
    signal.signal(number, lambda number, _: seen.append(number))
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
    assert seen == [number]
    assert stop.signal is None


def test_when_processes_leave_together_no_signal_ends_one() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.hold()
    for number in STOPS:
        os.kill(os.getpid(), number)


def test_a_request_within_one_is_the_same() -> None:
    with StopRequest() as stop:
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == "SIGTERM"


def test_work_is_left_within_a_block_only() -> None:
    asked: list[int] = []
    leave_if_asked()
    with interruptible(lambda: bool(asked)):
        leave_if_asked()
        asked.append(1)
        with pytest.raises(Interrupted):
            leave_if_asked()
    leave_if_asked()


@pytest.mark.skipif(not Path("/proc/self/stat").exists() or shutil.which("ps") is None, reason="reads /proc")
def test_processes_of_torchrun_count_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts those again that end by a limit of time, which would be granted once more."""
    assert time.monotonic() - StopRequest().began < 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    found = time.monotonic() - StopRequest().began
    told = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getppid())], capture_output=True, text=True, check=True)
    assert abs(found - int(told.stdout)) < 2
    stop = StopRequest()
    stop.limit((found - 1) / 60)
    assert stop.signal == TIME_LIMIT


@pytest.mark.parametrize(
    ("asked", "advice"), [("SIGTERM", "again\n"), (TIME_LIMIT, "again, with a longer --time-limit if this repeats\n")]
)
def test_what_to_do_if_a_stop_came_before_the_first_step(
    asked: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_outcome(tmp_path, Outcome(0, 0, None, {}, asked), []) == 75
    assert capsys.readouterr().out.endswith(f"{asked}: ended before the first step; give the same command {advice}")
