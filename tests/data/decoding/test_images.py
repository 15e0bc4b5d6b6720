from __future__ import annotations

import io
import os
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
from sparkmim.data.decoding.images import EncodedFile, image_extensions, read_image

HEIGHT, WIDTH = 5, 7


def colors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def save(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "ppm"])
def test_colors_are_exact(tmp_path: Path, kind: str) -> None:
    settings = {"lossless": True} if kind == "webp" else {}
    path = save(Image.fromarray(colors()), tmp_path / f"x.{kind}", **settings)
    assert torch.equal(read_image(path), planes(colors()))
    opaque = torch.full((1, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    assert torch.equal(read_image(path, 4), torch.cat([planes(colors()), opaque]))
    assert torch.equal(read_image(path, 1)[0], torch.from_numpy(np.array(Image.fromarray(colors()).convert("L"))))


def test_jpegs_are_what_pillow_decodes(tmp_path: Path) -> None:
    for settings in ({}, {"progressive": True}):
        path = save(Image.fromarray(colors()), tmp_path / "x.jpg", **settings)
        assert torch.equal(read_image(path), planes(np.array(Image.open(path))))


def test_gray_is_repeated(tmp_path: Path) -> None:
    gray = colors()[..., 0]
    path = save(Image.fromarray(gray), tmp_path / "x.png")
    assert torch.equal(read_image(path, 1), torch.from_numpy(gray)[None])
    assert torch.equal(read_image(path, 3), torch.from_numpy(gray).expand(3, -1, -1))


def test_one_bit(tmp_path: Path) -> None:
    bits = colors()[..., 0] > 127
    path = save(Image.fromarray(bits), tmp_path / "x.png")
    assert torch.equal(read_image(path, 1)[0], torch.from_numpy(bits * np.uint8(255)))


def test_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(colors()).quantize(4)
    path = save(image, tmp_path / "x.png")
    assert torch.equal(read_image(path), planes(np.array(image.convert("RGB"))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    alpha[:, 3:] = 255
    image = Image.fromarray(np.dstack([colors(), alpha]))
    if mode == "P":
        path = save(Image.fromarray(colors()).quantize(4), tmp_path / "x.png", transparency=0)
        indices = np.array(Image.open(path))
        seen = read_image(path)
        assert (indices == 0).any()
        assert (seen[:, torch.from_numpy(indices == 0)] == 255).all()
        assert not (seen[:, torch.from_numpy(indices != 0)] == 255).all()
        return
    path = save(image.convert(mode), tmp_path / "x.png")
    seen, wanted = read_image(path), planes(np.array(image.convert(mode).convert("RGB")))
    assert (seen[:, :, :3] == 255).all()
    assert torch.equal(seen[:, :, 3:], wanted[:, :, 3:])
    assert torch.equal(read_image(path, 4)[3], torch.from_numpy(alpha))


@pytest.mark.parametrize("kind", ["tiff", "jpg"])
def test_cmyk(tmp_path: Path, kind: str) -> None:
    path = save(Image.fromarray(colors()).convert("CMYK"), tmp_path / f"x.{kind}")
    seen = read_image(path)
    assert torch.equal(seen, planes(np.array(Image.open(path).convert("RGB"))))
    if kind == "tiff":  # lossless, so the colors come back
        assert (seen.int() - planes(colors()).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_kept(tmp_path: Path, kind: str) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    path = save(Image.fromarray(deep), tmp_path / f"x.{kind}")
    wanted = torch.from_numpy(deep.astype(np.float32) / 65535)
    assert torch.equal(read_image(path, 1)[0], wanted)
    assert torch.equal(read_image(path, 3), wanted.expand(3, -1, -1))
    assert torch.equal(read_image(path, 4)[3], torch.ones(HEIGHT, WIDTH))


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def deep_colors(bands: int) -> np.ndarray:
    """Of 16 bits, with nothing, half and all of the last band in its first pixels."""
    deep = np.random.default_rng(4).integers(0, 65536, (HEIGHT, WIDTH, bands), dtype=np.uint16)
    deep[0, :3, -1] = 0, 32768, 65535
    return deep


def deep_png(path: Path, pixels: np.ndarray, *more: bytes) -> Path:
    """A PNG file of 16 bits a number, in chunks of which some are given: Pillow writes none."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def deep_tiff(path: Path, pixels: np.ndarray, **settings: Any) -> Path:
    settings = {"photometric": "rgb" if pixels.shape[2] > 2 else "minisblack"} | settings
    tifffile.imwrite(
        path, pixels.transpose(2, 0, 1) if settings.get("planarconfig") == "separate" else pixels, **settings
    )
    return path


def shares(pixels: np.ndarray) -> torch.Tensor:
    return planes(pixels.astype(np.float32)) / 65535


@pytest.mark.parametrize("kind", ["png", "tiff", "planar tiff"])
def test_sixteen_bits_of_colors_are_kept(tmp_path: Path, kind: str) -> None:
    deep = deep_colors(3)
    if kind == "png":
        path = deep_png(tmp_path / "x.png", deep)
    else:
        path = deep_tiff(tmp_path / "x.tif", deep, planarconfig="separate" if "planar" in kind else "contig")
    wanted = shares(deep)
    assert torch.equal(read_image(path), wanted)
    assert torch.equal(read_image(path, 4), torch.cat([wanted, torch.ones(1, HEIGHT, WIDTH)]))
    gray = 0.299 * wanted[0] + 0.587 * wanted[1] + 0.114 * wanted[2]
    torch.testing.assert_close(read_image(path, 1), gray[None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bands", [2, 4])
@pytest.mark.parametrize("kind", ["png", "tiff", "multiplied tiff"])
def test_sixteen_bits_of_opacity_are_kept(tmp_path: Path, kind: str, bands: int) -> None:
    deep = deep_colors(bands)
    colors, opacity = shares(deep)[:-1].expand(3, -1, -1), shares(deep)[-1:]
    if kind == "png":
        path = deep_png(tmp_path / "x.png", deep)
    elif kind == "tiff":
        path = deep_tiff(tmp_path / "x.tif", deep, extrasamples=["unassalpha"])
    else:
        colors = colors.where(opacity > 0, 0)
        multiplied = torch.cat([(colors * opacity)[: bands - 1], opacity]).permute(1, 2, 0).numpy()
        path = deep_tiff(tmp_path / "x.tif", multiplied, extrasamples=["assocalpha"])  # in floats, so as to be exact
    torch.testing.assert_close(read_image(path, 4), torch.cat([colors, opacity]))
    over_white = colors * opacity + (1 - opacity)
    torch.testing.assert_close(read_image(path), over_white)
    assert (read_image(path)[:, 0, 0] == 1).all(), "nothing lies over white"


def test_the_one_color_that_is_transparent(tmp_path: Path) -> None:
    deep = deep_colors(3)
    deep[1, 1] = deep[0, 0] ^ 1  # Pillow would take it for the same
    path = deep_png(tmp_path / "x.png", deep, chunk(b"tRNS", deep[0, 0].astype(">u2").tobytes()))
    wanted = shares(deep)
    wanted[:, 0, 0] = 1
    assert torch.equal(read_image(path), wanted)
    assert read_image(path, 4)[3].flatten().tolist() == [0.0] + [1.0] * (HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_a_fourth_band_that_is_no_opacity_is_kept(tmp_path: Path, dtype: type, photometric: str) -> None:
    bands: np.ndarray = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 4)).astype(dtype)
    settings = {"planarconfig": "contig", "extrasamples": ["unspecified"] * (1 if photometric == "rgb" else 3)}
    path = deep_tiff(tmp_path / "x.tif", bands, photometric=photometric, **settings)
    wanted = planes(bands) if dtype is np.uint8 else planes(bands.astype(np.float32))
    wanted = wanted / 65535 if dtype is np.uint16 else wanted
    assert torch.equal(read_image(path, 4), wanted)
    if photometric == "rgb":
        assert torch.equal(read_image(path), wanted[:3]), "the first three are colors all the same"
    else:
        with pytest.raises(
            UnreadableImage, match=r"expected 3 channels, got 4 bands of \w+; a network takes the channels"
        ):
            read_image(path)


def test_deep_colors_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = deep_tiff(tmp_path / "x.tif", deep_colors(4), photometric="separated")
    with pytest.raises(UnreadableImage, match="expected RGB or gray, got SEPARATED in uint16; convert the file to RGB"):
        read_image(path)
    path = deep_tiff(tmp_path / "y.tif", deep_colors(4).astype(np.uint32), extrasamples=["unassalpha"])
    with pytest.raises(UnreadableImage, match="expected 3 channels, got 4 bands of uint32"):
        read_image(path)


def test_whole_numbers_of_other_types_are_taken_as_they_are(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[-3, 70000]], dtype=np.int32)), tmp_path / "x.tiff")
    assert read_image(path, 1).tolist() == [[[-3.0, 70000.0]]]


def test_the_one_gray_of_sixteen_bits_that_is_transparent(tmp_path: Path) -> None:
    deep = deep_colors(1)
    deep[1, 1] = deep[0, 0] ^ 1
    path = deep_png(tmp_path / "x.png", deep, chunk(b"tRNS", deep[0, 0].astype(">u2").tobytes()))
    wanted = shares(deep)
    wanted[:, 0, 0] = 1
    assert torch.equal(read_image(path, 1), wanted)
    assert torch.equal(read_image(path), wanted.expand(3, -1, -1))
    assert read_image(path, 4)[3].flatten().tolist() == [0.0] + [1.0] * (HEIGHT * WIDTH - 1)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    floats = np.random.default_rng(2).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    path = save(Image.fromarray(floats), tmp_path / "x.tiff")
    assert torch.equal(read_image(path, 1)[0], torch.from_numpy(floats))


def as_held(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera held that way records the scene."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, deep: bool) -> None:
    upright = np.arange(HEIGHT * WIDTH, dtype=np.uint16 if deep else np.uint8).reshape(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(as_held(upright, orientation)), tmp_path / "x.png", exif=exif)
    wanted = torch.from_numpy(upright.astype(np.float32) / 65535) if deep else torch.from_numpy(upright)
    assert torch.equal(read_image(path, 1)[0], wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_deep_colors_are_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = deep_colors(3)
    stored = np.dstack([as_held(upright[..., band], orientation) for band in range(3)])
    if kind == "png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = deep_png(tmp_path / "x.png", stored, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    else:
        path = deep_tiff(tmp_path / "x.tif", stored, extratags=[(274, 3, 1, orientation, False)])
    assert torch.equal(read_image(path), shares(upright))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    path = save(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert torch.equal(read_image(path)[:, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))


def test_pictures_have_no_thirteen_channels(tmp_path: Path) -> None:
    path = save(Image.fromarray(colors()), tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=r"a \.png file has no 13 channels; \.npy and \.tiff files may"):
        read_image(path, 13)


def claims_to_be_huge() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


def make_broken(folder: Path) -> dict[str, Path]:
    """Ten files that cannot be decoded."""
    large = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg = save(large, folder / "whole.jpg").read_bytes()
    png = save(large, folder / "whole.png").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "whole.png").unlink()
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    not_finite = np.zeros((4, 4), dtype=np.float32)
    not_finite[1, 1] = np.inf
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"this is not an image\n",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "damaged.png": bytes(flipped),
        "header.jpg": jpeg[:30],
        "zeros.png": bytes(1000),
        "huge.png": claims_to_be_huge(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.symlink(folder / "nowhere.jpg", folder / "dangling.jpg")
    save(Image.fromarray(not_finite), folder / "infinite.tiff")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "empty.jpg",
        "text.jpg",
        "cut.jpg",
        "cut.png",
        "damaged.png",
        "header.jpg",
        "zeros.png",
        "huge.png",
        "dangling.jpg",
        "infinite.tiff",
    ],
)
def test_broken_files_say_why(tmp_path: Path, name: str) -> None:
    path = make_broken(tmp_path)[name]
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert len(str(caught.value)) > 10


def test_a_file_that_is_no_image_is_told_without_an_address(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(UnreadableImage, match=r"^UnidentifiedImageError: Pillow recognizes no image in these 5 bytes$"):
        read_image(tmp_path / "x.png")


def look(image: EncodedFile, channels: int) -> torch.Tensor:
    image.size(channels)
    return image.decode(channels)


@pytest.mark.parametrize("kind", ["jpg", "png", "deep.png", "gif", "tif", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_beyond_the_limit_are_refused_by_their_header(tmp_path: Path, kind: str, channels: int) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, np.zeros((channels, HEIGHT, WIDTH)))
    elif kind == "deep.png":
        deep_png(path, deep_colors(3))
    else:
        save(Image.fromarray(colors()), path)
    image = EncodedFile(path)
    image.files = FileConfig(max_pixels=HEIGHT * WIDTH - 1)
    with pytest.raises(UnreadableImage, match=r"pixels are more than the 34 of --max-pixels; cut it"):
        look(image, channels)
    image = EncodedFile(path)
    image.files = FileConfig(max_pixels=HEIGHT * WIDTH)
    assert image.decode(channels).shape == (channels, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["jpg", "png", "deep.png"])
def test_a_value_of_no_data_counts_in_pictures_too(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    deep = np.full((16, 16, 3), 900, np.uint16)
    deep[:8] = 0
    if kind == "deep.png":
        deep_png(path, deep)
    else:
        save(Image.fromarray((deep // 4).astype(np.uint8)), path)
    image = EncodedFile(path)
    image.files = FileConfig(nodata=0)
    seen = image.decode(3)
    assert seen[:, :8].isnan().all()
    assert seen[:, 8:].mean().item() == pytest.approx(900 / 65535 if kind == "deep.png" else 225 / 255, rel=0.01)


def test_pillows_limit_stays_what_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    read_image(save(Image.fromarray(colors()), tmp_path / "x.png"))
    assert before == Image.MAX_IMAGE_PIXELS


def test_large_images_are_no_reason_to_warn(tmp_path: Path) -> None:
    # Pillow warns from 89 million pixels on; a warning is an error in these tests.
    path = save(Image.new("1", (9_500, 9_500)), tmp_path / "x.png")
    assert read_image(path, 1).shape == (1, 9_500, 9_500)


@pytest.mark.parametrize(
    ("name", "channels"), [("x.jpg", 3), ("x.png", 1), ("deep.png", 4), ("x.npy", 13), ("x.tif", 13), ("X.NPY", 3)]
)
def test_bytes_are_decoded_as_files_are(tmp_path: Path, name: str, channels: int) -> None:
    path = tmp_path / name
    bands = np.random.default_rng(6).integers(0, 65536, (channels, HEIGHT, WIDTH)).astype(np.uint16)
    if name == "deep.png":
        deep_png(path, deep_colors(4))
    elif path.suffix.lower() == ".npy":
        path.write_bytes(npy(bands))
    elif name == "x.tif":
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="separate")
    else:
        save(Image.fromarray(colors()), path)
    file, data = EncodedFile(path), EncodedFile(path.read_bytes(), name)
    assert data.size(channels) == file.size(channels) == ((HEIGHT, WIDTH) if name == "x.jpg" else None)
    for _ in range(2):
        decoded = data.decode(channels)
        assert torch.equal(decoded, file.decode(channels))
        assert decoded.shape == (channels, HEIGHT, WIDTH)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_bytes_need_a_name() -> None:
    with pytest.raises(TypeError, match="expected the file's name along with its bytes"):
        EncodedFile(b"")


def test_formats_that_cannot_have_the_channels_fail_before_a_view_is_placed(tmp_path: Path) -> None:
    """Placing draws random numbers, and a broken image must leave as many drawn as in earlier versions."""
    path = save(Image.fromarray(colors()), tmp_path / "x.jpg")
    with pytest.raises(UnreadableImage, match=r"a \.jpg file has no 13 channels"):
        EncodedFile(path).size(13)


def test_extensions_of_images() -> None:
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy", ".webp"} <= image_extensions()
    assert not {".txt", ".pdf", ".zip", ""} & image_extensions()
