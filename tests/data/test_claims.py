"""Headers, tags and texts of files from strangers that claim gigabytes: no more is read than a header may need.

Files are sparse, or compress to almost nothing. Each is read in little memory and time: it is refused in words, or its
pixels come out right without what it claims.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from limits import limited
from sparkmim.data.clips.reading import ArrayClip
from sparkmim.data.config import FileConfig
from sparkmim.data.decoding.encoded import Box, UnreadableImage
from sparkmim.data.decoding.images import EncodedFile
from sparkmim.data.kinds import kind_of
from sparkmim.data.signals.reading import open_recording
from sparkmim.data.volumes.formats import is_flat, read_files

LONG = 140 * 2**20
"""Bytes that compress to little, and are more than the memory."""

GIBS = 3 * 2**30

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def tiff(path: Path, code: int, kind: int, bytes_each: int, *, big: bool, pages: int = 1, **how: object) -> None:
    """Write a file one of whose tags claims 2 GiB of zeros."""
    stack = np.stack([PIXELS] * pages) if pages > 1 else PIXELS
    tifffile.imwrite(path, stack, metadata=None, bigtiff=big, photometric="minisblack", **how)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[-1]
        tags = page.tags  # type: ignore[union-attr]
        entry = tags[code] if code in tags else tags[305]  # the software, which stands for tags that are not there
        claim = (code, kind, 2**31 // bytes_each, len(content) + 2**20)
        struct.pack_into("<HHQQ" if big else "<HHII", content, entry.offset, *claim)
    path.write_bytes(content)
    with path.open("r+b") as opened:
        opened.truncate(GIBS)


TAGS = {
    "BitsPerSample": 258,
    "ImageDescription": 270,
    "StripOffsets": 273,
    "StripByteCounts": 279,
    "XResolution": 282,
    "Software": 305,
    "ColorMap": 320,
    "SubIFDs": 330,
    "ExtraSamples": 338,
    "JPEGTables": 347,
    "YCbCrSubSampling": 530,
    "XMP": 700,
    "IPTC": 33723,
    "UIC1": 33628,
    "UIC2": 33629,
    "LSM": 34412,
    "EXIF": 34665,
    "ICC": 34675,
    "GDAL metadata": 42112,
    "nodata": 42113,
    "ImageJ counts": 50838,
    "ImageJ": 50839,
    "unknown": 65000,
}


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("kind", [2, 3, 4], ids=["text", "short", "long"])
@pytest.mark.parametrize("name", TAGS)
def test_tags_of_gibibytes(name: str, kind: int, big: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tiff(path, TAGS[name], kind, {2: 1, 3: 2, 4: 4}[kind], big=big, software="x" * 40)
    files = FileConfig(pages="images")

    def look(act: Callable[[EncodedFile], torch.Tensor]) -> torch.Tensor | None:
        try:
            return act(EncodedFile(path))
        except UnreadableImage:
            return None

    for act in (
        lambda image: image.decode(1),
        lambda image: image.decode_part(1, lambda height, width: Box(0, 0, height, width)),
    ):
        seen = limited(lambda: look(act))  # noqa: B023
        assert seen is None or np.array_equal(seen[0], PIXELS)  # type: ignore[index]
    image = EncodedFile(path)
    image.files = files

    def count() -> int:
        try:
            return image.images(1)
        except UnreadableImage:
            return 1

    assert limited(count) == 1
    limited(lambda: is_flat(path))
    limited(lambda: kind_of(tmp_path))


@pytest.mark.parametrize("code", [258, 273, 279])
def test_tags_of_later_pages(code: int, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tiff(path, code, 4, 4, big=False, pages=3, software="x" * 40)
    with pytest.raises(UnreadableImage):
        limited(lambda: EncodedFile(path).decode(3))


def npy_2(claimed: int, tail: bytes = b"") -> bytes:
    return b"\x93NUMPY\x02\0" + struct.pack("<I", claimed) + tail


def long_header(path: Path) -> None:
    path.write_bytes(npy_2(GIBS))
    with path.open("r+b") as file:
        file.truncate(GIBS)


@cache
def archive_of_long_header() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("image.npy", npy_2(LONG, bytes(LONG)))
    return file.getvalue()


def packed_header(path: Path) -> None:
    path.write_bytes(archive_of_long_header())


def packed_numbers(path: Path) -> None:
    """An array that is smaller than an image or a signal may be, and that the file does not hold."""
    file = io.BytesIO()
    np.save(file, np.zeros((4, 8, 8), np.float32))
    content = file.getvalue().replace(b"(4, 8, 8)", b"(4,8,9999)"[:9])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", content)


def long_directory(path: Path) -> None:
    """A list of files of 2 GiB at the end of an archive."""
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(2**31 + 4)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 2**31, 4, 0))


def sparse_texts(path: Path) -> None:
    """Texts of a megabyte each, fewer than an image may have pixels."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|S1000000", "fortran_order": False, "shape": (4, 16, 16)})
    path.write_bytes(header.getvalue())
    with path.open("r+b") as file:
        file.truncate(GIBS)


