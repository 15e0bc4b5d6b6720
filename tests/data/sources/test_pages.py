"""The pages of files as images of their own (`--pages images`)."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from sparkmim.data.config import FileConfig
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.decoding.images import EncodedFile
from sparkmim.data.labels import LabeledImages, read_labeled
from sparkmim.data.places import files_outside, shared_files
from sparkmim.data.sources.base import fingerprint, open_image
from sparkmim.data.sources.folder import find_images
from sparkmim.data.sources.pages import Pages, by_page
from sparkmim.data.targets import ImagesWithArrays

IMAGES = FileConfig(pages="images")
HEIGHT, WIDTH = 5, 7


def stack(*shape: int, kind: str = "u1") -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 200, (*shape, HEIGHT, WIDTH)).astype(kind)


def tiff(array: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **settings})
    return file.getvalue()


def without_later_headers(content: bytes) -> bytes:
    """Return an ImageJ file as ImageJ writes those above 4 GiB: one header, and all pages behind each other."""
    order = "<" if content[:2] == b"II" else ">"
    (first,) = struct.unpack(f"{order}I", content[4:8])
    (tags,) = struct.unpack(f"{order}H", content[first : first + 2])
    place = first + 2 + 12 * tags
    return content[:place] + bytes(4) + content[place + 4 :]


def scaled(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / {"u1": 255, "u2": 65535}.get(array.dtype.str[1:], 1))


def read(content: bytes, channels: int, page: int | None) -> torch.Tensor:
    image = EncodedFile(content, "x.tif")
    image.files, image.page = IMAGES, page
    pixels = image.decode(channels)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def count(content: bytes, channels: int) -> int:
    image = EncodedFile(content, "x.tif")
    image.files = IMAGES
    return image.images(channels)


LAYOUTS: dict[str, dict[str, Any]] = {
    "pages": {"metadata": None},
    "shaped pages": {},
    "deflate": {"compression": "zlib"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    "volume in blocks": {"tile": (16, 16, 16)},
    "big": {"bigtiff": True, "metadata": None},
}


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_page_is_an_image(layout: str, kind: str) -> None:
    if layout == "imagej" and kind == "i2":  # which it does not have
        kind = "u2"
    array = stack(4, kind=kind)
    content = tiff(array, **LAYOUTS[layout])
    for channels in (1, 2, 3, 4):  # four too, where pages would be channels
        assert count(content, channels) == 4
        for page in range(4):
            assert torch.equal(read(content, channels, page)[0], scaled(array[page]))


def test_files_of_imagej_with_one_header() -> None:
    array = stack(4, kind="u2")
    content = without_later_headers(tiff(array, imagej=True, metadata={"axes": "TYX"}))
    assert len(tifffile.TiffFile(io.BytesIO(content)).pages) == 1
    assert count(content, 1) == 4
    assert all(torch.equal(read(content, 1, page)[0], scaled(array[page])) for page in range(4))


@pytest.mark.parametrize("axes", ["TZCYX", "CTZYX", "TCZYX", "CYX", "ZCYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_channels_that_a_file_declares_are_one_image(axes: str, compression: str | None) -> None:
    sizes = {"T": 2, "Z": 3, "C": 2}
    array = stack(*(sizes[axis] for axis in axes[:-2]), kind="u2")
    content = tiff(array, ome=True, metadata={"axes": axes}, compression=compression)
    channels_last = np.moveaxis(array, axes.index("C"), -3).reshape(-1, 2, HEIGHT, WIDTH)
    if len(channels_last) > 1:
        assert count(content, 2) == len(channels_last)
        for page, wanted in enumerate(channels_last):
            assert torch.equal(read(content, 2, page), scaled(wanted))
    assert count(content, 1) == 2 * len(channels_last)  # a network of one channel sees each page
    pages = array.reshape(-1, HEIGHT, WIDTH)
    assert all(torch.equal(read(content, 1, page)[0], scaled(pages[page])) for page in range(len(pages)))


def test_pages_of_colors() -> None:
    array = np.moveaxis(stack(3, 3), 1, -1)
    content = tiff(array, photometric="rgb")
    assert count(content, 3) == 3
    assert all(torch.equal(read(content, 3, page), scaled(np.moveaxis(array[page], -1, 0))) for page in range(3))


def test_the_first_image_is_what_first_takes() -> None:
    for content in (tiff(stack(4)), tiff(stack(2, 3, 2, kind="u2"), ome=True, metadata={"axes": "TZCYX"})):
        for channels in (1, 2, 3):
            first = EncodedFile(content, "x.tif")
            first.files = FileConfig(pages="first")
            pixels = first.decode(channels)
            assert torch.equal(pixels.float() / (255 if pixels.dtype == torch.uint8 else 1), read(content, channels, 0))


def make_folder(root: Path) -> Path:
    for name in ("a/photos (1)", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "stack.tif").write_bytes(tiff(stack(3)))
        (root / name / "one.tif").write_bytes(tiff(stack()))
        Image.fromarray(stack()).save(root / name / "picture.png")
    (root / "b/cut.tif").write_bytes(tiff(stack(3), metadata=None)[:-40])
    (root / "b/junk.tif").write_bytes(b"II*\0junk")
    return root


def test_names_and_order_follow_the_files(tmp_path: Path) -> None:
    source = by_page(find_images(make_folder(tmp_path)), 1, IMAGES)
    names = [source.name(index) for index in range(len(source))]
    stacks = [f"/stack.tif#{page}" for page in range(3)]
    assert names == [
        *(f"a/photos (1){name}" for name in ("/one.tif", "/picture.png", *stacks)),
        *(f"b{name}" for name in ("/cut.tif", "/junk.tif", "/one.tif", "/picture.png", *stacks)),
    ]
    again = pickle.loads(pickle.dumps(source))
    for index, name in enumerate(names):
        image = open_image(again, index, IMAGES)
        if "cut" in name or "junk" in name:
            with pytest.raises(UnreadableImage):
                image.decode(1)
        else:
            wanted = scaled(stack(3)[int(name[-1])] if "#" in name else stack())
            assert torch.equal(image.decode(1)[0].float() / 255, wanted)


def test_sets_without_stacks_are_what_they_were(tmp_path: Path) -> None:
    """Their indices key randomness, and their names identify a run's images."""
    (tmp_path / "one.tif").write_bytes(tiff(stack()))
    Image.fromarray(stack()).save(tmp_path / "picture.png")
    source = find_images(tmp_path)
    assert by_page(source, 3, IMAGES) is source
    (tmp_path / "stack.tif").write_bytes(tiff(stack(3)))
    source = find_images(tmp_path)
    assert by_page(source, 3, FileConfig()) is source
    assert fingerprint(by_page(source, 3, IMAGES)) != fingerprint(source)


