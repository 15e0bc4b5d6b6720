"""Distillation of volumes: maps of tiles, sampled where crops are, and runs of it."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import SMALLEST_PRETRAIN, assert_same_training, interrupt_at, make_images
from sparkmim import pretrain
from sparkmim.data.config import DataConfig
from sparkmim.data.crops import Crop, CropTrainingView, cut
from sparkmim.data.teachers.volume_maps import VolumeMapsLayout, map_of_tiles, sample_volume_map, tile_corners
from sparkmim.data.volumes.store import StoredVolume

nibabel = pytest.importorskip("nibabel")

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"

TEACHER = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(1, 5, 4, 4), nn.ReLU(), nn.Conv3d(5, 6, 2, 2))
"""

STRAIGHT = torch.eye(3, dtype=torch.float64)

TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def places(size: tuple[int, ...]) -> StoredVolume:
    """Return a volume of three channels, each voxel's own coordinates."""
    values = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in size], indexing="ij"))
    return StoredVolume(values, values.shape, np.eye(4))


def centers(size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return a map of three channels: the coordinates of each position's middle."""
    along = [(torch.arange(-(-n // s)) + 0.5) * s - 0.5 for n, s in zip(size, stride, strict=True)]
    return torch.stack(torch.meshgrid(*along, indexing="ij"))


@pytest.mark.parametrize("flip", [(), (True, False, False), (True, True, True), (False, True, False)])
@pytest.mark.parametrize("matrix", [None, 0.8 * STRAIGHT, TURN, 0.9 * TURN], ids=["plain", "scaled", "turned", "both"])
@pytest.mark.parametrize("stride", [(4, 4, 4), (2, 4, 1), (8, 4, 8)])
def test_samples_are_where_the_crop_is(flip: tuple[bool, ...], matrix: Tensor | None, stride: tuple[int, ...]) -> None:
    """Maps and volumes that tell their own places: the crop's mean over a position is the sampled map."""
    whole, view, grid = (48, 56, 40), (16, 16, 16), (4, 2, 4)
    crop = Crop((14, 18, 11), matrix, flip)
    wanted = F.avg_pool3d(cut(places(whole), crop, view)[None], (4, 8, 4))[0]
    found = sample_volume_map(centers(whole, stride), crop, view, grid, stride)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_training_views_tell_their_place() -> None:
    """Whatever a training view draws, the sampled places are those it shows."""
    volume = places((64, 64, 64))
    view = CropTrainingView(DataConfig(image_size=(16, 16, 16), crop="native", mean=(0.0,) * 3, std=(1.0,) * 3))
    shown = 0
    for seed in range(30):
        seen, crop = view.choose(volume, (64, 64, 64), torch.Generator().manual_seed(seed))
        if seen.isnan().any():
            continue
        found = sample_volume_map(centers((64, 64, 64), (2, 2, 2)), crop, (16, 16, 16), (2, 2, 2), (2, 2, 2))
        torch.testing.assert_close(found, F.avg_pool3d(seen[None], 8)[0], rtol=0, atol=0.1)
        shown += 1
    assert shown > 20


def test_beyond_the_volume_the_edge_is_repeated() -> None:
    maps = centers((16, 16, 16), (4, 4, 4))
    found = sample_volume_map(maps, Crop((-16, 0, 0)), (16, 16, 16), (4, 4, 4), (4, 4, 4))
    torch.testing.assert_close(found, maps[:, :1].expand(3, 4, 4, 4))


@pytest.mark.parametrize("size", [(16, 16, 16), (40, 24, 19), (9, 16, 33)])
def test_tiles_of_a_local_teacher_are_its_map(size: tuple[int, ...]) -> None:
    """A teacher that sees nothing beyond a position gives by tiles what it gives of the whole."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 4, 4, 4)
    values = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    volume = StoredVolume(values, values.shape, np.eye(4))

    def run(tile: Tensor) -> tuple[Tensor, Tensor]:
        maps = network(tile.nan_to_num(0.0))
        return maps, maps.mean((2, 3, 4))

    with torch.no_grad():
        found = map_of_tiles(run, volume, (16, 16, 16), (4, 4, 4))
        padding = [pad for n in reversed(size) for pad in (0, -n % 4)]
        wanted = network(F.pad(torch.from_numpy(values), padding)[None])[0]
    torch.testing.assert_close(found.maps, wanted, rtol=1e-5, atol=1e-6)


def test_tiles_cover_every_position() -> None:
    for size, span in itertools.product([(1, 5, 9), (4, 4, 4)], [(4, 4, 4), (2, 3, 1)]):
        seen = torch.zeros(*(max(n, m) for n, m in zip(size, span, strict=True)))
        for corner in tile_corners(size, span):
            seen[tuple(slice(c, c + m) for c, m in zip(corner, span, strict=True))] += 1
        assert seen.min() >= 1


def test_layout_gives_each_volume_its_rows() -> None:
    layout = VolumeMapsLayout([(8, 9, 4), (4, 4, 4)], 6, (4, 4, 4), 5)
    assert layout.sizes == [(2, 3, 1), (1, 1, 1)]
    assert (layout.rows(0), layout.rows(1)) == (slice(0, 6), slice(6, 7))
    assert layout.bytes == 2 * (7 * 6 + 2 * 5) + 2


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "scans"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        values = generator.normal(100, 20, (20 + number, 24, 22)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"v{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.py"
    path.write_text(TEACHER)
    return f"{path}:make"


def chosen(volumes: Path, teacher: str, **more: Any) -> dict[str, Any]:
    fixed = {name: value for name, value in SMALLEST_PRETRAIN.items() if name not in ("decoder_width", "pictures")}
    fixed |= {"model": NETWORK, "image_size": 16, "data": str(volumes), "objective": "distill"}
    return fixed | {"teacher": teacher, "teacher_size": 16} | more


@pytest.mark.parametrize(
    "more", [{}, {"mask_ratio": 0.5, "objective": "pixels+distill", "decoder_width": 32}], ids=["whole", "masked"]
)
def test_resumes_to_the_bit(tmp_path: Path, volumes: Path, teacher: str, more: dict[str, Any]) -> None:
    settings = chosen(volumes, teacher, val_share=0.2, **more)
    pretrain(tmp_path / "whole", chosen=settings)
    pretrain(tmp_path / "parts", chosen=settings, after_step=interrupt_at(3))
    pretrain(tmp_path / "parts", trust=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert "volumes by tiles of 16 x 16 x 16 voxels" in plan["teacher"]
    assert "maps of 6 channels at every 8 x 8 x 8 voxels and vectors of 6 of 5 volumes" in plan["its maps"]
    assert (tmp_path / "whole" / "encoder.safetensors").is_file()


def test_a_pretrained_encoder_teaches(tmp_path: Path, volumes: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "first"
    pretrain(run, chosen={**SMALLEST_PRETRAIN, "model": NETWORK, "image_size": 16, "data": str(volumes)})
    settings = chosen(volumes, str(run))
    del settings["teacher_size"]
    with caplog.at_level(logging.WARNING, "sparkmim"):
        pretrain(tmp_path / "second", chosen=settings, trust=True)
        assert "prepared otherwise" not in caplog.text
        pretrain(tmp_path / "third", chosen=settings | {"spacing": (2.0,) * 3}, trust=True, plan=True)
    assert "has learned from volumes that were prepared otherwise: spacing" in caplog.text


def test_a_plan_announces_and_writes_nothing(tmp_path: Path, volumes: Path, teacher: str) -> None:
    pretrain(tmp_path / "run", chosen=chosen(volumes, teacher), plan=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left_out", [["accumulate"], ["accumulate", "image_size"]])
def test_what_fits_into_memory_is_measured(tmp_path: Path, volumes: Path, teacher: str, left_out: list[str]) -> None:
    settings = chosen(volumes, teacher)
    pretrain(tmp_path / "run", chosen={name: settings[name] for name in settings if name not in left_out}, plan=True)


def test_a_plan_that_measured_some_volumes_takes_the_store_of_all(
    tmp_path: Path, volumes: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = chosen(volumes, teacher)
    pretrain(tmp_path / "run", chosen=settings)
    monkeypatch.setattr("sparkmim.data.volumes.unprepared.MEASURED", 2)
    with caplog.at_level(logging.INFO, "sparkmim"):
        pretrain(tmp_path / "other", chosen=settings, plan=True)
    assert "of 6 volumes, about" in caplog.text
    assert "used again" in caplog.text


def test_axes_of_teacher_and_data_differ(tmp_path: Path, volumes: Path, teacher: str) -> None:
    (tmp_path / "flat.py").write_text(TEACHER.replace("Conv3d(1,", "Conv3d(3,").replace("Conv3d", "Conv2d"))
    flat = f"{tmp_path / 'flat.py'}:make"
    with pytest.raises(ValueError, match=r"takes data of 2 axes, and --data .* holds volumes; name a --teacher of vol"):
        pretrain(tmp_path / "run", chosen=chosen(volumes, flat), plan=True)
    images = make_images(tmp_path / "images", 4)
    settings = chosen(images, teacher) | {"model": "test_resnet", "image_size": 64}
    with pytest.raises(ValueError, match=r"takes data of 3 axes, and --data .* holds images; name a --teacher of im"):
        pretrain(tmp_path / "run", chosen=settings, plan=True)


def test_volumes_of_other_channels_are_refused(tmp_path: Path, volumes: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(TEACHER.replace("nn.Conv3d(1,", "nn.Conv3d(2,"))
    with pytest.raises(ValueError, match=r"can be read as 2 channels"):
        pretrain(tmp_path / "run", chosen=chosen(volumes, f"{path}:make"), plan=True)
