"""Parts of TIFF files against the same parts of the whole image, over random files of every kind."""

from __future__ import annotations

import io
import math
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, TiffImagePlugin

from sparkmim.data.config import FileConfig, ViewConfig
from sparkmim.data.decoding.encoded import Box, TooManyPixels, UnreadableImage
from sparkmim.data.decoding.images import EncodedFile
from sparkmim.data.normalize import unit_scale
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import EvaluationView, TrainingView

HEIGHT, WIDTH = 83, 118
KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")


def decoded(data: bytes, channels: int, box: Box | None = None, **settings: Any) -> torch.Tensor:
    """The image, or a part of it that is read without the rest: the whole has one pixel more than may be decoded."""
    image = EncodedFile(data, "x.tif")
    most = HEIGHT * WIDTH if box is None else HEIGHT * WIDTH - 1
    image.files = FileConfig(**{"max_pixels": most, **settings})
    return unit_scale(image.decode(channels) if box is None else image.decode_part(channels, lambda *_: box))


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    top, left = int(rng.integers(height)), int(rng.integers(width))
    return Box(top, left, int(rng.integers(top + 1, height + 1)), int(rng.integers(left + 1, width + 1)))


def compare(data: bytes, channels: int, rng: np.random.Generator, what: object, **settings: Any) -> int:
    """The number of boxes, of three, that were read without the rest of the image."""
    whole = decoded(data, channels, **settings)
    read = 0
    for _ in range(3):
        box = random_box(rng, *whole.shape[1:])
        try:
            part = decoded(data, channels, box, **settings)
        except TooManyPixels:
            continue  # blocks as large as the image
        read += 1
        assert part.shape == box.of(whole).shape
        assert torch.equal(part.isnan(), box.of(whole).isnan()), (what, box)
        assert torch.equal(part.nan_to_num(0), box.of(whole).nan_to_num(0)), (what, box)
    return read


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_those_of_the_whole_image(seed: int) -> None:
    """Types of numbers, layouts, compressions, blocks, bands, opacity, white as zero, no data, orientations."""
    rng = np.random.default_rng(seed)
    read = tried = 0
    for _ in range(12):
        kind, bands = np.dtype(str(rng.choice(KINDS))), int(rng.choice([1, 1, 3, 4, 5]))
        layout = str(rng.choice(["interleaved", "planar", "pages", "ome", "imagej"]))
        if layout == "imagej" and kind.str[1:] not in ("u1", "u2", "f4"):
            kind = np.dtype("u2")
        if kind.str[1:] == "f2" and layout == "ome":
            kind = np.dtype("f4")
        high = 200 if kind.itemsize == 1 else 60000 if kind.str[1:] == "u2" else 2000
        array = rng.integers(0 if kind.kind == "u" else -100, min(high, 2000), (bands, HEIGHT, WIDTH)).astype(kind)
        more: dict[str, Any] = {"photometric": "minisblack"}
        if layout in ("interleaved", "planar"):
            more |= {"planarconfig": "separate" if layout == "planar" else "contig", "metadata": None}
            if bands >= 3 and kind.str[1:] in ("u1", "u2", "f4"):
                more |= {"photometric": "rgb"}
                more |= {"extrasamples": [int(rng.integers(3))] * (bands - 3)} if bands > 3 else {}
            array = array.transpose(1, 2, 0) if layout == "interleaved" else array
            if bands == 1:
                array = array.reshape(HEIGHT, WIDTH)
                more.pop("planarconfig")
        elif layout == "ome":
            more |= {"ome": True, "metadata": {"axes": "CYX"}}
        elif layout == "imagej":
            more |= {"imagej": True, "metadata": {"axes": "CYX"}}
        elif rng.random() < 0.5:
            more |= {"metadata": None}
        if more["photometric"] == "minisblack" and kind.kind == "u" and rng.random() < 0.3 and layout != "imagej":
            more["photometric"] = "miniswhite"
        if layout != "imagej":
            more |= {"compression": [None, "zlib", "lzma", "zlib"][rng.integers(4)]}
            more |= {"bigtiff": bool(rng.integers(2)), "byteorder": str(rng.choice(["<", ">"]))}
            if more["compression"] and kind.kind != "f" and rng.random() < 0.5:
                more |= {"predictor": True}
        if rng.random() < 0.5:
            more |= {"tile": (16, 32)}
        else:
            more |= {"rowsperstrip": int(rng.choice([1, 7, 16, HEIGHT]))}
        tags: list[tuple[Any, ...]] = []
        if layout != "imagej" and rng.random() < 0.5:
            tags.append((274, 3, 1, int(rng.integers(1, 9)), False))
        if layout != "imagej" and rng.random() < 0.5:
            tags.append((42113, "s", 0, "7", True))
        file = io.BytesIO()
        tifffile.imwrite(file, np.ascontiguousarray(array), extratags=tags, **more)
        for channels in {bands, 3 if bands == 1 else bands}:
            read += compare(file.getvalue(), channels, rng, (kind, layout, channels, more, tags))
            tried += 3
    assert read > tried / 2


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F")
COMPRESSIONS = {
    **dict.fromkeys((None, "tiff_lzw", "packbits", "tiff_adobe_deflate"), MODES),
    "jpeg": ("L", "RGB", "RGBA", "CMYK", "YCbCr"),
    "group4": ("1",),
}


