"""Batches reach the training process whatever room there is in shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import TINY_PRETRAIN, record
from sparkmim.data import loader, shared_memory
from sparkmim.data.config import DataConfig
from sparkmim.data.loader import Batch, MaskedViews, PlainViews, plain_batches, read, training_batches
from sparkmim.data.sampler import Positions
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import evaluation_view, training_view

CONFIG = DataConfig(image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def read_all(images: Path, workers: int) -> list[Batch]:
    views = MaskedViews(find_images(images), training_view(CONFIG), 3, (4, 4), 0.6, 0)
    with read(training_batches(views, Positions(10, 4, 4, 0), workers)) as batches:
        return list(batches)


@pytest.mark.parametrize("free", [0, 10**5, None], ids=["full", "small", "none"])
def test_batches_are_the_same_whatever_is_free(images: Path, monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    for module in (shared_memory, loader):
        monkeypatch.setattr(module, "shared_memory_free", lambda: free)
    said: list[str] = []
    alone, passed = read_all(images, 0), record(said, read_all, images, 2)
    for one, other in zip(alone, passed, strict=True):
        assert isinstance(other, Batch)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.visible, other.visible)
        assert one.indices == other.indices
    assert len(said) == (free == 0)  # once, and 10**5 bytes are enough for these
    assert all("Enlarge it (docker run --shm-size 8g), or use fewer --workers" in line for line in said)


def test_plain_views_too(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "shared_memory_free", lambda: 0)
    views = PlainViews(find_images(images), evaluation_view(CONFIG), 3)
    with read(plain_batches(views, 4, 1)) as batches:
        assert [index for batch in batches for index in batch.indices] == list(range(10))


def test_positions_after_some_batches() -> None:
    positions = Positions(10, 4, 5, 0, start=1, accumulate=2)
    whole = list(positions)
    for count in range(len(whole) + 1):
        assert list(positions.after(count)) == whole[count:]


@pytest.mark.slow
def test_a_small_file_system_for_real(tmp_path: Path, images: Path) -> None:
    """As containers have it, in a mount namespace of its own."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    share = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    try:
        tried = subprocess.run([*share, "sh", "-c", mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if tried.returncode:
        pytest.skip(f"no file system can be mounted: {tried.stderr.strip()}")
    settings = TINY_PRETRAIN | {"image_size": 64, "data": images, "workers": 2}
    flags = " ".join(f"--{name.replace('_', '-')} '{value}'" for name, value in settings.items())
    command = f"{mount} && exec '{sys.executable}' -m sparkmim pretrain --output '{tmp_path / 'run'}' {flags}"
    done = subprocess.run([*share, "sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "done: 6 steps" in done.stdout
    assert "shared memory (/dev/shm) has 0 MiB free" in done.stderr
    assert "Traceback" not in done.stderr
