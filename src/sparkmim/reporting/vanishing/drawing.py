"""The figure of a vanishing mask: feature maps above, shares of reached positions and input histogram below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..reconstructions import as_colors, denormalize, to_rgb
from .canvas import INK, LINE, MUTED, Canvas, Color, Point
from .measure import InputValues, Layer, Vanishing

WIDTH, MARGIN, GUTTER = 1240, 40, 12
TILES = 6
"""Pictures in a row: the input and some layers."""

DENSE: Color = (214, 92, 20)
SPARSE: Color = (31, 95, 191)
WHOLE: Color = (203, 205, 209)
EMPTY: Color = (240, 240, 237)
"""Color of empty positions."""

TITLE, LABEL, SMALL = 25, 18, 16
BINS = 60


def draw_vanishing(found: Vanishing, network: str, *, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Draw the figure, 1240 pixels wide; of a volume its axial slice through the middle of a patch.

    Args:
        found: the numbers.
        network: name of the network.
        mean: mean of each channel, subtracted by the normalization.
        std: standard deviation of each channel, by which the normalization divides.
    """
    tile = (WIDTH - 2 * MARGIN - (TILES - 1) * GUTTER) // TILES
    height, width = _plane(found.visible, found.image[0]).shape
    tall = round(tile * height / width)
    canvas = Canvas(WIDTH, 2 * tall + 648)
    top = MARGIN + 18
    canvas.text((MARGIN, top), f"A mask in {network}", TITLE)
    hidden = 1 - float(found.visible.float().mean())
    slices = "" if found.visible.ndim == 2 else "; an axial slice"
    canvas.text((WIDTH - MARGIN, top), f"{hidden:.0%} of the patches are hidden{slices}", LABEL, MUTED, "rs")
    pictures = _pictures(found, mean, std)
    chosen = chosen_layers(found.layers, TILES - 1)
    rows = (
        ("Zeros in hidden patches, ordinary convolution", DENSE, [layer.dense for layer in chosen]),
        ("Visible patches only, sparse convolution", SPARSE, [layer.sparse for layer in chosen]),
    )
    for row, (title, color, maps) in enumerate(rows):
        y = top + 40 + row * (tall + 84)
        canvas.dot((MARGIN + 7, y - 6), 7, color)
        canvas.text((MARGIN + 22, y), title, LABEL)
        canvas.text((WIDTH - MARGIN, y), "share of hidden positions that are not zero", SMALL, MUTED, "rs")
        y += 14
        canvas.pixels((MARGIN, y), (tile, tall), pictures[row], smooth=True)
        canvas.text((MARGIN, y + tall + 24), "input", SMALL, MUTED)
        for column, (layer, values) in enumerate(zip(chosen, maps, strict=True), start=1):
            x = MARGIN + column * (tile + GUTTER)
            canvas.pixels((x, y), (tile, tall), heat(*(_plane(found.visible, x) for x in (values, layer.visible))))
            share = layer.dense_share if row == 0 else layer.sparse_share
            number = f"convolution {1 + found.layers.index(layer)}"
            canvas.text((x, y + tall + 24), number, SMALL, MUTED)
            canvas.text((x + tile, y + tall + 24), percent(share), SMALL, color if share else MUTED, "rs")
    below = top + 40 + 2 * (tall + 84) + 14
    half = (WIDTH - 2 * MARGIN - 60) // 2
    _shares(canvas, (MARGIN, below), (half, 320), found.layers)
    _histogram(canvas, (MARGIN + half + 60, below), (half, 320), found)
    return canvas.finish()


def chosen_layers(layers: Sequence[Layer], count: int) -> list[Layer]:
    """Choose layers: the first, the last, and others spread evenly over depth and the mask's decay."""
    if len(layers) <= count:
        return list(layers)
    # Distance is half the depth, half the change of the mask, so that the choice covers both.
    order = np.linspace(0, 1, len(layers))
    shares = np.maximum.accumulate([layer.dense_share for layer in layers])
    span = shares[-1] - shares[0]
    way = (order + (shares - shares[0]) / span) / 2 if span > 0 else order
    indices = [0]
    for step in range(1, count):
        nearest = int(np.abs(way - step / (count - 1)).argmin())
        last = len(layers) - (count - step)
        indices.append(min(max(nearest, indices[-1] + 1), last))
    return [layers[index] for index in indices]


def heat(values: Tensor, visible: Tensor) -> np.ndarray:
    """Color a map, `(rows, columns, 3)`: blue where visible, orange where hidden, pale where empty.

    Intensity is the square root of the value relative to the 98th percentile.
    """
    strength = (values / values[values > 0].quantile(0.98).clamp_min(1e-30)).clamp(0, 1) if values.any() else values
    strength = torch.where(values > 1e-6 * values.max(), 0.25 + 0.75 * strength.sqrt(), 0.0)
    empty = torch.tensor(EMPTY, dtype=torch.float32)
    full = torch.where(visible.unsqueeze(-1), torch.tensor(SPARSE).float(), torch.tensor(DENSE).float())
    mixed = empty + strength.unsqueeze(-1).float() * (full - empty)
    return mixed.round().to(torch.uint8).numpy()


