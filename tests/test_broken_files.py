"""Readers of views x broken files: each counts and lists what it cannot read, and counts no replacement."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import sparkmim
from helpers import CLASSES, SMALLEST_PRETRAIN, TINY_FINETUNE, lines, make_split, record
from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import channel_statistics

SIZE = 64

GOOD = 4
"""Images of each class that can be read."""


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def png_header(height: int, width: int) -> bytes:
    """A PNG file of a size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return head + encoded("PNG")[33:]


def claimed(shape: tuple[int, ...]) -> bytes:
    """An .npy file that names a shape, and holds few numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return file.getvalue() + bytes(99)


def array(shape: tuple[int, ...], fill: float, form: str = "npy") -> bytes:
    file = io.BytesIO()
    values = np.full(shape, fill, np.float32)
    np.save(file, values) if form == "npy" else tifffile.imwrite(file, values, photometric="minisblack")
    return file.getvalue()


BROKEN: dict[str, bytes | None] = {
    "cut.jpg": encoded("JPEG")[:-900],
    "cut.png": encoded("PNG")[:-900],
    "cut.tif": array((40, 40), 0.5, "tif")[:-900],
    "denied.png": encoded("PNG"),
    "denied.tif": array((40, 40), 0.5, "tif"),
    "empty.jpg": b"",
    "empty.tif": b"",
    "five.npy": array((5, 40, 40), 0.5),
    "five.tif": array((5, 40, 40), 0.5, "tif"),
    "gone.png": None,
    "large.png": png_header(20_000, 20_000),
    "large.npy": claimed((3, 40_000, 40_000)),
    "nan.npy": array((3, 40, 40), np.nan),
    "nan.tif": array((40, 40), np.nan, "tif"),
    "none.npy": array((3, 0, 40), 0.5),
    "none.png": png_header(0, 40),
    "text.jpg": b"this is no image",
    "text.npy": b"this is no image",
    "text.tif": b"this is no image",
}
"""Names and contents; None is a link to nowhere."""


def broken(folder: Path) -> list[str]:
    """Write the broken files of the table into a folder; their names."""
    for name, content in BROKEN.items():
        if content is None:
            (folder / name).symlink_to(folder / "nowhere" / name)
        else:
            (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    return sorted(BROKEN)


@pytest.fixture(autouse=True)
def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deny to read a file, also to the root user."""

    opened = os.open

    def deny(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(os.fsdecode(path)).stem == "denied":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", deny)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("clean"), GOOD)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, with the broken files in the last of them."""
    folder = make_split(tmp_path_factory.mktemp("spoilt"), GOOD, seed=1)
    broken(folder / "red")
    return folder


LISTED = sorted(f"red/{name}" for name in BROKEN)
"""Names of what each reader cannot read, as it lists them."""

Reader = Callable[[Path, Path, Path], None]
"""A use of images: of a clean folder, one with broken files, and a folder for results."""

PRETRAIN: dict[str, Any] = {
    **SMALLEST_PRETRAIN,
    "decoder_width": 32,
    "model": "test_resnet",
    "image_size": (SIZE, SIZE),
    "batch_size": 6,
    "max_broken": 0.9,
    "flip": False,
}

FINETUNE: dict[str, Any] = {**TINY_FINETUNE, "image_size": (SIZE, SIZE), "max_broken": 0.9, "val_every": 1.0}

FROZEN: dict[str, Any] = {"model": "test_resnet", "image_size": SIZE, "workers": 0, "device": "cpu"}

TOTAL = len(CLASSES) * GOOD + len(BROKEN)


def listed(path: Path) -> list[str]:
    return sorted(line.split("\t")[0] for line in path.read_text().splitlines())


def skipped(said: list[str], start: str = "") -> list[str]:
    """The names in lines such as `skipped red/cut.jpg: ...`, once each."""
    lines = [line.removeprefix(start) for line in said if line.startswith(f"{start}skipped ")]
    return sorted(line.removeprefix("skipped ").split(": ")[0] for line in lines)


def training(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    outcome = record(said, sparkmim.pretrain, output / "run", chosen=PRETRAIN | {"data": spoilt, "epochs": 3.0})
    assert outcome.interrupted is None
    assert listed(output / "run" / "broken_images.txt") == LISTED
    assert any(f"{len(BROKEN)} of {TOTAL} images cannot be read and are replaced" in line for line in said)
    assert "red/cut.jpg" in (output / "run" / "report.html").read_text()


def held_out(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    record(said, sparkmim.pretrain, output / "run", chosen=PRETRAIN | {"data": clean, "val_data": spoilt})
    assert listed(output / "run" / "broken_held_out_images.txt") == LISTED
    assert any(f"held out: {len(BROKEN)} of {TOTAL} images cannot be read and are left out" in line for line in said)
    assert not (output / "run" / "broken_images.txt").exists()


def monitor(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    chosen = {"data": clean, "monitor": "knn", "monitor_data": spoilt, "monitor_every": 1.0}
    record(said, sparkmim.pretrain, output / "run", chosen=PRETRAIN | chosen)
    assert skipped(said, "k-NN: ") == LISTED
    counted = f"k-NN: {len(BROKEN)} of {TOTAL} labeled images cannot be read and are left out"
    assert sum(counted in line for line in said) == 1
    shares = [line["knn_top1"] * len(CLASSES) * GOOD for line in lines(output / "run") if "knn_top1" in line]
    assert shares == pytest.approx([round(share) for share in shares])


def pictures_and_reconstruct(clean: Path, spoilt: Path, output: Path) -> None:
    """Of eight places, two show an image; those that follow cannot be read, but for one that is not tried."""
    red, tried = spoilt / "red", sorted(BROKEN)[1:]
    said: list[str] = []
    record(said, sparkmim.pretrain, output / "run", chosen=PRETRAIN | {"data": clean, "val_data": red})
    assert skipped([line.replace("not pictured:", "skipped") for line in said]) == tried
    found = record(said, sparkmim.reconstruct, output / "run", red)
    assert len(found.images) == 2
    assert sorted(name for name, _ in found.skipped) == skipped(said) == tried
    with Image.open(min((output / "run" / "reconstructions").glob("*.png"))) as picture:
        assert picture.size == found.picture.size


def embed(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    found = record(said, sparkmim.embed, "none", spoilt, **FROZEN)
    assert sorted(name for name, _ in found.skipped) == skipped(said) == LISTED
    assert len(found.names) == len(found.features) == len(CLASSES) * GOOD
    assert not set(found.names) & set(LISTED)


def knn(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    found = record(said, sparkmim.knn, "none", spoilt, test_data=(clean, spoilt), neighbours=(1,), **FROZEN)
    assert found.skipped == len(skipped(said)) == 2 * len(BROKEN)
    assert skipped(said) == sorted(2 * LISTED)
    assert found.train_images == len(CLASSES) * GOOD


def probe(clean: Path, spoilt: Path, output: Path) -> None:
    said: list[str] = []
    found = record(said, sparkmim.linear_probe, "none", spoilt, test_data=(spoilt,), **FROZEN)
    assert found.skipped == len(skipped(said)) == 2 * len(BROKEN)
    assert (found.train_images, found.test_images) == (len(CLASSES) * GOOD,) * 2


def finetuning(clean: Path, spoilt: Path, output: Path) -> None:
    chosen = FINETUNE | {"data": spoilt, "val_data": spoilt, "test_data": spoilt, "epochs": 2.0}
    outcome = sparkmim.finetune(output / "run", chosen=chosen)
    results = json.loads((output / "run" / "results.json").read_text())
    assert outcome.interrupted is None
    assert listed(output / "run" / "broken_images.txt") == LISTED
    assert listed(output / "run" / "broken_held_out_images.txt") == LISTED
    for split in ("validation", "test"):
        score = results[split]
        assert sorted(score["unreadable"]) == LISTED
        assert score["broken"] == len(BROKEN)
        assert f"{len(BROKEN)} images could not be read:" in (output / "run" / "report.html").read_text()
        assert score["images"] == sum(map(sum, score["confusion"])) == len(CLASSES) * GOOD


def predict(clean: Path, spoilt: Path, output: Path) -> None:
    sparkmim.finetune(output / "run", chosen=FINETUNE | {"data": clean, "epochs": 0.5, "warmup_epochs": 0.0})
    said: list[str] = []
    found = record(said, sparkmim.predict, output / "run", spoilt, workers=0, device="cpu")
    assert len(found) == TOTAL
    assert sorted(row.image for row in found if row.error) == skipped(said) == LISTED
    assert all(bool(row.classes) != bool(row.error) for row in found)


def statistics(clean: Path, spoilt: Path, output: Path) -> None:
    assert channel_statistics(find_images(spoilt), 3).images == len(CLASSES) * GOOD


READERS: dict[str, Reader] = {
    "training": training,
    "held out": held_out,
    "monitor": monitor,
    "reconstruct": pictures_and_reconstruct,
    "embed": embed,
    "knn": knn,
    "probe": probe,
    "finetune": finetuning,
    "predict": predict,
    "statistics": statistics,
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_count_and_list_what_they_cannot_read(reader: str, clean: Path, spoilt: Path, tmp_path: Path) -> None:
    READERS[reader](clean, spoilt, tmp_path)