def test_pages_have_their_files_class(tmp_path: Path) -> None:
    files = read_labeled(make_folder(tmp_path))
    labeled = files.by_page(1, IMAGES)
    assert isinstance(labeled, LabeledImages)
    assert labeled.counts() == [5, 7]
    assert [labeled.source.name(i)[0] for i in range(len(labeled))] == [labeled.classes[k] for k in labeled.labels]
    targets = ImagesWithArrays(files.source, np.arange(2 * len(files)).reshape(-1, 2)).by_page(1, IMAGES)
    assert targets.targets[:, 0].tolist() == [0, 2, 4, 4, 4, 6, 8, 10, 12, 14, 14, 14]


def test_places_of_pages_are_their_files(tmp_path: Path) -> None:
    source = find_images(make_folder(tmp_path / "here"))
    pages = by_page(source, 1, IMAGES)
    assert isinstance(pages, Pages)
    assert shared_files(source, pages) == len(pages) == 12
    assert files_outside(pages) is None
    (tmp_path / "there").mkdir()
    (tmp_path / "there/x.tif").symlink_to(tmp_path / "here/b/stack.tif")
    outside = files_outside(by_page(find_images(tmp_path / "there"), 1, IMAGES))
    assert outside is not None
    assert outside.number == 3


def test_a_page_that_is_gone_is_told() -> None:
    with pytest.raises(UnreadableImage, match="list the files anew"):
        read(tiff(stack(2)), 1, 2)
    with pytest.raises(UnreadableImage, match="list the files anew"):
        read(tiff(stack(2)), 1, None)


@pytest.mark.parametrize(
    "claim",
    [
        "ImageJ=1.11a\nimages=9999999999\nframes=9999999999\nhyperstack=true\n",
        "ImageJ=1.11a\nimages=99999999\nslices=99999999\n",
        '{"shape": [1000000000, 5, 7], "truncated": true}',
        '{"shape": [1000000000, 5, 7]}',
    ],
)
def test_a_file_cannot_claim_more_pages_than_it_has_bytes(claim: str) -> None:
    content = tiff(stack(), description=claim, metadata=None)
    try:
        held = count(content, 1)
    except UnreadableImage:
        return
    assert held == 1
    assert torch.equal(read(content, 1, None)[0], scaled(stack()))
