"""Pretraining on volumes: from files of NIfTI to an encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SMALLEST_PRETRAIN, make_images
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.evaluation.features import embed
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain
from sparkmim.pretraining.volumes import crop_size

nibabel = pytest.importorskip("nibabel")

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"

TINY: dict[str, Any] = SMALLEST_PRETRAIN | {"model": NETWORK, "image_size": 16}


def make_volumes(folder: Path, count: int = 6, size: tuple[int, ...] = (20, 24, 22), spacing: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        values = np.zeros(size, np.float32)
        values[2:-2, 2:-2, 2:-2] = generator.normal(100, 20, [s - 4 for s in size])
        nibabel.save(nibabel.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1])), folder / f"v{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volumes(tmp_path_factory.mktemp("data") / "scans")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_from_files_to_encoder(volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sparkmim")
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": volumes, "val_share": 0.2})
    assert len(losses(run)) == 5  # two epochs of the five that are not held out
    record = json.loads((run / "config.json").read_text())
    assert record["model"]["in_chans"] == 1
    assert record["data"]["image_size"] == [16] * 3
    assert record["data"]["crop"] == "native"
    assert record["data"]["mean"] == [0.0]
    assert record["data"]["std"] == [1.0]
    plan = json.loads((run / "plan.json").read_text())
    assert "resampled to 1 x 1 x 1 mm; 16 x 20 x 18 voxels (median); intensities mr" in plan["volumes"]
    assert "16 x 16 x 16 voxels, 8 patches of 8 x 8 x 8, 5 hidden" in plan["views"]
    assert (run / "encoder.safetensors").is_file()
    with Image.open(next((run / "reconstructions").glob("*.png"))) as picture:
        assert picture.width > 3 * 128  # three slices of the volume side by side
    assert list((tmp_path / "volumes").glob("scans-*/volumes/*.b2nd"))


def test_resuming_is_equal_to_the_bit(volumes: Path, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(steps: int) -> None:
        if steps == 3:
            raise Stop

    chosen = {**TINY, "data": volumes, "checkpoint_minutes": 0.0}
    pretrain(tmp_path / "whole", chosen=chosen)
    with pytest.raises(Stop):
        pretrain(tmp_path / "halves", chosen=chosen, after_step=stop)
    pretrain(tmp_path / "halves", trust=True)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    states = [RunFolder(tmp_path / name).newest_checkpoint() for name in ("whole", "halves")]
    one, other = (state.state["model"] for state in states if state is not None)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_damaged_volumes_are_left_out_and_named(volumes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(volumes, folder)
    whole = (folder / "v3.nii.gz").read_bytes()
    (folder / "v3.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1 of 6 volumes cannot be read; v3.nii.gz: .*--max-broken"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": folder})
    assert not list((tmp_path / "volumes").rglob("*.b2nd")), "nothing is prepared in vain"
    with pytest.raises(ValueError, match=r"1 of 6 volumes cannot be read; v3.nii.gz: .*--max-broken"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": folder}, plan=True)
    pretrain(tmp_path / "run", chosen={**TINY, "data": folder, "max_broken": 0.2}, plan=True)
    pretrain(tmp_path / "run", chosen={**TINY, "data": folder, "max_broken": 0.2})
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["images"].startswith("5 (some)")
    assert "1 cannot be read (see " in plan["volumes"]


def test_held_out_volumes_are_prepared_as_those_for_training(volumes: Path, tmp_path: Path) -> None:
    other = make_volumes(tmp_path / "other", 2, (10, 12, 11), spacing=2.0)
    pretrain(tmp_path / "run", chosen={**TINY, "data": volumes, "val_data": other, "epochs": 1.0})
    (manifest,) = (tmp_path / "volumes").glob("other-*/store.json")
    shapes = [volume["shape"] for volume in json.loads(manifest.read_text())["volumes"]]
    assert shapes == [[1, 12, 16, 14]] * 2  # of 6 x 8 x 7 within the foreground, at half the spacing


def test_a_plan_writes_nothing(volumes: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "run", chosen={**TINY, "data": volumes}, plan=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"model": "test_resnet"}, "holds volumes, and test_resnet takes images of 2 axes; name a network of 3-D"),
        ({"crop": "resized"}, "--crop resized is for images; .* use --crop native"),
        ({"image_size": 20}, "image size 20 is not divisible by the patch size 8; use --image-size 16 or 24"),
        ({"image_size": (16, 16)}, "--image-size takes one number or 3, not 2"),
        ({"spacing": (1.0, 0.0, 1.0)}, "--spacing is median, none, or three lengths in millimeters above 0"),
        ({"intensity": "pet"}, "--intensity"),
    ],
)
def test_bad_input(volumes: Path, tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "run", chosen={**TINY, "data": volumes, **chosen})
    assert not (tmp_path / "run").exists()


def test_odd_ones_among_volumes_are_named(volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A picture, other channels and NaN, each first in the alphabet; most volumes say how many channels there are."""
    folder = tmp_path / "some"
    shutil.copytree(volumes, folder)
    values = np.random.default_rng(0).normal(100, 20, (20, 24, 22, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values[..., 0, 0], np.eye(4)), folder / "b.nii.gz")
    values[:3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values[..., 0], np.eye(4)), folder / "c.nii.gz")
    with pytest.raises(ValueError, match=r"2 of 9 volumes cannot be read; a.nii.gz: .*channels"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": folder, "batch_size": 100})
    assert "got a picture of 20 x 24" in caplog.text
    assert "NaN in 1 of 8 volumes is replaced by the smallest value of the channel, in c.nii.gz" in caplog.text
    for name in ("b", "c", *(f"v{number}" for number in range(6))):
        (folder / f"{name}.nii.gz").unlink()
    with pytest.raises(ValueError, match="It was given images of 2 channels, as the volumes have"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": folder})


def test_crops_larger_than_volumes_are_told(volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pretrain(tmp_path / "run", chosen={**TINY, "data": volumes, "image_size": 32, "epochs": 1.0}, plan=True)
    assert "crops of 32 x 32 x 32 are larger than volumes (16 x 20 x 18, median): 18% of a crop has data" in caplog.text
    caplog.clear()
    pretrain(tmp_path / "run", chosen={**TINY, "data": volumes, "epochs": 1.0}, plan=True)
    assert "are larger than volumes" not in caplog.text


@pytest.mark.parametrize("model", ["resnet5", "test_resnet", f"{NETWORK}y"])
def test_nothing_is_prepared_for_a_network_that_does_not_fit(volumes: Path, tmp_path: Path, model: str) -> None:
    with pytest.raises(ValueError):
        pretrain(tmp_path / "run", chosen={**TINY, "data": volumes, "model": model})
    assert not list(tmp_path.iterdir())


def test_images_and_settings_of_volumes(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    with pytest.raises(ValueError, match=r"takes volumes or clips of 3 axes, and .*; name a folder of volumes"):
        pretrain(tmp_path / "run", chosen={**TINY, "data": images, "in_chans": 1})
    with pytest.raises(ValueError, match="--spacing none has no effect on images"):
        pretrain(
            tmp_path / "run",
            chosen={**TINY, "model": "test_resnet", "image_size": 64, "data": images, "spacing": "none"},
        )


@pytest.mark.parametrize(
    ("extents", "fits", "expected"),
    [
        ((200, 180, 40), 10**9, (160, 160, 48)),
        ((36, 50, 35), 10**9, (32, 48, 32)),
        ((200, 180, 40), 2 * 96**3, (160, 160, 32)),
        ((200, 180, 40), 2 * 64**3, (96, 80, 32)),
        ((20, 20, 20), 0, (16, 16, 16)),
    ],
)
def test_crops_are_as_large_as_memory_and_volumes_allow(
    extents: tuple[int, ...], fits: int, expected: tuple[int, ...]
) -> None:
    unit = (16, 16, 16)
    found = crop_size(extents, unit, lambda size: fits // int(np.prod(size)))
    assert found == expected


def test_default_size_of_crops(volumes: Path, tmp_path: Path) -> None:
    chosen = {name: value for name, value in TINY.items() if name not in ("image_size", "decoder_width")}
    pretrain(tmp_path / "run", chosen={**chosen, "data": volumes, "epochs": 1.0})
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["data"]["image_size"] == [16, 24, 16]  # of 16 x 20 x 18
    assert record["model"]["decoder_width"] == 32


def test_recipe_s3d(volumes: Path, tmp_path: Path) -> None:
    pretrain(
        tmp_path / "run", recipe="s3d", chosen={"model": NETWORK, "data": volumes, "image_size": 32, "epochs": 0.4}
    )
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["optimizer"]["optimizer"] == "sgd"
    assert record["schedule"]["lr_decay"] == "polynomial"
    assert record["model"]["mask_ratio"] == 0.75
    assert record["model"]["patch_size"] == [16] * 3
    assert len(losses(tmp_path / "run")) == 1


def test_what_was_learned_prepares_other_volumes_alike(volumes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(run, chosen={**TINY, "data": volumes, "epochs": 1.0})
    other = make_volumes(tmp_path / "other", 3, (12, 14, 13), spacing=2.0)
    found = embed(run / "encoder.safetensors", other, trust=True)
    assert found.features.shape == (3, 16)
    assert np.isfinite(found.features).all()
    shown = reconstruct(run, other, trust=True)
    assert shown.images.shape == (3, 1, 16, 16, 16)
    assert reconstruct(run, trust=True).images.shape == (6, 1, 16, 16, 16)
    with pytest.raises(ValueError, match=r"takes images of 3 axes, and these are pictures"):
        embed(run / "encoder.safetensors", make_images(tmp_path / "images"), trust=True)


def test_arrays_are_volumes_where_the_address_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        np.save(folder / f"{number}.npy", generator.normal(size=(16, 18, 20)).astype(np.float32))
    run = tmp_path / "run"
    address = f"volumes://{folder}"
    pretrain(run, chosen={**TINY, "data": address, "epochs": 1.0})
    assert json.loads((run / "config.json").read_text())["data"]["data"] == address
    assert pretrain(run, trust=True) is not None  # all is done
    assert embed(run / "encoder.safetensors", address, trust=True).features.shape == (4, 16)
    assert run_command(["stats", "--data", address]) == 0
    assert "4 volumes of 1 channel" in capsys.readouterr().out
    assert run_command(["knn", "--encoder", "none", "--data", address, "--model", "test_resnet"]) == 2
    assert run_command(["predict", "--run", str(run), "--data", address, "--output", f"{tmp_path}/p.csv"]) == 2


def test_advice_after_a_run_is_of_volumes(volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert run_command(["pretrain", *settings, "--data", str(volumes), "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "features of volumes" in said.out + said.err
    assert "finetune" not in said.out + said.err
