"""Labels with odd names, links and spellings: what is said, and that every remedy that is named works."""

from __future__ import annotations

import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from helpers import make_split
from sparkmim.data.labels import labeled_splits, read_labeled, read_splits
from sparkmim.data.sources.address import absolute_address


def test_classes_called_train(tmp_path: Path) -> None:
    root = make_split(tmp_path / "vehicles", 2, classes=("bus", "train", "car"))
    with pytest.raises(
        ValueError, match=r"got also bus, car; if all of these are classes, write --data (\S+)/\.,"
    ) as e:
        read_splits(root)
    found = re.search(r"write --data (\S+),", str(e.value))
    assert found
    train, val = read_splits(found[1])
    assert (train.classes, val) == (("bus", "car", "train"), None)
    assert labeled_splits(found[1], None, ()).test == []
    assert absolute_address(found[1]) == f"{root}/.", "as a configuration records it"


def test_classes_called_as_all_splits_are(tmp_path: Path) -> None:
    root = make_split(tmp_path, 2, classes=("test", "train", "val"))
    splits = labeled_splits(f"{root}/.", None, ())
    assert (splits.train.classes, splits.val, splits.test) == (("test", "train", "val"), None, [])


def test_a_class_folder_that_is_a_link_to_another(tmp_path: Path) -> None:
    root = make_split(tmp_path / "d", 2)
    (root / "red_again").symlink_to(root / "red")
    message = r"class folders red_again and red are the same folder.*\(red_again is a link to \S+red\).*copy its images"
    with pytest.raises(ValueError, match=message):
        read_labeled(root)
    (root / "red_again").unlink()
    shutil.copytree(root / "red", root / "red_again")
    assert read_labeled(root).counts() == [2, 2, 2, 2]


def test_a_class_folder_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    root = make_split(tmp_path / "d", 2)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="gone is a link to what does not exist; mend or remove it"):
        read_labeled(root)
    (root / "gone").unlink()
    assert len(read_labeled(root).classes) == 3


def test_two_spellings_of_a_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    train = make_split(tmp_path / "train", 2, classes=(composed, "tea"))
    val = make_split(tmp_path / "val", 2, classes=(apart, "tea"))
    with pytest.raises(ValueError, match=r"'cafe\\u0301' there, 'caf\\xe9' here look alike.*NFC or NFD.*Rename"):
        read_splits(train, val)
    (val / apart).rename(val / composed)
    assert read_splits(train, val)[1] is not None


@pytest.mark.parametrize("length", [300, 5000])
def test_paths_longer_than_names_can_be(length: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{'x' * length}.png,a\n")
    with pytest.raises(ValueError, match=r"1 of the 1 images of .*t\.csv does not exist") as e:
        read_labeled(tmp_path / "t.csv")
    assert len(str(e.value)) < 1000


def test_names_with_the_line_ends_of_unicode(tmp_path: Path) -> None:
    root = make_split(tmp_path, 1)
    names = [f"a{character}b.png" for character in "\x0b\x1c\x85\u2028"]
    for name in names:
        shutil.copy(root / "red" / "0.png", root / name)
    (root / "t.csv").write_text("".join(f"{name},{number}\n" for number, name in enumerate(names)))
    labeled = read_labeled(root / "t.csv")
    assert [labeled.source.name(index) for index in range(4)] == names


def test_names_are_shown_without_their_control_characters(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"\x1b[31m\rx.png",a\n')
    with pytest.raises(ValueError, match=r"\\x1b\[31m\\rx\.png"):
        read_labeled(tmp_path / "t.csv")
