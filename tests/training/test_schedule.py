"""Learning rate and weight decay of every step, against the formulas of the official `lr_wd_annealing`."""

from __future__ import annotations

import math

import pytest

from sparkmim.training.config import ScheduleConfig
from sparkmim.training.schedule import learning_rate, steps_of, weight_decay

CONFIG = ScheduleConfig(epochs=10.0, warmup_epochs=2.0)


@pytest.mark.parametrize(("steps", "warmup", "peak"), [(100, 10, 3.2e-3), (480, 1, 1e-2), (7, 0, 1.0), (50, 49, 2.0)])
def test_every_step_follows_the_official_formula(steps: int, warmup: int, peak: float) -> None:
    for step in range(steps):
        if step < warmup:
            expected = 0.005 * peak + 0.995 * peak * step / warmup
        else:
            ratio = (step - warmup) / max(1, steps - 1 - warmup)
            expected = 0.001 * peak + 0.999 * peak * (0.5 + 0.5 * math.cos(math.pi * ratio))
        assert learning_rate(step, steps, warmup, peak, CONFIG) == pytest.approx(expected, rel=1e-12)
        ratio = step / (steps - 1)
        expected = 0.2 + (0.04 - 0.2) * (0.5 + 0.5 * math.cos(math.pi * ratio))
        assert weight_decay(step, steps, 0.04, 0.2) == pytest.approx(expected, rel=1e-12)


def test_the_ends() -> None:
    assert learning_rate(0, 100, 10, 2.0, CONFIG) == pytest.approx(0.005 * 2)
    assert learning_rate(5, 100, 10, 2.0, CONFIG) == pytest.approx(2 * (0.005 + 0.995 / 2))
    assert learning_rate(10, 100, 10, 2.0, CONFIG) == pytest.approx(2.0)
    assert learning_rate(99, 100, 10, 2.0, CONFIG) == pytest.approx(0.001 * 2)
    assert weight_decay(0, 100, 0.04, 0.2) == pytest.approx(0.04)
    assert weight_decay(99, 100, 0.04, 0.2) == pytest.approx(0.2)


def test_other_shares() -> None:
    config = ScheduleConfig(epochs=1.0, warmup_epochs=0.5, lr_start=0.5, lr_end=0.25)
    assert learning_rate(0, 9, 4, 1.0, config) == 0.5
    assert learning_rate(8, 9, 4, 1.0, config) == 0.25


def test_one_step_is_at_the_peak() -> None:
    assert learning_rate(0, 1, 0, 3.0, CONFIG) == 3.0
    assert weight_decay(0, 1, 0.04, 0.2) == pytest.approx(0.04)


def test_steps_show_every_image_that_many_times() -> None:
    assert steps_of(1600, 1_281_167, 4096) == round(1600 * 1_281_167 / 4096) == 500_456
    assert steps_of(2.4, 10, 4) == 6
    assert steps_of(0.01, 10, 4) == 1