def packed_claim(path: Path, kind: str = "<f8", how: int = zipfile.ZIP_DEFLATED) -> None:
    """Fewer numbers than an image may have pixels, and an archive that claims to hold them."""
    header = io.BytesIO()
    said = {"descr": kind, "fortran_order": False, "shape": (4, 8000, 8000)}
    np.lib.format.write_array_header_1_0(header, said)
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(100))
        archive.filelist[0].file_size = 2**62


ARRAYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "sparse texts": ("npy", sparse_texts),
    "claim": ("npz", packed_claim),
    "claim of texts": ("npz", lambda path: packed_claim(path, "|S1000000")),
    "claim without compression": ("npz", lambda path: packed_claim(path, how=zipfile.ZIP_STORED)),
    "claim of another compression": ("npz", lambda path: packed_claim(path, how=zipfile.ZIP_BZIP2)),
    "header": ("npy", long_header),
    "packed header": ("npz", packed_header),
    "packed numbers": ("npz", packed_numbers),
    "directory": ("npz", long_directory),
}

READERS: dict[str, Callable[[Path], object]] = {
    "image": lambda path: EncodedFile(path).decode(3),
    "volume": lambda path: read_files([path]),
    "signal": lambda path: open_recording(path, None, "auto", None),
    "clip": lambda path: ArrayClip(path).measure(3),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_claim_gibibytes(name: str, reader: str, tmp_path: Path) -> None:
    extension, make = ARRAYS[name]
    path = tmp_path / f"x.{extension}"
    make(path)
    with pytest.raises(UnreadableImage) as told:
        limited(lambda: READERS[reader](path))
    assert len(str(told.value)) < 300
    limited(lambda: is_flat(path))


@cache
def packed_zeros() -> bytes:
    packer = zlib.compressobj(1)
    return packer.compress(bytes(LONG)) + packer.flush()


def png(path: Path, kind: bytes, start: bytes) -> None:
    """Write a picture with a part that unpacks to more than the memory."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    content, data = file.getvalue(), start + packed_zeros()
    part = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content[:33] + part + content[33:])


PARTS = {"zTXt": b"a\0\0", "iTXt": b"a\0\1\0\0\0", "iCCP": b"a\0\0", "abCd": b""}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_pictures_that_unpack_to_more(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    png(path, kind.encode(), PARTS[kind])
    try:
        seen = limited(lambda: EncodedFile(path).decode(1))
    except UnreadableImage:
        return
    assert np.array_equal(seen[0], PIXELS)  # type: ignore[index]


def nifti(version: int, place: float) -> bytes:
    """Return a header that names the place of the voxels."""
    nib = pytest.importorskip("nibabel")
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    header = kind(np.zeros((4, 4, 4), np.float32), np.eye(4)).header
    content = bytearray(header.binaryblock)
    content += b"\1\0\0\0" + struct.pack("<ii", int(min(place, 2**31 - 16)) // 16 * 16, 6)  # an extension: a comment
    struct.pack_into("<f" if version == 1 else "<q", content, 108 if version == 1 else 168, int(place))
    return bytes(content)


@pytest.mark.parametrize("place", [2**31 - 128, 2**40])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_extensions_of_volumes(packed: bool, version: int, place: int, tmp_path: Path) -> None:
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    if packed:
        path.write_bytes(gzip.compress(nifti(version, place) + bytes(2**20), 1))
    else:
        path.write_bytes(nifti(version, place))
        with path.open("r+b") as file:
            file.truncate(GIBS)
    with pytest.raises(UnreadableImage, match="before the voxels"):
        limited(lambda: read_files([path]))


def test_volumes_that_unpack_to_more(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    path = tmp_path / "x.nii.gz"
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes() + bytes(LONG), 1))
    with pytest.raises(UnreadableImage, match="far more than the 608 bytes"):
        limited(lambda: read_files([path]))
    path.write_bytes(gzip.compress(image.to_bytes() + bytes(1000), 1))
    assert read_files([path]).values.shape == (1, 4, 4, 4), "as some scanners pad their files"


def test_dicom_elements_of_gibibytes(tmp_path: Path) -> None:
    """Of a series, and of a private element, in the encoding that gives lengths in four bytes."""
    pytest.importorskip("pydicom")
    from sparkmim.data.volumes.dicom import find_series

    for tag in ((0x0020, 0x000E), (0x0009, 0x1001), (0x0008, 0x0060)):
        path = tmp_path / "x.dcm"
        meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 18) + b"1.2.840.10008.1.2\0"
        group = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
        path.write_bytes(bytes(128) + b"DICM" + group + meta + struct.pack("<HHI", *tag, 2**31))
        with path.open("r+b") as file:
            file.truncate(GIBS)
        seen: Any = limited(lambda: find_series([path]))  # noqa: B023
        assert not seen[0]
        assert len(seen[1]) == 1