@pytest.mark.parametrize(
    ("compression", "mode"), [(form, mode) for form, modes in COMPRESSIONS.items() for mode in modes]
)
def test_files_that_pillow_decodes(mode: str, compression: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", WIDTH * 16)
    rng = np.random.default_rng(0)
    smooth = np.clip(np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None] + rng.integers(0, 40, 3), 0, 255)
    image = Image.fromarray((smooth + rng.integers(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16))
    else:
        image = image.quantize(50) if mode == "P" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)))
    for orientation in (1, 6):
        file = io.BytesIO()
        image.save(file, "TIFF", compression=compression, tiffinfo={274: orientation})
        for channels in (1, 3, 4) if mode not in ("I;16", "F") else (1, 3):
            read = compare(file.getvalue(), channels, rng, (mode, compression, orientation, channels))
            assert read or mode == "1" or (mode, compression) == ("YCbCr", None)  # one strip, of which rows are not cut


def test_pages_that_are_images_and_slices_without_headers() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 60000, (3, 2, HEIGHT, WIDTH)).astype(np.uint16)
    for form in ({"imagej": True, "metadata": {"axes": "ZCYX"}}, {"ome": True, "metadata": {"axes": "ZCYX"}}):
        file = io.BytesIO()
        tifffile.imwrite(file, stack, photometric="minisblack", **form)  # type: ignore[arg-type]
        for number, wanted in enumerate(stack.astype(np.float32) / 65535):
            image = EncodedFile(file.getvalue(), "x.tif")
            image.files, image.page = FileConfig(pages="images", max_pixels=HEIGHT * WIDTH - 1), number
            box = random_box(rng, HEIGHT, WIDTH)
            part = image.decode_part(2, lambda *_, box=box: box)  # type: ignore[misc]
            assert torch.equal(part, box.of(torch.from_numpy(wanted)))


def test_missing_tiles_have_the_value_of_no_data() -> None:
    file = io.BytesIO()
    array = np.full((96, 96), 7, np.uint8)
    array[:32, :32] = 9
    tifffile.imwrite(file, array, tile=(32, 32), compression="zlib", extratags=[(42113, "s", 0, "7", True)])
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        for code in (324, 325):
            tag = opened.pages[0].tags[code]
            size = tag.valuebytecount // tag.count
            data[tag.valueoffset + size : tag.valueoffset + tag.valuebytecount] = bytes(size * (tag.count - 1))
    whole = EncodedFile(bytes(data), "x.tif").decode(1)
    image = EncodedFile(bytes(data), "x.tif")
    image.files = FileConfig(max_pixels=64 * 64)
    seen = unit_scale(image.decode_part(1, lambda *_: Box(20, 20, 50, 50)))
    assert torch.equal(seen.nan_to_num(2), whole[:, 20:50, 20:50].nan_to_num(2))
    assert seen.isnan().any()
    assert not seen.isnan().all()
    assert image.decode_part(1, lambda *_: Box(40, 40, 50, 50)).isnan().all()  # there is data elsewhere


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{"tile": (16, 32)}, {"rowsperstrip": 7}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("colors", ["separated", "cielab", "ycbcr", "palette"])
def test_colors_that_pillow_converts_in_either_byte_order(
    colors: str, compression: str | None, layout: dict[str, Any], order: str
) -> None:
    rng = np.random.default_rng(0)
    bands = {"separated": (4,), "palette": ()}.get(colors, (3,))
    more: dict[str, Any] = {"photometric": colors, "compression": compression, "byteorder": order, **layout}
    if colors == "ycbcr":
        more["extratags"] = [(530, 3, 2, (1, 1), True)]
    if colors == "palette":
        more["colormap"] = rng.integers(0, 65536, (3, 256)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, rng.integers(0, 256, (HEIGHT, WIDTH, *bands)).astype(np.uint8), metadata=None, **more)
    assert compare(file.getvalue(), 3, rng, more)


