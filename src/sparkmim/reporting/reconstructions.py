"""Pictures of what a model sees and predicts."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..utils.io import write_atomically

MOST_IMAGES = 8
SMALLEST_TILE, LARGEST_TILE = 128, 256
HIDDEN = 128
"""The grey of a hidden patch, 0 to 255."""

LABELS = ("image", "visible", "reconstruction")
LABEL_COLOUR = (122, 122, 122)
"""Equally far from white and from near-black (a contrast of 4.3 to 1), for the background is the page's."""


def reconstruction_grid(
    images: Float[Tensor, "batch channel height width"],
    visible: Bool[Tensor, "batch rows columns"],
    prediction_composite: Float[Tensor, "batch channel height width"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Image.Image:
    """Up to 8 images side by side; below each, its visible patches and its reconstruction.

    Small images are enlarged by a whole factor, their pixels staying squares; large ones are reduced. Of images with
    other than one or three channels, the first three are shown (of two, the mean), each stretched to its range in the
    image. The picture's gutters are transparent.

    Args:
        images: in the network's normalised space.
        visible: True = visible.
        prediction_composite: what :meth:`sparkmim.SparK.reconstruct` returns.
        mean: of each channel, which was subtracted from the images.
        std: of each channel, by which the images were divided.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    divisible = visible.ndim == 3 and not any(s % g for s, g in zip(images.shape[2:], visible.shape[1:], strict=False))
    if images.ndim != 4 or images.shape != prediction_composite.shape or len(visible) != len(images) or not divisible:
        raise ValueError(
            f"images, visible and prediction_composite must be (B, C, H, W), (B, rows, columns) and (B, C, H, W), "
            f"not {tuple(images.shape)}, {tuple(visible.shape)} and {tuple(prediction_composite.shape)}"
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(f"{len(mean)} means and {len(std)} deviations do not fit images of {images.shape[1]} channels")
    count = min(len(images), MOST_IMAGES)
    if count == 0:
        raise ValueError("there are no images to show")
    image, prediction = (
        denormalise(x[:count].detach().float().cpu(), mean, std) for x in (images, prediction_composite)
    )
    original, reconstruction = to_rgb(image, image), to_rgb(prediction, image)
    shown = visible[:count].cpu()
    for axis in (1, 2):
        shown = shown.repeat_interleave(original.shape[axis] // shown.shape[axis], dim=axis)
    seen = torch.where(shown.unsqueeze(-1), original, HIDDEN)
    return _lay_out([[tile(pixels) for pixels in row] for row in (original, seen, reconstruction)])


def denormalise(
    images: Float[Tensor, "batch channel height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch channel height width"]:
    """Times the deviation, plus the mean, of each channel."""
    return images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)


def to_rgb(
    images: Float[Tensor, "batch channel height width"], reference: Float[Tensor, "batch channel height width"]
) -> UInt8[Tensor, "batch height width 3"]:
    """Images of any number of channels as pixels; what has to be stretched is stretched to the range of `reference`."""
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


def tile(pixels: UInt8[Tensor, "height width 3"]) -> Image.Image:
    """An image at the size it is shown: its longer side 128 to 256 pixels, unless a whole factor leads higher."""
    picture = Image.fromarray(pixels.contiguous().numpy())
    longest = max(picture.size)
    if longest > LARGEST_TILE:
        reduced = [max(1, round(side * LARGEST_TILE / longest)) for side in picture.size]
        return picture.resize((reduced[0], reduced[1]), Image.Resampling.LANCZOS)
    factor = math.ceil(SMALLEST_TILE / longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _lay_out(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Tiles of one size in rows, a label above each row."""
    columns, (width, height) = len(rows[0]), rows[0][0].size
    gutter = max(4, width // 32)
    whole = columns * (width + gutter) - gutter
    size = max(16, whole // 64)
    font = ImageFont.load_default(size)
    label = round(1.5 * size)
    whole = max(whole, math.ceil(max(font.getlength(text) for text in LABELS)))
    canvas = Image.new("RGBA", (whole, len(rows) * (label + height + gutter) - gutter), (*LABEL_COLOUR, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (text, tiles) in enumerate(zip(LABELS, rows, strict=True)):
        top = i * (label + height + gutter)
        draw.text((0, top + label - round(0.45 * size)), text, fill=(*LABEL_COLOUR, 255), font=font, anchor="ls")
        for j, picture in enumerate(tiles):
            canvas.paste(picture, (j * (width + gutter), top + label))
    return canvas


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture so that the file is the old or the new one at any moment."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_atomically(Path(path), lambda file: file.write(buffer.getvalue()))
