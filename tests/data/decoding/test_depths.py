"""The same picture in 8 and in 16 bits, or fewer, is the same image, whatever its tags and layout."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
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

HEIGHT, WIDTH = 6, 9
ROUNDING = 0.006
"""Conversions of 8 bits round to one of 255 values, twice where there is opacity."""


def read(content: bytes | Path, name: str, channels: int, nodata: float | None = None) -> torch.Tensor | None:
    """Return the image on the scale of 0 to 1; None if it is refused."""
    image = EncodedFile(content, name)
    image.files = FileConfig(nodata=nodata)
    try:
        pixels = image.decode(channels)
    except UnreadableImage:
        return None
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def require_alike(one: torch.Tensor | None, other: torch.Tensor | None, what: Any) -> None:
    assert (one is None) == (other is None), what
    if one is not None and other is not None:
        assert one.shape == other.shape, what
        assert torch.equal(one.isnan(), other.isnan()), what
        assert (one.nan_to_num() - other.nan_to_num()).abs().max() < ROUNDING, what


def picture(bands: int) -> np.ndarray:
    """Return `(H, W, bands)` of 8 bits, with values at both ends."""
    pixels = np.random.default_rng(bands).integers(0, 256, (HEIGHT, WIDTH, bands), dtype=np.uint8)
    pixels[1:3, 2:4], pixels[4, 5:7] = 0, 255
    return pixels


def tiff(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **settings)
    return file.getvalue()


LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"compression": "zlib"}, {"tile": (16, 16)})

TIFF_KINDS = [
    (1, "minisblack", ()),
    (1, "miniswhite", ()),
    (2, "minisblack", ("unassalpha",)),
    (2, "miniswhite", ("unassalpha",)),
    (2, "minisblack", ("unspecified",)),
    (3, "rgb", ()),
    (3, "minisblack", ("unspecified",) * 2),
    (4, "rgb", ("unassalpha",)),
    (4, "rgb", ("unspecified",)),
    (5, "rgb", ("unassalpha", "unspecified")),
]


@pytest.mark.parametrize(("bands", "photometric", "extra"), TIFF_KINDS, ids=lambda value: str(value))
def test_tiff_of_8_and_16_bits_agree(bands: int, photometric: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    pixels = picture(bands)
    everything = itertools.product(
        ("contig", "separate")[: 1 + (bands > 1)], LAYOUTS, (1, 3, 6), (None, 0, 255), (None, 0)
    )
    # A seventh of the combinations, another one of each kind of file; all of them agree, and take a minute.
    for planar, layout, orientation, tag, flag in list(everything)[
        TIFF_KINDS.index((bands, photometric, extra)) % 6 :: 7
    ]:
        files = []
        for depth, by in ((np.uint8, 1), (np.uint16, 257)):
            held = pixels.astype(depth) * depth(by)
            held = held[..., 0] if bands == 1 else held if planar == "contig" else held.transpose(2, 0, 1)
            text = "" if tag is None else str(tag * by)
            files.append(
                tiff(
                    held,
                    photometric=photometric,
                    extrasamples=extra or None,
                    planarconfig=planar if bands > 1 else None,
                    extratags=[(274, 3, 1, orientation, True)] + [(42113, 2, len(text) + 1, text, True)] * bool(text),
                    **layout,
                )
            )
        path = tmp_path / "x.tif"
        path.write_bytes(files[0])
        for channels in (1, 2, 3, 4):
            what = (planar, layout, orientation, tag, flag, channels)
            found = read(files[0], "x.tif", channels, flag)
            require_alike(found, read(files[1], "x.tif", channels, flag), what)
            require_alike(found, read(path, "x.tif", channels, flag), what)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(row: np.ndarray, bits: int) -> bytes:
    """Return numbers of some bits each, filled up to whole bytes."""
    text = "".join(format(int(value), f"0{bits}b") for value in row.reshape(-1))
    text += "0" * (-len(text) % 8)
    return bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))


def png(pixels: np.ndarray, bits: int, color: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, 0)
    rows = b"".join(b"\0" + packed(row, bits) for row in pixels)
    content = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(content)


def exif(orientation: int) -> bytes:
    return chunk(b"eXIf", b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0))


@pytest.mark.parametrize("color", [0, 2, 4, 6], ids=["gray", "rgb", "gray alpha", "rgba"])
def test_png_of_all_depths_agree(color: int) -> None:
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    ends = np.random.default_rng(color).integers(0, 2, (HEIGHT, WIDTH, bands))  # 0 or the most, alike in all depths
    for key, orientation, missing in itertools.product((False, True)[: 1 + (bands in (1, 3))], (1, 6), (None, 0, 1)):
        found = {}
        for bits in (1, 2, 4, 8, 16) if color == 0 else (8, 16):
            top = 2**bits - 1
            transparent = [chunk(b"tRNS", struct.pack(f">{bands}H", *[top] * bands))] if key else []
            content = png(ends * top, bits, color, *transparent, exif(orientation))
            nodata = None if missing is None else float(missing * top)
            found[bits] = {channels: read(content, "x.png", channels, nodata) for channels in (1, 3, 4)}
        for bits, channels in itertools.product(found, (1, 3, 4)):
            what = (bits, channels, key, orientation, missing)
            require_alike(found[bits][channels], found[16][channels], what)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is 0", "black is 0"])
def test_tiff_of_few_bits_fills_the_range_of_8(bits: int, photometric: int) -> None:
    numbers = np.arange(HEIGHT * 8).reshape(HEIGHT, 8) % 2**bits
    rows = b"".join(packed(row, bits) for row in numbers)
    tags = [(256, 8), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, HEIGHT)]
    tags.append((279, len(rows)))
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = 8 + len(rows)
    content = b"II*\0" + struct.pack("<I", start) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)
    shares = numbers / (2**bits - 1)
    wanted = torch.from_numpy(shares if photometric else 1 - shares).float()
    for channels, nodata in itertools.product((1, 2, 3, 5), (None, 1.0)):
        found = read(content, "x.tif", channels, nodata)
        assert found is not None
        expected = wanted if nodata is None else wanted.masked_fill(torch.from_numpy(numbers == 1), torch.nan)
        require_alike(found, expected.expand(channels, -1, -1), (channels, nodata))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_palettes_value_of_no_data_is_an_index(orientation: int, tmp_path: Path) -> None:
    palette = np.zeros((3, 256), np.uint16)
    palette[0], palette[2] = np.arange(256) * 257, 65535
    indices = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8)
    tags: list[Any] = [(42113, 2, 2, "1", True), (274, 3, 1, orientation, True)]
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(indices, photometric="palette", colormap=palette, extratags=tags))
    upright = np.rot90(indices, -1) if orientation == 6 else indices
    for channels in (1, 3, 4):
        found = read(path, "x.tif", channels)
        assert found is not None
        assert torch.equal(found[0].isnan(), torch.from_numpy(upright == 1))
        assert torch.equal(found[: min(3, channels)].isnan().any(0), found[: min(3, channels)].isnan().all(0))


def test_opacity_has_no_value_that_stands_for_no_data(tmp_path: Path) -> None:
    """An image without data in 255 keeps an opacity of 255."""
    pixels = picture(3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = read(tmp_path / "x.png", "x.png", 4, 255)
    assert found is not None
    assert torch.equal(found[:3].isnan(), torch.from_numpy(pixels == 255).permute(2, 0, 1))
    assert (found[3] == 1).all()


def test_colors_multiplied_by_opacity_are_divided() -> None:
    opacity = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    for bands, photometric in ((1, "minisblack"), (3, "rgb")):
        colors = picture(bands)
        multiplied = np.concatenate([(colors * (128 / 255)).round().astype(np.uint8), opacity], 2)
        for planar in ("contig", "separate"):
            held = multiplied if planar == "contig" else np.ascontiguousarray(multiplied.transpose(2, 0, 1))
            content = tiff(held, photometric=photometric, extrasamples=("assocalpha",), planarconfig=planar)
            found = read(content, "x.tif", 4)
            assert found is not None
            wanted = torch.from_numpy(colors).permute(2, 0, 1).float() / 255
            assert (found[:3] - wanted).abs().max() < 0.01  # one of 128 values is left of two
