"""What is listed as an image, the same by every reader of folders and tables."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.decoding.images import EncodedFile, image_extensions, read_image
from sparkmim.data.labels import read_labeled, read_splits
from sparkmim.data.sources.folder import find_images, is_junk

JUNK = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints")


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return path


def names(folder: Path) -> list[str]:
    source = find_images(folder)
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_passed_over_everywhere(tmp_path: Path, junk: str) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"):
        put(tmp_path / name)
    for below in ("", "train", "train/a", "val"):
        put(tmp_path / below / junk / "x.png")
        (tmp_path / below / "Thumbs.db").write_bytes(b"x")
        (tmp_path / below / ".DS_Store").write_bytes(b"x")
    assert names(tmp_path) == ["train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"]
    train, val = read_splits(tmp_path)
    assert train.classes == ("a", "b")
    assert (len(train), len(val or ())) == (2, 2)
    assert is_junk(junk)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def linked_device(path: Path) -> None:
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize("make", [pipe, unix_socket, linked_device])
def test_only_regular_files_are_listed_or_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "2.png")
    make(tmp_path / "a" / "x.jpg")
    assert names(tmp_path) == ["a/1.png", "b/2.png"]
    assert len(read_labeled(tmp_path)) == 2
    (tmp_path / "labels.csv").write_text("a/1.png,a\na/x.jpg,b\n")
    with pytest.raises(ValueError, match=r"does not exist, or not as files: a/x.jpg"):
        read_labeled(tmp_path / "labels.csv")
    with pytest.raises(UnreadableImage, match="expected a regular file"):
        read_image(tmp_path / "a" / "x.jpg")


def test_links_to_nowhere_are_listed_and_unreadable(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    os.symlink("nowhere", tmp_path / "b.png")
    os.symlink("c.png", tmp_path / "c.png")
    assert names(tmp_path) == ["a.png", "b.png", "c.png"]
    for name in ("b.png", "c.png"):
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / name)


def test_two_class_folders_that_are_one(tmp_path: Path) -> None:
    put(tmp_path / "dress" / "1.png")
    put(tmp_path / "shirt" / "2.png")
    os.symlink("dress", tmp_path / "again")
    with pytest.raises(ValueError, match="the class folders dress and again are the same folder, one by a link"):
        read_labeled(tmp_path)


def test_formats_that_cannot_be_decoded_are_not_listed() -> None:
    known = image_extensions()
    assert not known & {".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".eps", ".ps", ".wmf", ".emf", ".fpx", ".iim"}
    assert {".jpg", ".png", ".tif", ".npy", ".npz", ".webp", ".gif", ".bmp", ".jp2", ".avif"} <= known


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that Pillow will drop
def test_formats_that_pillow_writes_can_be_read() -> None:
    Image.init()
    written = 0
    for extension, kind in sorted(Image.registered_extensions().items()):
        if extension not in image_extensions() or kind not in Image.SAVE:
            continue
        file = io.BytesIO()
        for mode in ("RGB", "L", "1", "P"):
            try:
                Image.new(mode, (32, 32)).save(file, kind)
                break
            except (OSError, ValueError, KeyError, AttributeError):
                file = io.BytesIO()
        if file.getvalue():
            assert EncodedFile(file.getvalue(), f"x{extension}").decode(3).shape[0] == 3, extension
            written += 1
    assert written > 30


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (1, 6, 8)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_one_channel_is_repeated_whatever_its_shape(
    tmp_path: Path, shape: tuple[int, ...], kind: str, channels: int
) -> None:
    array = np.arange(48, dtype=np.float32).reshape(shape)
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, anything=array)
    for content in (path, path.read_bytes()):
        image = EncodedFile(content, path.name).decode(channels)
        assert image.shape == (channels, 6, 8)
        assert (image == image[:1]).all()


def test_archives_of_several_arrays(tmp_path: Path) -> None:
    image, mask = np.ones((3, 4, 5), np.uint8), np.zeros((4, 5))
    np.savez(tmp_path / "x.npz", image=image, mask=mask)
    assert read_image(tmp_path / "x.npz").float().mean() == 1
    np.savez(tmp_path / "y.npz", a=image, b=mask)
    with pytest.raises(UnreadableImage, match="expected one array, or one named 'image' among several, got a, b"):
        read_image(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", image=np.array([{}], dtype=object))
    with pytest.raises(UnreadableImage, match="Python objects, which are not loaded"):
        read_image(tmp_path / "z.npz")


def test_headers_that_claim_too_much_are_refused_unread(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (3, 10**6, 10**6)})
    (tmp_path / "x.npy").write_bytes(header.getvalue())
    with pytest.raises(UnreadableImage, match="its header claims 12000000000000 bytes of numbers, and it has"):
        read_image(tmp_path / "x.npy")
