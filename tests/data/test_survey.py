"""What `sparkmim stats` says of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import make_images
from sparkmim.commands.stats import command
from sparkmim.data import survey as module
from sparkmim.data.sources.address import open_source
from sparkmim.data.survey import survey, survey_picture, survey_text


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Ten images of 80 x 60, and an equal, a resized, a recompressed, a brighter, a black, a broken and a deep one."""
    folder = make_images(tmp_path / "images", 10)
    shutil.copy(folder / "3.png", folder / "equal.png")
    with Image.open(folder / "5.png") as first:
        first.resize((160, 120)).save(folder / "resized.png")
        first.save(folder / "compressed.jpg", quality=70)
        first.point(lambda value: min(255, value + 10)).save(folder / "brighter.png")
    Image.new("RGB", (40, 30)).save(folder / "black.png")
    (folder / "broken.png").write_bytes(b"no image")
    np.save(folder / "deep.npy", np.random.default_rng(0).normal(size=(50, 70, 3)).astype(np.float32))
    return folder


def test_what_is_odd_is_found(odd: Path) -> None:
    found = survey(open_source(odd), 3, 1000)
    assert found.tried == 17
    assert [name for name, _ in found.broken] == ["broken.png"]
    assert found.constant == ["black.png"]
    assert [sorted(group) for group in found.exact] == [["3.png", "equal.png"]]
    assert [sorted(group) for group in found.near] == [["5.png", "brighter.png", "compressed.jpg", "resized.png"]]
    assert found.dtypes == {"8 bits": 15, "more than 8 bits": 1}
    assert min(found.low) < -2
    assert (120, 160) in found.sizes
    text = survey_text(found)
    for line in (
        "17 looked at, 1 cannot be read",
        "heights 30 to 120 (median 60)",
        "15 of 8 bits, 1 of more than 8 bits",
        "2 images in 1 group; the largest: 2: 3.png, equal.png",
        "4 images in 1 group",
    ):
        assert line in text
    picture = survey_picture(found)
    assert picture is not None
    assert picture.size == (4 * module.TILE, 3 * module.TILE)


def test_different_images_are_not_alike(tmp_path: Path) -> None:
    found = survey(open_source(make_images(tmp_path / "images", 60)), 3, 1000)
    assert not found.near
    assert not found.exact
    assert survey_picture(found) is None


def test_groups_are_the_same_without_counting_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    values[7], values[9] = values[3] ^ np.uint64(3), values[3] ^ np.uint64(7)
    counted = module._groups(values.tolist())
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert module._groups(values.tolist()) == counted == [[3, 7]]


def test_the_command(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(odd), output=str(tmp_path / "odd.png")) == 0
    out, err = capsys.readouterr()
    assert out.startswith("--mean ")
    assert "alike        4 images" in out
    assert "measured on 16 images; 1 of those tried cannot be read" in err
    with Image.open(tmp_path / "odd.png") as picture:
        assert picture.size[0] == 4 * module.TILE
    with pytest.raises(ValueError, match=r"must end in \.png"):
        command(str(odd), output=str(tmp_path / "odd.txt"))
