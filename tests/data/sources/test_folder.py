from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.data.sources.base import fingerprint
from sparkmim.data.sources.folder import find_images


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(path, format="PNG")


def names(folder: Path) -> list[str]:
    source = find_images(folder)
    return [source.name(i) for i in range(len(source))]


def test_any_nesting_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("b.png", "class_1/x.PNG", "class_1/deep/er/y.jpg", "a.JPeG", "class_0/z.tiff"):
        put(tmp_path / name)
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "no_extension").write_text("x")
    assert names(tmp_path) == ["a.JPeG", "b.png", "class_0/z.tiff", "class_1/deep/er/y.jpg", "class_1/x.PNG"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".thumbnails/b.png"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a.png"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg" / "y.png")
    assert names(tmp_path) == ["x.jpg/y.png"]


def test_linked_folders_are_walked_once(tmp_path: Path) -> None:
    put(tmp_path / "data" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    assert names(tmp_path / "data") == ["a.png", "link/b.png"]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    strange = [b"\xff\xfe.png", "häß 日本.png".encode(), b"new\nline.png", b"tab\t.png"]
    for name in strange:
        put(tmp_path / os.fsdecode(name), value=len(name))
    source = find_images(tmp_path)
    assert {os.fsencode(source.name(i)) for i in range(len(source))} == set(strange)
    for i in range(len(source)):
        assert source.open(i).decode(1).unique().item() == len(os.fsencode(source.name(i)))
    assert len(fingerprint(source)) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "there is no folder"),
        (lambda p: p, "it holds no file"),
        (lambda p: (p / "x.csv").write_text("x") and p, "it holds 1 .csv"),
        (lambda p: (p / "x.csv").write_text("x") and p / "x.csv", "is a file"),
    ],
)
def test_folders_without_images_are_refused(tmp_path: Path, make: object, message: str) -> None:
    folder = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        find_images(folder)


@pytest.mark.parametrize("below", ["", "private"])
def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "private" / "b.png")
    scandir = os.scandir

    def denied(path: str) -> object:  # root may list any folder
        if Path(path) == tmp_path / below:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError) as caught:
        find_images(tmp_path)
    assert f"the folder {tmp_path / below} cannot be read (Permission denied)" in str(caught.value)


def test_what_a_file_system_keeps_for_itself_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "lost+found" / "b.png")  # which only root may list
    assert [find_images(tmp_path).name(i) for i in range(len(find_images(tmp_path)))] == ["a.png"]
