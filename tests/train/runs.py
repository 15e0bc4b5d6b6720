"""What tests of training share: tiny runs, their numbers, and how they are interrupted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sparkmim.train import RunFolder

STEPS = 6
"""Steps of a run with the settings below: 2.4 epochs of 10 images by 4."""

TINY: dict[str, Any] = {
    "model": "test_resnet",
    "image_size": (64, 64),
    "decoder_width": 32,
    "batch_size": 4,
    "accumulate": 1,
    "epochs": 2.4,
    "warmup_epochs": 0.8,
    "lr": 0.01,
    "precision": "32",
    "device": "cpu",
    "seed": 1,
    "workers": 0,
    "log_every": 1,
    "pictures": 1,
}


def make_images(folder: Path, count: int = 10, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def interrupt_at(step: int, by: signal.Signals = signal.SIGTERM) -> Callable[[int], None]:
    def after_step(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), by)

    return after_step


def final(folder: Path) -> dict[str, Any]:
    newest = RunFolder(folder).newest_checkpoint()
    assert newest is not None
    return newest[0]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bitwise."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{index}")
    else:
        assert one == other, where


def assert_same_training(one: Path, other: Path) -> None:
    """Bitwise the same weights, optimiser and losses at the end."""
    first, second = final(one), final(other)
    for part in ("step", "model", "optimizer", "precision"):
        assert_equal(first[part], second[part], part)
    assert numbers(one) == numbers(other)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder: Path) -> list[tuple[float, ...]]:
    """Of each step's line, what does not depend on the clock."""
    names = ("step", "epoch", "loss", "lr", "weight_decay", "grad_norm")
    return [tuple(line[name] for name in names) for line in lines(folder) if "loss" in line]
