"""Files that two sets share, and files outside of their folder."""

from __future__ import annotations

from pathlib import Path

from helpers import make_images
from sparkmim.data.places import files_outside, shared_files
from sparkmim.data.sources.base import Subset
from sparkmim.data.sources.folder import Files, find_images


def test_files_outside_of_their_folder(tmp_path: Path) -> None:
    inside, elsewhere = make_images(tmp_path / "inside", 3), make_images(tmp_path / "elsewhere", 2)
    assert files_outside(find_images(inside)) is None
    (inside / "again.png").symlink_to(inside / "0.png")
    assert files_outside(find_images(inside)) is None, "a link within the folder"
    (inside / "more").symlink_to(elsewhere)
    (inside / "one.png").symlink_to(elsewhere / "0.png")
    found = files_outside(find_images(inside))
    assert found is not None
    assert (found.number, found.name, found.target) == (3, "more/0.png", str(elsewhere / "0.png"))
    rows = Files(inside, ["0.png", "../elsewhere/1.png"])
    assert str(files_outside(rows)) == f"1 outside of the folder (../elsewhere/1.png is {elsewhere / '1.png'})"
    assert files_outside(Subset(rows, [0])) is None


def test_files_of_two_sets(tmp_path: Path) -> None:
    one = make_images(tmp_path / "one", 4)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link.png").symlink_to(one / "1.png")
    (tmp_path / "other" / "copy.png").write_bytes((one / "2.png").read_bytes())
    other = find_images(tmp_path / "other")
    assert shared_files(find_images(one), other) == 1
    assert shared_files(Subset(find_images(one), [0, 2]), other) == 0
    assert shared_files(find_images(one), Files(tmp_path, ["one/3.png", "one/../one/0.png", "gone.png"])) == 2
