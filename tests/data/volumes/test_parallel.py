"""Work in several processes: results in order, progress, and an end when it is asked for."""

from __future__ import annotations

import io
import logging
import os
import sys
import time

import pytest

from sparkmim.data.volumes import parallel
from sparkmim.data.volumes.parallel import each
from sparkmim.utils.interruption import Interrupted, interruptible


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (3 - number % 4))  # the first ones end last
    return number**2, os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3, 50])
def test_results_are_in_order(workers: int) -> None:
    results = list(each(slow_square, list(range(9)), workers, "squaring"))
    assert [square for square, _ in results] == [number**2 for number in range(9)]
    assert (os.getpid() in {process for _, process in results}) == (workers == 0)
    assert list(each(slow_square, [], workers, "squaring")) == []


def test_work_is_left_when_a_stop_is_asked_for() -> None:
    asked = iter([False, False, True])
    results = each(slow_square, list(range(50)), 2, "squaring")
    with interruptible(lambda: next(asked)):
        assert [next(results)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(Interrupted):
            next(results)


def test_bar_on_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with caplog.at_level(logging.INFO, "sparkmim"):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            list(each(slow_square, list(range(4)), 0, "squaring"))
        assert "squaring: 100%" in terminal.getvalue()
        assert "4/4" in terminal.getvalue()
        assert not caplog.text
        monkeypatch.setattr(parallel, "LINE_SECONDS", 0.0)
        list(each(slow_square, list(range(4)), 0, "squaring"))
    assert "squaring volumes: 1 of 4" in caplog.text