def percent(share: float) -> str:
    """Format a share in whole percents, as 0% or 100% only if exact."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _pictures(found: Vanishing, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """Return the image with zeros in hidden patches, and with hidden patches empty."""
    shown = found.visible
    for axis, (extent, patches) in enumerate(zip(found.image.shape[1:], shown.shape, strict=True)):
        shown = shown.repeat_interleave(extent // patches, dim=axis)
    shown, image = _plane(found.visible, shown), _plane(found.visible, found.image).unsqueeze(0)
    own = denormalize(image, mean, std)
    zeros = as_colors(denormalize(torch.zeros_like(image), mean, std), own, mean, std)
    original = as_colors(own, own, mean, std)
    with_zeros = to_rgb(torch.where(shown, original, zeros), original)[0]
    seen = torch.where(shown.unsqueeze(-1), to_rgb(original, original)[0], torch.tensor(EMPTY, dtype=torch.uint8))
    return [with_zeros.numpy(), seen.numpy()]


def _plane(visible: Tensor, values: Tensor) -> Tensor:
    """Return a map `(..., *size)`, or the axial slice through the middle of a volume's central patches.

    The slice is shown as one looks at it on paper: the nose up, the left of the body on the left.

    Args:
        visible: the mask, whose number of axes is that of the image.
        values: of any resolution.
    """
    if visible.ndim == 2:
        return values
    patches = visible.shape[2]
    middle = (2 * (patches // 2) + 1) * values.shape[-1] // (2 * patches)
    return values[..., middle].transpose(-1, -2).flip(-2)


def _shares(canvas: Canvas, corner: Point, size: tuple[int, int], layers: Sequence[Layer]) -> None:
    """Draw the share of hidden positions reached, over the layers."""
    canvas.text((corner[0], corner[1] + 16), "Hidden positions that visible ones have reached", LABEL)
    left, top, right, bottom = corner[0] + 52, corner[1] + 40, corner[0] + size[0], corner[1] + size[1] - 26
    for tick in (0.0, 0.5, 1.0):
        y = bottom - tick * (bottom - top)
        canvas.line([(left, y), (right, y)], LINE, 1)
        canvas.text((left - 8, y), f"{tick:.0%}", SMALL, MUTED, "rm")
    count = len(layers)
    at = [left + (right - left) * (i / max(1, count)) for i in range(count + 1)]
    for values, color in (
        ([0.0, *[layer.sparse_share for layer in layers]], SPARSE),
        ([0.0, *[layer.dense_share for layer in layers]], DENSE),
    ):
        points = [(x, bottom - value * (bottom - top)) for x, value in zip(at, values, strict=True)]
        canvas.line(points, color, 3)
        if count <= 30:
            for point in points[1:]:
                canvas.dot(point, 4, color)
    canvas.text((right, bottom - layers[-1].dense_share * (bottom - top) - 12), "ordinary", SMALL, DENSE, "rs")
    canvas.text((right, bottom - 12), "sparse", SMALL, SPARSE, "rs")
    canvas.text((left, bottom + 26), "input", SMALL, MUTED)
    canvas.text((right, bottom + 26), f"convolution {count}", SMALL, MUTED, "rs")


def _histogram(canvas: Canvas, corner: Point, size: tuple[int, int], found: Vanishing) -> None:
    """Draw histograms of the input: the whole image, visible patches, and the image with zeros."""
    canvas.text((corner[0], corner[1] + 16), "Values of the network's input", LABEL)
    left, top, right, bottom = corner[0], corner[1] + 40, corner[0] + size[0], corner[1] + size[1] - 108
    low, high = (float(v) for v in found.full.values.aminmax())
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.02 * (high - low) or 1.0
    low, high = low - room, high + room
    heights = [density(values, low, high) for values in (found.full, found.shown, found.zeroed)]
    most = 1.35 * float(max(heights[0].max(), heights[1].max()))
    bar = (right - left) / BINS

    def outline(values: np.ndarray) -> list[Point]:
        points = []
        for i, value in enumerate(np.minimum(values / most, 1.0)):
            y = bottom - value * (bottom - top)
            points += [(left + i * bar, y), (left + (i + 1) * bar, y)]
        return points

    canvas.area([(left, bottom), *outline(heights[0]), (right, bottom)], WHOLE)
    canvas.line(outline(heights[1]), SPARSE, 2.5)
    canvas.line(outline(heights[2]), DENSE, 2.5)
    canvas.line([(left, bottom), (right, bottom)], LINE, 1)
    zero = left + (right - left) * (0 - low) / (high - low)
    canvas.text((zero, bottom + 26), "0", SMALL, MUTED, "ms")
    spike = int(heights[2].argmax())
    if heights[2][spike] > most:  # the zeros, far more frequent than other values
        hidden = 1 - float(found.visible.float().mean())
        x = left + (spike + 0.5) * bar
        side, anchor = (14, "lm") if x < (left + right) / 2 else (-14, "rm")
        canvas.text((x + side, top + 4), f"{hidden:.0%} are exactly 0", SMALL, DENSE, anchor)
    _legend(canvas, (left, bottom + 56), found)


def _legend(canvas: Canvas, corner: Point, found: Vanishing) -> None:
    """Draw names, means and standard deviations below the histogram."""
    entries = (
        ("whole image" if found.visible.ndim == 2 else "whole volume", found.full, WHOLE, INK),
        ("visible patches", found.shown, SPARSE, INK),
        ("with zeros", found.zeroed, DENSE, INK),
    )
    for row, (name, values, color, ink) in enumerate(entries):
        x, y = corner[0], corner[1] + 26 * row
        canvas.line([(x, y - 6), (x + 22, y - 6)], color, 5)
        canvas.text((x + 32, y), name, SMALL, ink)
        canvas.text((x + 190, y), f"mean {values.mean:z.2f}", SMALL, MUTED)
        canvas.text((x + 320, y), f"std {values.std:.2f}", SMALL, MUTED)


def density(values: InputValues, low: float, high: float) -> np.ndarray:
    """Return the share of values in each of 60 equal bins between two ends."""
    counts, _ = np.histogram(values.values.numpy(), bins=BINS, range=(low, high))
    return counts / len(values.values)
