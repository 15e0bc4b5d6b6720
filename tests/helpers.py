"""Shared by tests: tiny images, tiny runs of them, their numbers, and how they are interrupted."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.transfer.config import NetworkConfig
from sparkmim.transfer.network import Network
from sparkmim.transfer.tasks.classification import Classification
from sparkmim.utils.fields import NoSettings
from sparkmim.utils.logging import log, printing

# --- what is logged -------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def record(lines: list[str], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function and collect what is logged meanwhile."""
    handler, level = Lines(lines), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        return function(*args, **kwargs)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def printed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function and print what is logged meanwhile, as the command line does."""
    with printing():
        return function(*args, **kwargs)


# --- pretraining ----------------------------------------------------------------------------------------------------

STEPS = 6
"""Steps of a run with the settings below: 2.4 epochs of 10 images by 4."""

SMALLEST_PRETRAIN: dict[str, Any] = {
    "decoder_width": 16,
    "batch_size": 2,
    "accumulate": 1,
    "epochs": 2.0,
    "warmup_epochs": 0.5,
    "lr": 0.01,
    "precision": "32",
    "device": "cpu",
    "workers": 0,
    "log_every": 1,
    "pictures": 1,
}
"""A pretraining on a few volumes, signals or clips; network and size are those of the tests."""

TINY_PRETRAIN: dict[str, Any] = {
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


# --- labeled images and fine-tuning --------------------------------------------------------------------------------

CLASSES = ("blue", "green", "red")

TINY_FINETUNE: dict[str, Any] = {
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


FOUR_STEPS: dict[str, Any] = {
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


def build_classifier(classes: int, **settings: Any) -> Network:
    """A network with a classifier of some classes, by fields of its configuration."""
    task = Classification(NoSettings())
    return task.build(NetworkConfig(**settings), {"classes": [str(number) for number in range(classes)]})


# --- networks and models --------------------------------------------------------------------------------------------


def conv_norm_relu(
    inputs: int, outputs: int, stride: int | tuple[int, int] = 1, kernel: int = 3, padding: int = 1
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU())


class FixedClassifier(nn.Module):
    """Strides 2, 4, 4, 8 and a head that only fits maps of 7 x 7, as VGG's: it cannot run on patches."""

    stages = ["stem", "wide", "same", "deep"]

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.stem = conv_norm_relu(in_chans, 4, 2)
        self.wide = conv_norm_relu(4, 6, 2)
        self.same = conv_norm_relu(6, 8)
        self.deep = conv_norm_relu(8, 10, 2)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Linear(10 * 49, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.same(self.wide(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


class PlainNetwork(nn.Module):
    """Strides 2, 4, 8: a halo, batch norm and squeeze-excite."""

    stages = ["stem", "mid", "deep"]

    def __init__(self, in_chans: int = 3, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2, 1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.mid = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), norm(12), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Sigmoid())
        self.deep = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(12, 16, 3, 1, 1), norm(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.stem(x))
        x = self.deep(x * self.gate(x))
        return self.head(x.mean((2, 3)))


def build_spark(name: str = "plain", **settings: Any) -> SparK:
    torch.manual_seed(0)
    settings.setdefault("decoder_width", 32)
    backbone = Backbone(PlainNetwork(), PlainNetwork.stages) if name == "plain" else name
    return SparK(backbone, **settings).double()


def random_images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def seeded_mask(batch: int, *grid: int, ratio: float = 0.6, seed: int = 1) -> Tensor:
    return random_visible(batch, grid, ratio, torch.Generator().manual_seed(seed))


def mask_of_pixels(visible: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Return the mask at the resolution of the images, bool `(B, 1, H, W)`."""
    for axis, extent in enumerate(patch):
        visible = visible.repeat_interleave(extent, dim=axis + 1)
    return visible.unsqueeze(1)


def differentiate(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and its gradients for a fixed one of its own."""
    weights = torch.linspace(-1, 1, out.numel()).to(out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def in_two_processes(*arguments: str, seconds: float = 180) -> str:
    """What the command says; it has to succeed in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = f"-m torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port {port}"
    command = [sys.executable, *torchrun.split(), "-m", "--", "sparkmim", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    return out
