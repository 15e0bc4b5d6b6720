"""Pictures of visible patches and reconstructions."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..utils.io import write_atomically
from ..utils.orientation import RAS, axes_of
from .signals import signal_tiles

MOST_IMAGES, MOST_VOLUMES, MOST_SIGNALS, MOST_CLIPS = 8, 3, 3, 2
FRAMES = 4
"""Frames of a clip that are shown, spread over it."""

SMALLEST_TILE, LARGEST_TILE = 128, 256
HIDDEN = 128
"""Gray value of a hidden patch, 0 to 255."""

OVERSHOOT, SLACK = 0.1, 1e-3
"""By how much colors may exceed 0 and 1, and variances what colors can have."""

LABELS = ("image", "visible", "reconstruction")
LABEL_COLOR = (122, 122, 122)
"""Color with the same contrast (4.3 to 1) against white and near-black, since the background is transparent."""


def reconstruction_grid(
    images: Float[Tensor, "batch channel *size"],
    visible: Bool[Tensor, "batch *grid"],
    prediction_composite: Float[Tensor, "batch channel *size"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    clips: bool = False,
    orientation: str = RAS,
) -> Image.Image:
    """Draw up to 8 images side by side; below each, its visible patches and its reconstruction.

    Of volumes up to 3 are drawn, each by its three :func:`central_slices`; of clips up to 2, by four frames; signals as
    lines, see :func:`~sparkmim.reporting.signals.signal_tiles`. Small images are enlarged by an integer
    factor without interpolation; large ones are reduced. Of images with two channels the mean is shown, of images with
    more than three the first three, scaled to the range of each channel in the image. Values of one or three channels
    that are not colors, from 0 to 1, are stretched by :func:`as_colors`. The gaps between tiles are transparent.

    Args:
        images: normalized images, volumes, signals, or clips.
        visible: True = visible.
        prediction_composite: returned by :meth:`sparkmim.SparK.reconstruct`.
        mean: mean of each channel, subtracted by the normalization.
        std: standard deviation of each channel, by which the normalization divides.
        clips: what has three axes are clips: frames, height and width.
        orientation: order of the axes of volumes.

    Raises:
        ValueError: if the shapes do not match.
    """
    dims = images.ndim - 2
    alike = images.shape == prediction_composite.shape and len(visible) == len(images) and visible.ndim == 1 + dims
    if (
        dims not in (1, 2, 3)
        or not alike
        or any(s % g for s, g in zip(images.shape[2:], visible.shape[1:], strict=True))
    ):
        raise ValueError(
            f"expected images, visible and prediction_composite of (B, C, H, W), (B, rows, columns) and (B, C, H, W), "
            f"or those of signals or volumes, got {tuple(images.shape)}, {tuple(visible.shape)} and "
            f"{tuple(prediction_composite.shape)}"
        )
    if dims == 3 and not clips:
        turn = axes_of(RAS, orientation)
        visible = visible.permute(0, *(1 + axis for axis in turn))
        images, prediction_composite = (
            x.permute(0, 1, *(2 + axis for axis in turn)) for x in (images, prediction_composite)
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(
            f"expected a mean and a standard deviation for each of {images.shape[1]} channels, got {len(mean)} and "
            f"{len(std)}"
        )
    count = min(len(images), {1: MOST_SIGNALS, 2: MOST_IMAGES, 3: MOST_CLIPS if clips else MOST_VOLUMES}[dims])
    if count == 0:
        raise ValueError("expected at least one image, got none")
    image, prediction = (
        denormalize(x[:count].detach().float().cpu(), mean, std) for x in (images, prediction_composite)
    )
    if dims == 1:
        parts = zip(image.numpy(), prediction.numpy(), visible[:count].cpu().numpy(), strict=True)
        tiles = [signal_tiles(*part) for part in parts]
        return _lay_out([list(row) for row in zip(*tiles, strict=True)], ("signal", *LABELS[1:]))
    prediction, image = (as_colors(x, image, mean, std) for x in (prediction, image))
    shown = visible[:count].unsqueeze(1).cpu()
    for axis, (extent, patches) in enumerate(zip(image.shape[2:], visible.shape[1:], strict=True), start=2):
        shown = shown.repeat_interleave(extent // patches, dim=axis)
    longest = max(image.shape[3:] if clips else image.shape[2:])
    columns = []
    for number in range(count):
        of_one = [x[number : number + 1] for x in (image, prediction, shown)]
        for plane in zip(*(_planes(x, clips=clips) for x in of_one), strict=True):
            columns.append([tile(pixels, longest) for pixels in _column(*plane)])
    return _lay_out([list(row) for row in zip(*columns, strict=True)])


def _column(
    image: Float[Tensor, "1 channel height width"],
    prediction: Float[Tensor, "1 channel height width"],
    shown: Bool[Tensor, "1 1 height width"],
) -> list[UInt8[Tensor, "height width 3"]]:
    """Return the pixels of an image, of what is visible of it, and of its reconstruction."""
    original, reconstruction = to_rgb(image, image)[0], to_rgb(prediction, image)[0]
    return [original, torch.where(shown[0, 0].unsqueeze(-1), original, HIDDEN), reconstruction]


def _planes(images: Tensor, *, clips: bool) -> list[Tensor]:
    """Return the pictures `(B, C, rows, columns)` that stand for images, volumes or clips."""
    if images.ndim == 4:
        return [images]
    if not clips:
        return central_slices(images)
    count = min(FRAMES, images.shape[2])
    return [images[:, :, round(place * (images.shape[2] - 1) / max(1, count - 1))] for place in range(count)]


def central_slices(
    volumes: Shaped[Tensor, "batch channel x y z"],
) -> list[Shaped[Tensor, "batch channel rows columns"]]:
    """Return the axial, the coronal and the sagittal slice through the middle of volumes whose axes are RAS.

    They are shown as one looks at them on paper: the head and the nose up, the left of the body on the left.
    """
    middle = [extent // 2 for extent in volumes.shape[2:]]
    slices = [volumes.select(axis + 2, middle[axis]) for axis in (2, 1, 0)]
    return [plane.transpose(2, 3).flip(2) for plane in slices]


def as_picture(images: Shaped[Tensor, "batch channel *size"], orientation: str = RAS) -> Tensor:
    """Return images `(B, C, rows, columns)` as they are, and of volumes the three central slices side by side."""
    if images.ndim == 4:
        return images
    slices = central_slices(images.permute(0, 1, *(2 + axis for axis in axes_of(RAS, orientation))))
    rows = max(plane.shape[2] for plane in slices)
    return torch.cat([F.pad(plane, (0, 0, 0, rows - plane.shape[2])) for plane in slices], 3)


def denormalize(
    images: Float[Tensor, "batch channel *size"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch channel *size"]:
    """Undo the normalization: multiply by the standard deviation of each channel and add its mean."""
    return images * _per_channel(std, images) + _per_channel(mean, images)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(values).view(-1, *(1 for _ in images.shape[2:]))


def as_colors(
    images: Float[Tensor, "batch channel *size"],
    reference: Float[Tensor, "batch channel *size"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Tensor, "batch channel *size"]:
    """Return images with values from 0 to 1, or bring others there by the statistics of the set that they are from.

    Values are colors if statistics and `reference` allow it: values from 0 to 1 of mean m have a deviation of at most
    sqrt(m (1 - m)), and resizing exceeds 0 and 1 by little. Others are scaled so that the mean becomes 1/2, and two
    deviations on each side 0 and 1.

    Args:
        images: with their own values; other than 1 or 3 channels are returned as they are.
        reference: images whose range decides.
        mean: mean of each channel.
        std: standard deviation of each channel; that of a constant one is 1.
    """
    if images.shape[1] not in (1, 3):
        return images
    possible = all(0 <= m <= 1 and (s == 1 or s**2 <= m * (1 - m) + SLACK) for m, s in zip(mean, std, strict=True))
    if possible and float(reference.min()) >= -OVERSHOOT and float(reference.max()) <= 1 + OVERSHOOT:
        return images
    middle, deviation = _per_channel(mean, images), _per_channel(std, images)
    return (images - middle) / (4 * deviation) + 0.5


def to_rgb(
    images: Float[Tensor, "batch channel height width"], reference: Float[Tensor, "batch channel height width"]
) -> UInt8[Tensor, "batch height width 3"]:
    """Convert images of any number of channels to pixels; other than 1 or 3 are scaled to the range of `reference`."""
    if images.shape[1] == 2:
        images, reference = images.mean(1, keepdim=True), reference.mean(1, keepdim=True)
        stretch = True
    else:
        stretch = images.shape[1] > 3
        images, reference = images[:, :3], reference[:, :3]
    if stretch:
        low, high = reference.amin((2, 3), keepdim=True), reference.amax((2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-12)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def tile(pixels: UInt8[Tensor, "height width 3"], longest: int | None = None) -> Image.Image:
    """Resize an image for display: its longer side to 128 to 256 pixels, or more if the factor must be an integer.

    Args:
        pixels: of the image.
        longest: side that is brought to that size; the image's own longer one if not given.
    """
    picture = Image.fromarray(pixels.contiguous().numpy())
    longest = longest or max(picture.size)
    if longest > LARGEST_TILE:
        reduced = [max(1, round(side * LARGEST_TILE / longest)) for side in picture.size]
        return picture.resize((reduced[0], reduced[1]), Image.Resampling.LANCZOS)
    factor = math.ceil(SMALLEST_TILE / longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _lay_out(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] = LABELS) -> Image.Image:
    """Arrange tiles in rows, with a label above each row; smaller ones lie in the middle of their place."""
    columns = len(rows[0])
    width, height = (max(picture.size[axis] for row in rows for picture in row) for axis in (0, 1))
    gutter = max(4, width // 32)
    whole = columns * (width + gutter) - gutter
    size = max(16, whole // 64)
    font = ImageFont.load_default(size)
    label = round(1.5 * size)
    whole = max(whole, math.ceil(max(font.getlength(text) for text in labels)))
    canvas = Image.new("RGBA", (whole, len(rows) * (label + height + gutter) - gutter), (*LABEL_COLOR, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (text, tiles) in enumerate(zip(labels, rows, strict=True)):
        top = i * (label + height + gutter)
        draw.text((0, top + label - round(0.45 * size)), text, fill=(*LABEL_COLOR, 255), font=font, anchor="ls")
        for j, picture in enumerate(tiles):
            left, down = (width - picture.width) // 2, (height - picture.height) // 2
            canvas.paste(picture, (j * (width + gutter) + left, top + label + down))
    return canvas


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomically(Path(path), lambda file: file.write(buffer.getvalue()))
