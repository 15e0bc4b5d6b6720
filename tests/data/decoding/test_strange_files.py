"""Files from strangers among images: none starts a program, hangs, or takes more memory than it can have use for."""

from __future__ import annotations

import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sparkmim.data.config import FileConfig
from sparkmim.data.decoding.encoded import Box, UnreadableImage
from sparkmim.data.decoding.images import EncodedFile
from sparkmim.data.decoding.pillow import WHOLE

MEMORY = 2**28
"""Bytes of address space beyond what the process has: 256 MiB."""

CLAIMED = 16_000
"""Height and width that headers claim: fewer pixels than the limit, 256 million."""


def picture(path: Path) -> bytes:
    Image.new("RGB", (8, 8), (10, 200, 30)).save(path, "PNG")
    return path.read_bytes()


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def sparse(path: Path, start: bytes = b"") -> None:
    """Zeros of 3 GiB that lie nowhere, after a few bytes."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(3 * 2**30)


def long_tail(path: Path) -> None:
    """A picture, and zeros behind it."""
    picture(path)
    os.truncate(path, 3 * 2**30)


def long_chunk(path: Path) -> None:
    """A picture with a part of 2 GiB that nobody knows."""
    start = picture(path)[:33]
    path.write_bytes(start + struct.pack(">I", 2**31 - 1) + b"abCd")
    os.truncate(path, 2**31 + 4096)


def claim(path: Path, **how: object) -> None:
    """Change the header of a small TIFF file."""
    tifffile.imwrite(path, np.ones((16, 16, 3), np.float64), photometric="rgb", metadata=None, **how)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
            if name in tags:
                struct.pack_into("<I" if tags[name].dtype == 4 else "<H", content, tags[name].valueoffset, CLAIMED)
    path.write_bytes(content)


def array_header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(48)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.npy", array_header((3, CLAIMED, CLAIMED)))


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "PostScript": ("png", postscript),
    "PostScript by its name": ("eps", postscript),
    "a sparse picture": ("png", sparse),
    "a sparse photograph": ("jpg", lambda path: sparse(path, b"\xff\xd8\xff\xe0")),
    "a sparse array": ("npy", sparse),
    "a sparse TIFF": ("tif", lambda path: sparse(path, b"II*\0\x08\0\0\0")),
    "a part of 2 GiB": ("png", long_chunk),
    "strips that are not there": ("tif", claim),
    "tiles that are not there": ("tif", lambda path: claim(path, tile=(16, 16))),
    "packed tiles that are not there": ("tif", lambda path: claim(path, tile=(16, 16), compression="deflate")),
    "a packed strip": ("tif", lambda path: claim(path, compression="deflate")),
    "an array of endless numbers": ("npy", lambda path: path.write_bytes(array_header((3, 10**6, 10**6)))),
    "an array within the limit": ("npy", lambda path: path.write_bytes(array_header((3, CLAIMED, CLAIMED)))),
    "an archive within the limit": ("npz", archive),
}


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Little memory, and a Ghostscript that tells that it was started."""
    canary, program = tmp_path / "canary", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return canary


def limited(call: Callable[[], object]) -> None:
    """Call with little memory."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_strange_files_are_unreadable(name: str, channels: int, bounded: Path, tmp_path: Path) -> None:
    extension, make = FILES[name]
    path = tmp_path / f"innocent.{extension}"
    make(path)
    start = time.process_time()
    for act in (
        lambda: EncodedFile(path).decode(channels),
        lambda: (EncodedFile(path).size(channels), EncodedFile(path).decode(channels)),
        lambda: EncodedFile(path).decode_part(channels, lambda *_: Box(0, 0, 1, 1)),
    ):
        with pytest.raises(UnreadableImage) as told:
            limited(act)
        assert len(str(told.value)) < 300
    assert time.process_time() - start < 5
    assert not bounded.exists()


def test_what_follows_a_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    long_tail(path)
    limited(lambda: EncodedFile(path).decode(3))
    assert EncodedFile(path).decode(3)[:, 0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize("kind", ["RGB", "deep", "photograph"])
def test_large_files_hold_what_small_ones_do(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of large images, which are longer than what may be read of any file."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (90, 120, 3), dtype=np.uint16)
    if kind == "deep":
        path = tmp_path / "x.png"
        header = struct.pack(">IIBBBBB", 120, 90, 16, 2, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        content = b"\x89PNG\r\n\x1a\n"
        for part, data in parts:
            content += struct.pack(">I", len(data)) + part + data + struct.pack(">I", zlib.crc32(part + data))
        path.write_bytes(content)
    else:
        path = tmp_path / ("x.png" if kind == "RGB" else "x.jpg")
        Image.fromarray((pixels >> 8).astype(np.uint8)).save(path, quality=100)
    whole = EncodedFile(path).decode(3)
    size = EncodedFile(path).size(3)
    assert path.stat().st_size < WHOLE
    for module in ("images", "pillow"):
        monkeypatch.setattr(f"sparkmim.data.decoding.{module}.WHOLE", 20_000)
    assert (EncodedFile(path).decode(3) == whole).all()
    large = EncodedFile(path)
    assert large.size(3) == size
    assert (large.decode(3) == whole).all()


def test_the_limit_of_pixels_holds_for_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for module in ("images", "pillow"):
        monkeypatch.setattr(f"sparkmim.data.decoding.{module}.WHOLE", 20_000)
    image = EncodedFile(tmp_path / "x.png")
    image.files = FileConfig(max_pixels=9_999)
    with pytest.raises(UnreadableImage, match="100 x 100 pixels are more than the 9999 of --max-pixels"):
        image.decode(3)


def test_tiles_that_are_missing_on_purpose_are_zeros(tmp_path: Path) -> None:
    """As GDAL writes sparse files."""
    path = tmp_path / "x.tif"
    tiles = [np.full((16, 16), 7, np.uint8), None, None, np.full((16, 16), 9, np.uint8)]
    tifffile.imwrite(path, iter(tiles), shape=(32, 32), dtype=np.uint8, tile=(16, 16), photometric="minisblack")
    image = EncodedFile(path).decode(1)[0]
    assert [image[0, 0], image[0, 31], image[31, 0], image[31, 31]] == [7, 0, 0, 9]