def patched(data: bytes, values: dict[int, int], number: int, page: int = 0) -> bytes:
    """The file with another number in a tag of offsets or sizes."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for code, value in values.items():
            tag = file.pages[page].aspage().tags[code]
            size = tag.valuebytecount // tag.count
            place = tag.valueoffset + number * size
            changed[place : place + size] = value.to_bytes(size, "little")
    return bytes(changed)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("lie", ["no place", "no size", "short", "beyond the file"])
def test_blocks_with_wrong_places_and_sizes(lie: str, tile: tuple[int, int] | None, compression: str | None) -> None:
    """Missing blocks are zeros, and damaged ones are refused, in the whole image and in a part."""
    array = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, array, tile=tile, rowsperstrip=None if tile else 32, compression=compression, metadata=None)
    offsets, sizes = (324, 325) if tile else (273, 279)
    changes = {
        "no place": {offsets: 0},
        "no size": {sizes: 0},
        "short": {sizes: 500},
        "beyond the file": {offsets: 60000},
    }
    data, box = patched(file.getvalue(), changes[lie], 1), Box(5, 5, 60, 60)
    missing = np.s_[:32, 32:64] if tile else np.s_[32:64]
    array[missing] = 0
    image = EncodedFile(data, "x.tif")
    image.files = FileConfig(max_pixels=96 * 96 - 1)
    if lie in ("no place", "no size"):
        assert torch.equal(EncodedFile(data, "x.tif").decode(1)[0], torch.from_numpy(array))
        assert torch.equal(image.decode_part(1, lambda *_: box), box.of(torch.from_numpy(array)[None]))
        return
    with pytest.raises(UnreadableImage):
        EncodedFile(data, "x.tif").decode(1)
    with pytest.raises(UnreadableImage):
        image.decode_part(1, lambda *_: box)


def test_later_pages_have_all_their_blocks() -> None:
    """Of blocks that are not listed, tifffile makes zeros."""
    array = np.random.default_rng(0).integers(1, 256, (3, 96, 96)).astype(np.uint8)
    file = io.BytesIO()
    tifffile.imwrite(file, array, tile=(32, 32), compression="zlib", metadata=None, photometric="minisblack")
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        place = opened.pages[2].aspage().tags[324].offset
    data[place + 4 : place + 8] = (2).to_bytes(4, "little")
    image = EncodedFile(bytes(data), "x.tif")
    with pytest.raises(UnreadableImage, match="need 9 tiles or strips, and the file has 2"):
        image.decode(3)
    image.files = FileConfig(max_pixels=96 * 96 - 1)
    with pytest.raises(UnreadableImage, match="need 9 tiles or strips, and the file has 2"):
        image.decode_part(3, lambda *_: Box(5, 5, 60, 60))


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_blocks_that_are_far_larger_than_their_pixels_are_refused(compression: str) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((96, 96), np.uint8), tile=(32, 32), compression=compression, metadata=None)
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as opened:
        tag = opened.pages[0].aspage().tags[325]
        place, offset = len(file.getvalue()), tag.offset
    data = bytearray(file.getvalue() + np.array([2**20] * 9, "<u4").tobytes() + bytes(2**21))
    data[offset + 2 : offset + 4] = (4).to_bytes(2, "little")  # LONG
    data[offset + 8 : offset + 12] = place.to_bytes(4, "little")
    image = EncodedFile(bytes(data), "x.tif")
    with pytest.raises(UnreadableImage, match="cannot need the 1048576 bytes"):
        image.decode(1)
    image.files = FileConfig(max_pixels=96 * 96 - 1)
    with pytest.raises(UnreadableImage, match="cannot need the 1048576 bytes"):
        image.decode_part(1, lambda *_: Box(5, 5, 20, 20))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_cut_off_files_and_blocks_of_the_whole_image_are_refused(
    tile: tuple[int, int] | None, compression: str | None
) -> None:
    file = io.BytesIO()
    array = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    tifffile.imwrite(file, array, tile=tile, compression=compression, rowsperstrip=None if tile else 8)
    image = EncodedFile(file.getvalue()[:-2500], "x.tif")
    image.files = FileConfig(max_pixels=2000)
    with pytest.raises(UnreadableImage):
        image.decode_part(1, lambda *_: Box(40, 0, 64, 30))
    file = io.BytesIO()
    tifffile.imwrite(file, array, compression="zlib", rowsperstrip=64)
    image = EncodedFile(file.getvalue(), "x.tif")
    image.files = FileConfig(max_pixels=2000)
    with pytest.raises(TooManyPixels, match=r"max-pixels.*so are those of the tiles or strips around the window"):
        image.decode_part(1, lambda *_: Box(0, 0, 4, 4))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of 40,000 x 40,000 pixels, which takes few bytes."""
    folder = tmp_path_factory.mktemp("slide")
    tile = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    tiles = [zlib.compress(np.full_like(tile, 40 * n).tobytes() if n else tile.tobytes(), 1) for n in range(6)]
    tifffile.imwrite(
        folder / "slide.tif",
        (tiles[number % 6] for number in range(math.ceil(40_000 / 256) ** 2)),
        shape=(40_000, 40_000, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
    )
    return folder


@pytest.mark.slow
def test_views_of_a_slide_take_the_memory_of_their_window(slide: Path) -> None:
    source = find_images(slide)
    config = ViewConfig(image_size=(224, 224), crop="native", mean=(0.5,) * 3, std=(0.2,) * 3)
    training = TrainingView(config)
    tracemalloc.start()
    for seed in range(3):
        assert training.look(source, 0, 3, torch.Generator().manual_seed(seed)).shape == (3, 224, 224)
    assert EvaluationView(config).look(source, 0, 3).shape == (3, 224, 224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    resized = ViewConfig(image_size=(224, 224), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(TooManyPixels, match="--crop native"):
        TrainingView(resized).look(source, 0, 3, torch.Generator())
