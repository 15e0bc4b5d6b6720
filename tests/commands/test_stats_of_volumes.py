"""`sparkmim stats` on volumes: a table, and histograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.commands.stats import command
from sparkmim.data.volumes.cases import find_cases
from sparkmim.data.volumes.preparing import PrepareSettings, prepare
from volume_files import phantom, write_nifti


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for index in range(4):
        affine = np.diag([1.0, 1.0, 1.0 + index, 1.0])
        write_nifti(tmp_path / "data" / f"{index}.nii.gz", phantom(index, (20 + index, 24, 16)), affine)
    return tmp_path / "data"


def test_table_and_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(folder), workers=0, output=str(tmp_path / "a.png")) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("4 volumes of 1 channel (mr)")
    assert lines[2].split("  ")[0] == "spacing, mm"
    assert "2.5 (1 to 4)" in lines[2]
    assert "21.5 (20 to 23)" in lines[3]
    assert "channel 0 (mr)" in lines[-1]
    assert "slices: axial 3, isotropic 1" in lines
    assert "wrote" in err
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[1:] == (1240, 3)
    assert (picture != 255).any(axis=2).mean() > 0.03
    prepare(find_cases(folder), PrepareSettings(), tmp_path / "store", workers=0)
    assert command(str(tmp_path / "store")) == 0
    assert capsys.readouterr().out == out


def test_limit_and_bad_values(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(folder), limit=2, workers=0) == 0
    assert capsys.readouterr().out.startswith("2 volumes")
    with pytest.raises(ValueError, match=r"must end in .png"):
        command(str(folder), output=str(tmp_path / "a.jpg"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a file; --data takes the folder"):
        command(str(tmp_path / "a.png"), output="b.png")
