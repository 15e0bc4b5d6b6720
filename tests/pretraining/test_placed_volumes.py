"""Reconstructions of volumes as NIfTI files: every voxel lies where it lies in the file that was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from helpers import make_images
from sparkmim.cli import run_command
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain
from volume_files import load_nifti, oblique, place_values, write_nifti

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"
KINDS = ("volume", "visible", "reconstruction")

TINY: dict[str, Any] = {"model": NETWORK, "image_size": 16, "decoder_width": 16, "batch_size": 2, "epochs": 1.0}
TINY |= {"warmup_epochs": 0.5, "lr": 0.01, "device": "cpu", "workers": 0, "accumulate": 1, "pictures": 1}

SPACING = (0.8, 1.3, 2.0)
AFFINES = {
    "axes as they are": oblique((0, 1, 2), (1, 1, 1), SPACING, 0),
    "flipped": oblique((0, 1, 2), (-1, 1, -1), SPACING, 0),
    "permuted and flipped": oblique((2, 0, 1), (1, -1, -1), SPACING, 0),
    "turned": oblique((1, 2, 0), (-1, -1, 1), SPACING, 12),
}


def world(image: Any) -> np.ndarray:
    """The place of each voxel of a file, `(X, Y, Z, 3)`."""
    return nibabel.affines.apply_affine(
        image.affine, np.stack(np.meshgrid(*map(np.arange, image.shape[:3]), indexing="ij"), -1)
    )


WAYS = {
    "resampled": ((1.0, 1.5, 1.5), "RAS"),
    "own spacing": ("none", "RAS"),
    "resampled, Z Y X": ((1.0, 1.5, 1.5), "SAR"),
    "own spacing, Y Z X": ("none", "ASR"),
}


@pytest.fixture(scope="module", params=list(WAYS.values()), ids=list(WAYS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on volumes whose values are a linear function of the place in the world, some smaller than a view."""
    root = tmp_path_factory.mktemp("placed")
    (root / "data").mkdir()
    for number, affine in enumerate(AFFINES.values()):
        shape = (22, 24, 19) if number % 2 else (14, 21, 12)
        write_nifti(root / "data" / f"v{number}.nii.gz", place_values(shape, affine).astype(np.float32), affine)
    spacing, orientation = request.param
    alike = {"spacing": spacing, "intensity": "none", "foreground": False, "orientation": orientation}
    # Longer along X, so that another order of axes would be noticed; nothing is too thin to be hidden there.
    alike["image_size"] = tuple(24 if direction == "R" else 16 for direction in orientation)
    if spacing == "none":  # the same axes, or spacings would be mixed
        for number in (2, 3):
            (root / "data" / f"v{number}.nii.gz").unlink()
        alike["max_broken"] = 0.0
    pretrain(root / "run", chosen={**TINY, **alike, "data": root / "data"})
    return root / "run"


def test_voxels_lie_where_they_lay(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run.parent / "data"
    options = ["--run", str(run), "--data", str(data), "--trust", "--output", str(tmp_path / "x.nii.gz")]
    assert run_command(["reconstruct", *options]) == 0
    names = sorted(path.name for path in data.iterdir())
    said = capsys.readouterr().out
    for number, name in enumerate(names):
        assert f"{name}: x_{number}_volume.nii.gz, x_{number}_visible.nii.gz" in said
        image, seen, made = (load_nifti(tmp_path / f"x_{number}_{kind}.nii.gz") for kind in KINDS)
        assert (image.affine == seen.affine).all()
        assert (image.affine == made.affine).all()
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        source = load_nifti(data / name)
        places = world(image)
        # Values are linear in the place, so each tells where it belongs, resampled (away from the border) or not.
        expected = place_values((1, 1, 1), np.eye(4)) + places @ np.array([3.0, -5.0, 7.0])
        inner = (slice(3, -3),) * 3
        assert np.abs(image.get_fdata() - expected)[inner].max() < 0.2  # a thirtieth of a millimeter
        index = nibabel.affines.apply_affine(np.linalg.inv(source.affine), places)
        assert (index > -1).all(), "nothing beyond the file is written"
        assert (index < np.array(source.shape)).all()
        if "none" in str(run.parent) or np.allclose(index, index.round(), atol=1e-4):
            values = source.get_fdata()[tuple(index.round().astype(int).reshape(-1, 3).T)]
            assert np.allclose(image.get_fdata().ravel(), values, atol=1e-2)
        whole, shown, predicted = (part.get_fdata() for part in (image, seen, made))
        assert np.isfinite(predicted).all()
        kept = shown == whole
        assert 0.2 < kept.mean() < 0.7
        assert np.allclose(predicted[kept], whole[kept], atol=1e-3) or (predicted == whole)[kept].mean() > 0.99


def test_one_volume_and_what_is_refused(run: Path, tmp_path: Path) -> None:
    found = reconstruct(run, run.parent / "data", count=1, trust=True)
    assert [path.name for path in found.write_nifti(tmp_path / "y.nii")] == [f"y_{kind}.nii" for kind in KINDS]
    assert load_nifti(tmp_path / "y_volume.nii").shape == found.volumes[0].volume.shape[1:]


def test_images_have_no_nifti(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {
        **TINY,
        "model": "test_resnet",
        "image_size": 64,
        "decoder_width": 32,
        "data": make_images(tmp_path / "images"),
    }
    pretrain(tmp_path / "run", chosen=chosen)
    assert run_command(["reconstruct", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "x.nii.gz")]) == 2
    assert "is for volumes" in capsys.readouterr().err
    assert run_command(["reconstruct", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "x.gz")]) == 2
    assert "must end in .png or .nii.gz or .nii" in capsys.readouterr().err
