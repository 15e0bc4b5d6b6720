"""TIFF files against what was written, over types of numbers, layouts, numbers of bands and tags."""

from __future__ import annotations

import io
from collections.abc import Callable
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

HEIGHT, WIDTH = 6, 8
SCALES = {"u1": 255, "u2": 65535}
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")


def numbers(bands: int, kind: str, seed: int = 0) -> np.ndarray:
    """An array `(bands, H, W)` that uses the range of its type, as far as float32 is exact."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return np.random.default_rng(seed).normal(0, 100, (bands, HEIGHT, WIDTH)).astype(dtype)
    low, high = max(-(2**24), np.iinfo(dtype).min), min(2**24, np.iinfo(dtype).max)
    return np.random.default_rng(seed).integers(low, high, (bands, HEIGHT, WIDTH), endpoint=True).astype(dtype)


def wanted(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / SCALES.get(array.dtype.str[1:], 1)).float()


def write(array: np.ndarray, layout: str, **settings: Any) -> bytes:
    """A file of an array `(bands, H, W)`."""
    file = io.BytesIO()
    photometric = settings.pop("photometric", "minisblack")
    if layout == "interleaved":
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
        extra: dict[str, Any] = {"planarconfig": "contig"}
        array = array[..., 0] if array.shape[2] == 1 else array
    else:
        layouts: dict[str, dict[str, Any]] = {
            "planar": {"planarconfig": "separate"},
            "pages": {"metadata": None},
            "shaped pages": {},
            "imagej": {"imagej": True, "metadata": {"axes": "CYX"}},
            "ome": {"ome": True, "metadata": {"axes": "CYX"}},
            "tiled": {"tile": (16, 16), "planarconfig": "separate"},
            "deflate": {"compression": "zlib", "planarconfig": "separate"},
            "big": {"bigtiff": True, "planarconfig": "separate"},
            "motorola": {"byteorder": ">", "planarconfig": "separate"},
        }
        extra = layouts[layout]
        if len(array) == 1 and layout not in ("imagej", "ome", "pages", "shaped pages"):
            array, extra = array[0], {k: v for k, v in extra.items() if k != "planarconfig"}
    if extra.get("planarconfig") == "separate" and layout == "tiled" and len(array) == 1:
        array = array[0]
    tifffile.imwrite(file, array, photometric=photometric, **extra, **settings)
    return file.getvalue()


def decode(data: bytes, channels: int, **settings: Any) -> torch.Tensor:
    image = EncodedFile(data, "x.tif")
    image.files = FileConfig(**settings)
    pixels = image.decode(channels)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


LAYOUTS = ("interleaved", "planar", "pages", "shaped pages", "imagej", "ome", "tiled", "deflate", "big", "motorola")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
def test_files_hold_what_was_written(layout: str, bands: int) -> None:
    for kind in TYPES:
        if (layout == "imagej" and kind not in ("u1", "u2", "f4")) or (layout, kind) == ("ome", "f2"):
            continue  # it has no such type
        array = numbers(bands, kind)
        data = write(array, layout)
        assert torch.equal(decode(data, bands), wanted(array)), kind
        if bands == 1:
            assert torch.equal(decode(data, 3), wanted(array).expand(3, -1, -1)), kind
            assert torch.equal(decode(data, 5), wanted(array).expand(5, -1, -1)), kind
        else:
            for channels in {1, 3, 7} - {bands}:
                with pytest.raises(UnreadableImage, match=r"--in-chans|--pages"):
                    decode(data, channels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("layout", "bands"), [("interleaved", 1), ("interleaved", 3), ("planar", 5), ("pages", 2)])
def test_all_are_turned_upright(orientation: int, layout: str, bands: int) -> None:
    for kind in ("u1", "i1", "u2", "f4"):
        upright = numbers(bands, kind)
        turns = {
            1: upright,
            2: upright[:, :, ::-1],
            3: upright[:, ::-1, ::-1],
            4: upright[:, ::-1],
            5: upright.transpose(0, 2, 1),
            6: np.rot90(upright, axes=(1, 2)),
            7: upright[:, ::-1, ::-1].transpose(0, 2, 1),
            8: np.rot90(upright, -1, axes=(1, 2)),
        }
        stored = np.ascontiguousarray(turns[orientation])
        data = write(stored, layout, extratags=[(274, 3, 1, orientation, False)])
        assert torch.equal(decode(data, bands), wanted(upright)), kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_compressions_do_not_change_what_is_upright(orientation: int, mode: str) -> None:
    array = numbers(3 if mode == "RGB" else 1, "u2" if mode == "I;16" else "u1")
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)) if mode == "RGB" else array[0])
    seen = []
    for compression in (None, "tiff_adobe_deflate", "tiff_lzw", "packbits"):
        file = io.BytesIO()
        image.save(file, "TIFF", compression=compression, tiffinfo={274: orientation})
        seen.append(decode(file.getvalue(), len(array)))
    assert all(torch.equal(seen[0], other) for other in seen)


@pytest.mark.parametrize("layout", ["interleaved", "planar", "pages", "tiled", "motorola"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_pixels_without_data_are_known(layout: str, bands: int) -> None:
    for kind in TYPES:
        array = numbers(bands, kind)
        array[:, 1:3, 2:5] = array[0, 0, 0] = 7
        empty = torch.from_numpy(array == 7)
        for tags, flag in ((True, None), (False, 7.0), (True, 7.0)):
            data = write(array, layout, extratags=[(42113, "s", 0, "7", True)] * tags)
            seen = decode(data, bands, nodata=flag)
            assert torch.equal(seen.isnan(), empty), kind
            assert torch.equal(seen.nan_to_num(0), wanted(array).masked_fill(empty, 0)), kind


@pytest.mark.parametrize("value", ["-9999", "nan", "1e400", "nothing"])
def test_values_that_a_type_cannot_hold_mark_nothing(value: str) -> None:
    array = numbers(2, "u1")
    data = write(array, "planar", extratags=[(42113, "s", 0, value, True)])
    assert torch.equal(decode(data, 2), wanted(array))


def test_nan_is_no_data_and_infinity_is_refused() -> None:
    array = numbers(2, "f4")
    array[1, 2] = np.nan
    assert torch.equal(decode(write(array, "planar"), 2).isnan(), torch.from_numpy(np.isnan(array)))
    with pytest.raises(UnreadableImage, match="no pixel has data"):
        decode(write(np.full_like(array, np.nan), "planar"), 2)
    array[0, 0] = np.inf
    with pytest.raises(UnreadableImage, match="expected finite values or NaN, got infinity"):
        decode(write(array, "planar"), 2)


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_white_is_zero(kind: str, channels: int) -> None:
    array = numbers(1, kind)
    array[0, 0, 0] = 7
    data = write(array, "interleaved", photometric="miniswhite", extratags=[(42113, "s", 0, "7", True)])
    seen = decode(data, channels)
    turned = wanted(np.iinfo(array.dtype).max - array).masked_fill(torch.from_numpy(array == 7), torch.nan)
    torch.testing.assert_close(seen, turned.expand(channels, -1, -1), equal_nan=True)


# --- stacks ---------------------------------------------------------------------------------------------------------


def stack(axes: str, sizes: dict[str, int], kind: str = "u2") -> tuple[np.ndarray, bytes]:
    shape = [sizes.get(axis, {"Y": HEIGHT, "X": WIDTH}.get(axis, 0)) for axis in axes]
    array = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    file = io.BytesIO()
    settings: dict[str, Any] = {"ome": True, "metadata": {"axes": axes}}
    tifffile.imwrite(file, array, photometric="rgb" if axes.endswith("S") else "minisblack", **settings)
    return array, file.getvalue()


@pytest.mark.parametrize(
    ("axes", "first"),
    [
        ("ZYX", lambda a: a[:1]),
        ("TYX", lambda a: a[:1]),
        ("ZCYX", lambda a: a[0]),
        ("TCYX", lambda a: a[0]),
        ("TZCYX", lambda a: a[0, 0]),
        ("ZYXS", lambda a: a[0].transpose(2, 0, 1)),
    ],
)
def test_stacks_are_refused_with_the_choice_or_give_their_first(
    axes: str, first: Callable[[np.ndarray], np.ndarray]
) -> None:
    array, data = stack(axes, {"Z": 5, "T": 4, "C": 3, "S": 3})
    for channels in (1, 3):
        with pytest.raises(UnreadableImage, match="--pages first for the first page alone"):
            decode(data, channels)
    slice_ = first(array)
    assert torch.equal(decode(data, len(slice_), pages="first"), wanted(slice_))
    planes = array.size // (HEIGHT * WIDTH)
    assert decode(data, planes).shape == (planes, HEIGHT, WIDTH)


def test_the_first_page_of_some_is_repeated_like_any_gray_image() -> None:
    array = numbers(4, "u2")
    for layout in ("pages", "shaped pages", "imagej", "ome"):
        seen = decode(write(array, layout), 3, pages="first")
        assert torch.equal(seen, wanted(array[:1]).expand(3, -1, -1)), layout
    assert torch.equal(decode(write(array[:3], "pages"), 3, pages="first"), wanted(array[:1]).expand(3, -1, -1))


def several(*arrays: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, array in enumerate(arrays):
            more = settings if number else {"metadata": settings.get("metadata", {})}
            writer.write(array, photometric="minisblack", **more)
    return file.getvalue()


def test_images_written_one_by_one_are_pages() -> None:
    array = numbers(3, "u2")
    assert torch.equal(decode(several(*array), 3), wanted(array))
    data = several(array[0], array[1, :4])
    with pytest.raises(UnreadableImage, match=r"got 2 images of different shapes.*--pages first"):
        decode(data, 1)
    assert torch.equal(decode(data, 1, pages="first"), wanted(array[:1]))


def test_reduced_copies_and_masks_are_passed_over() -> None:
    array = numbers(1, "u2")
    data = several(array[0], array[0, ::2, ::2], subfiletype=1, metadata=None)
    assert torch.equal(decode(data, 1), wanted(array))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array[0], photometric="minisblack", subifds=1)
        writer.write(array[0, ::2, ::2], photometric="minisblack", subfiletype=1)
    assert torch.equal(decode(file.getvalue(), 1), wanted(array))


# --- against Pillow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16", "I", "F"])
def test_what_pillow_writes_is_read(compression: str, mode: str) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(numbers(1, "u2")[0])
    elif mode in ("I", "F"):
        image = Image.fromarray(numbers(1, "i4" if mode == "I" else "f4")[0])
    else:
        image = Image.fromarray(colors).convert("RGB" if mode == "P" else mode)
        image = image.quantize(8) if mode == "P" else image
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    if mode in ("I;16", "I", "F"):
        array = np.array(image)[None]
        assert torch.equal(decode(file.getvalue(), 1), wanted(array))
        return
    seen = decode(file.getvalue(), 3) * 255
    assert torch.equal(seen.round().byte(), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def test_compressions_that_need_another_library_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(numbers(3, "u2"), "interleaved", photometric="rgb")

    def without(*_: object, **__: object) -> np.ndarray:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", without)
    with pytest.raises(UnreadableImage, match="in uint16 needs `pip install imagecodecs`"):
        decode(data, 3)
    stacked = write(numbers(3, "u2"), "pages")
    assert torch.equal(decode(stacked, 3), wanted(numbers(3, "u2"))), "Pillow reads the pages one by one"


# --- broken and huge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_files_are_unreadable(layout: str, tmp_path: Path) -> None:
    data = write(numbers(3, "u2"), layout)
    for kept in (9, len(data) // 3, len(data) // 2):
        (tmp_path / "x.tif").write_bytes(data[:kept])
        with pytest.raises(UnreadableImage):
            EncodedFile(tmp_path / "x.tif").decode(3)


def test_the_limit_of_pixels_is_that_of_the_header() -> None:
    data = write(numbers(1, "u2"), "interleaved")
    with pytest.raises(UnreadableImage, match=r"6 x 8 pixels are more than the 47 of --max-pixels"):
        decode(data, 1, max_pixels=47)
    assert decode(data, 1, max_pixels=48).shape == (1, 6, 8)


def test_other_files_that_a_file_names_are_not_read(tmp_path: Path) -> None:
    array = numbers(2, "u2")
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="6" SizeC="2" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstC="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData IFD="0" FirstC="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    for name, plane in zip(("a", "b"), array, strict=True):
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(path, plane, photometric="minisblack", description=xml, metadata=None)
        assert torch.equal(EncodedFile(path).decode(1), wanted(plane[None])), "each file is what it holds"
