"""Predict whole images and volumes window by window, as nnU-Net does.

Source: nnU-Net's `inference/sliding_window_prediction.py` (steps of half a window, Gaussian weights of an eighth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...utils.axes import starts

SIGMA = 1 / 8
"""Deviation of the weights of a window's places from its middle, as a share of its side."""


def window_weights(size: Sequence[int]) -> Float[Tensor, "*size"]:
    """Return the weights of a window's places: a Gaussian about its middle, 1 at most and above 0 everywhere."""
    weights = torch.ones(())
    for extent in size:
        places = torch.arange(extent, dtype=torch.float64) - (extent - 1) / 2
        along = torch.exp(-0.5 * (places / (extent * SIGMA)) ** 2)
        weights = weights.unsqueeze(-1) * along
    weights = weights / weights.max()
    return weights.clamp_min(float(weights[weights > 0].min())).float()


@torch.no_grad()
def slide(
    model: Callable[[Tensor], Tensor],
    image: Float[Tensor, "channel *size"],
    window: Sequence[int],
    *,
    overlap: float,
    batch_size: int,
) -> Float[Tensor, "class *size"]:
    """Return the logits of a whole image: the mean over the windows that show a place, weighted by their Gaussians.

    An image that is smaller than the window along an axis is padded with its edges on both sides.

    Args:
        model: from images `(B, C, *window)` to logits `(B, classes, *window)`.
        image: normalized, on the device.
        window: its size.
        overlap: share of a window that the next one covers too, at least.
        batch_size: windows at a time.
    """
    size = image.shape[1:]
    before = [max(0, w - s) // 2 for w, s in zip(window, size, strict=True)]
    after = [max(0, w - s) - b for w, s, b in zip(window, size, before, strict=True)]
    if any(after):
        pads = [number for pair in zip(reversed(before), reversed(after), strict=True) for number in pair]
        image = F.pad(image.unsqueeze(0), pads, mode="replicate").squeeze(0)
    weights = window_weights(window).to(image.device)
    total: Tensor | None = None
    covered = torch.zeros(image.shape[1:], device=image.device)
    corners = product(*(starts(extent, side, overlap) for extent, side in zip(image.shape[1:], window, strict=True)))
    for some in _batches(corners, batch_size):
        places = [tuple(slice(a, a + w) for a, w in zip(corner, window, strict=True)) for corner in some]
        logits = model(torch.stack([image[(slice(None), *place)] for place in places])).float()
        if total is None:
            total = torch.zeros(logits.shape[1], *image.shape[1:], device=image.device)
        for place, found in zip(places, logits, strict=True):
            total[(slice(None), *place)] += found * weights
            covered[place] += weights
    assert total is not None
    inside = tuple(slice(b, b + s) for b, s in zip(before, size, strict=True))
    return (total / covered)[(slice(None), *inside)]


def _batches(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while some := list(islice(items, size)):
        yield some
