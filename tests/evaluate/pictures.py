"""Labelled pictures that are easily told apart, and tiny fine-tunings of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")

TINY: dict[str, Any] = {
    "model": "test_resnet",
    "encoder": "none",
    "image_size": (64, 64),
    "batch_size": 6,
    "epochs": 1.0,
    "warmup_epochs": 0.25,
    "precision": "32",
    "device": "cpu",
    "seed": 1,
    "workers": 0,
    "log_every": 1,
    "val_every": 0.5,
    "ema": 0.9,
}


PRETRAIN: dict[str, Any] = {
    "model": "test_resnet",
    "image_size": (64, 64),
    "decoder_width": 32,
    "batch_size": 6,
    "epochs": 1.0,
    "warmup_epochs": 0.25,
    "lr": 0.01,
    "precision": "32",
    "device": "cpu",
    "seed": 1,
    "workers": 0,
    "log_every": 1,
    "pictures": 0,
}
"""A tiny pretraining: four steps of 24 images."""


def make_split(root: Path, each: int = 8, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class folders of coarse noise with a tint."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            coarse = generator.integers(0, 150, (5, 6, 3))
            coarse[..., 2 - number % 3] += 90
            picture = Image.fromarray(coarse.astype(np.uint8)).resize((80, 70), Image.Resampling.BICUBIC)
            picture.save(root / name / f"{index}.png")
    return root


def make_data(root: Path) -> Path:
    """Training, validation and test images."""
    for seed, (split, each) in enumerate((("train", 8), ("val", 4), ("test", 4))):
        make_split(root / split, each, seed)
    return root
