"""What an address holds, by its scheme, its files, and the number of axes of the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkmim.data.kinds import kind_of

TABLE: list[tuple[str, str, dict[int | None, str]]] = [
    ("photographs", "a.jpg b.png", {None: "images", 1: "images", 2: "images", 3: "images"}),
    ("photographs and a film", "a.jpg b.mp4", {None: "images", 2: "images", 3: "images"}),
    ("photographs and sound", "a.jpg b.wav", {None: "images", 1: "signals", 2: "images"}),
    ("photographs and a list", "a.jpg list.csv", {None: "images", 2: "images"}),
    ("class folders, or frames", "x/a.jpg y/a.jpg", {None: "images", 1: "images", 2: "images", 3: "clips"}),
    ("films", "a.mp4 x/b.MKV", {None: "clips", 2: "clips", 3: "clips"}),
    ("films and their sound", "a.mp4 a.wav", {None: "signals", 1: "signals", 3: "clips"}),
    ("sound", "a.wav b.FLAC", {None: "signals", 1: "signals", 2: "signals", 3: "signals"}),
    ("arrays", "a.npy b.npz", {None: "images", 1: "signals", 2: "images"}),
    ("arrays and labels", "a.npy labels.csv", {None: "images", 1: "signals", 2: "images"}),
    ("tables", "a.csv b.tsv", {None: "signals", 1: "signals", 2: "images", 3: "images"}),
    ("volumes", "a.nii.gz", {None: "volumes", 1: "volumes", 2: "volumes", 3: "volumes"}),
    ("nothing", "", {None: "images", 1: "images", 2: "images", 3: "images"}),
    ("other files", "a.txt", {None: "images", 1: "images", 3: "images"}),
]


@pytest.mark.parametrize(("case", "files", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_kinds_of_folders(case: str, files: str, expected: dict[int | None, str], tmp_path: Path) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for axes, kind in expected.items():
        assert kind_of(tmp_path, None if axes is None else lambda axes=axes: axes) == kind, axes  # type: ignore[misc]


def test_schemes_decide(tmp_path: Path) -> None:
    for scheme in ("signals", "volumes", "clips"):
        assert kind_of(f"{scheme}://{tmp_path}", lambda: 2) == scheme
    assert kind_of("FILE.py:CLASS://x") == kind_of(None) == kind_of(tmp_path / "none") == "images"


def test_arrays_may_be_volumes_or_clips(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--data .* holds arrays, which .*; write volumes:///.* or clips:///"):
        kind_of(tmp_path, lambda: 3)
    assert kind_of(tmp_path, lambda: 3, likely="clips") == "clips"


def test_the_network_is_not_asked_without_need(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert kind_of(tmp_path, lambda: pytest.fail("its axes do not matter")) == "signals"
