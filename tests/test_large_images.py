"""Images of more pixels than may be decoded, in every reader: by windows with native crops, else refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import sparkmim
from helpers import CLASSES, SMALLEST_PRETRAIN, TINY_FINETUNE, record
from sparkmim.data.config import FileConfig
from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import channel_statistics

SIZE, EACH = 200, 4

MOST = 20_000
"""Pixels that may be decoded: half of those of an image, and more than those of the tiles that a view touches."""

PRETRAIN: dict[str, Any] = {
    **SMALLEST_PRETRAIN,
    "model": "test_resnet",
    "image_size": (64, 64),
    "decoder_width": 32,
    "batch_size": 4,
    "crop": "native",
    "max_pixels": MOST,
    "max_broken": 0.0,
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of tiled files, of 16 bits."""
    folder = tmp_path_factory.mktemp("slides")
    generator = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for index in range(EACH):
            image = generator.integers(0, 40_000, (SIZE, SIZE, 3))
            image[..., number] += 20_000
            tifffile.imwrite(
                folder / name / f"{index}.tif",
                image.astype(np.uint16),
                tile=(16, 32),
                photometric="rgb",
                compression="zlib",
            )
    return folder


@pytest.fixture(scope="module")
def run(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that reads them in every way: to train on, held out, for the monitor, for pictures, measured."""
    folder = tmp_path_factory.mktemp("large") / "run"
    chosen = {"data": slides, "val_share": 0.2, "monitor": "knn", "monitor_data": slides, "monitor_every": 1.0}
    said: list[str] = []
    record(said, sparkmim.pretrain, folder, chosen=PRETRAIN | chosen)
    assert not [line for line in said if "cannot be read" in line or "skipped" in line]
    assert not list(folder.glob("broken*"))
    return folder


def test_every_reader_takes_windows(run: Path, slides: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"workers": 0, "device": "cpu"}
    assert sparkmim.reconstruct(run, slides).skipped == []
    found = sparkmim.embed(run, slides, **small)
    assert found.skipped == []
    whole = sparkmim.embed(run, slides, max_pixels=SIZE**2, **small)
    np.testing.assert_array_equal(found.features, whole.features)
    assert sparkmim.knn(run, slides, neighbours=(1,), **small).skipped == 0
    assert sparkmim.linear_probe(run, slides, **small).skipped == 0
    chosen: dict[str, Any] = {"encoder": str(run), "data": slides, "val_data": slides, "test_data": slides}
    chosen = {**TINY_FINETUNE, **chosen, "epochs": 0.5, "warmup_epochs": 0.0, "max_broken": 0.0, "ema": 0.0}
    del chosen["model"]
    sparkmim.finetune(tmp_path / "tuned", chosen=chosen)
    assert not [row.error for row in sparkmim.predict(tmp_path / "tuned", slides, **small) if row.error]


def test_whole_images_are_refused_with_a_way(run: Path, slides: Path, tmp_path: Path) -> None:
    remedy = "200 x 200 pixels are more than the 20000 of --max-pixels.*; with --crop native"
    for more in ({"crop": "resized"}, {"crop": "resized", "mean": (0.5,) * 3, "std": (0.2,) * 3}):
        with pytest.raises(ValueError, match=remedy):
            sparkmim.pretrain(tmp_path / "run", chosen=PRETRAIN | more | {"data": slides})
    with pytest.raises(ValueError, match=remedy):
        sparkmim.finetune(tmp_path / "run", chosen={**TINY_FINETUNE, "data": slides, "max_pixels": MOST})
    with pytest.raises(ValueError, match=remedy):
        sparkmim.knn("none", slides, model="test_resnet", image_size=64, max_pixels=MOST, workers=0, device="cpu")
    assert not (tmp_path / "run").exists()


def test_statistics_are_measured_on_windows(slides: Path) -> None:
    source = find_images(slides)
    parts = channel_statistics(source, 3, files=FileConfig(max_pixels=MOST))
    whole = channel_statistics(source, 3)
    assert parts.images == whole.images == len(CLASSES) * EACH
    assert parts != whole
    torch.testing.assert_close(torch.tensor(parts[:2]), torch.tensor(whole[:2]), rtol=0.01, atol=0)


def test_files_of_one_piece_are_refused(tmp_path: Path) -> None:
    """A compressed strip of the whole image cannot be read in part, and an uncompressed one can."""
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    for compression in (None, "zlib"):
        folder = tmp_path / str(compression)
        folder.mkdir()
        for index in range(4):
            tifffile.imwrite(
                folder / f"{index}.tif", image, rowsperstrip=SIZE, photometric="rgb", compression=compression
            )
    sparkmim.pretrain(tmp_path / "run", chosen=PRETRAIN | {"data": tmp_path / "None"})
    with pytest.raises(ValueError, match=r"200 x 200 pixels are more than the 20000 of --max-pixels"):
        sparkmim.pretrain(tmp_path / "other", chosen=PRETRAIN | {"data": tmp_path / "zlib"})
