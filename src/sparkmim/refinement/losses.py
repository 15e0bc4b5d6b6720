"""Contrastive losses: two views of an image are to be more similar than views of different ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def nt_xent(
    own: Float[Tensor, "own channel"],
    everything: Float[Tensor, "all channel"],
    temperature: float,
    *,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Return the normalized temperature-scaled cross entropy of some views among all.

    Views `2 i` and `2 i + 1` are of one image. Each is classified among all others by its cosine similarities, divided
    by the temperature; the other view of its image is the right class.

    Source: SimCLR, arXiv 2002.05709, equation 1.

    Args:
        own: projections of this process's views.
        everything: projections of all processes' views, `own` among them.
        temperature: above 0.
        first: number of the first of `own` in `everything`, even.
    """
    rows = torch.arange(first, first + len(own), device=own.device)
    similarities = _cosines(own, everything) / temperature
    similarities = similarities.scatter(1, rows[:, None], -torch.inf)  # a view is not its own positive
    return F.cross_entropy(similarities, rows ^ 1)


def nearest_positives(
    projections: Float[Tensor, "view channel"], queue: Float[Tensor, "queue channel"], filled: Tensor
) -> Float[Tensor, "view channel"]:
    """Return the most similar vector of a queue for each projection, without gradients; themselves while it is empty.

    Args:
        projections: of views.
        queue: vectors of length 1, the newest last.
        filled: how many of them have been set, a scalar.
    """
    with torch.no_grad():
        known = torch.arange(len(queue), device=queue.device) >= len(queue) - filled
        similarities = (F.normalize(projections.to(queue.dtype), dim=1) @ queue.T).masked_fill(~known, -torch.inf)
        return torch.where(filled > 0, queue[similarities.argmax(1)], F.normalize(projections.to(queue.dtype), dim=1))


def neighbor_contrast(
    positives: Float[Tensor, "own channel"],
    predictions: Float[Tensor, "all channel"],
    temperature: float,
    *,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Return the loss of NNCLR: the neighbor of a view is to be most similar to the prediction of its other view.

    Views `2 i` and `2 i + 1` are of one image. The neighbors of first views are classified among the predictions of all
    second views, and those of second among first ones.

    Source: NNCLR, arXiv 2104.14548, equation 3, made symmetric.

    Args:
        positives: neighbors of this process's views.
        predictions: of all processes' views.
        temperature: above 0.
        first: number of the first of this process's views among all, even.
    """
    right = torch.arange(first // 2, (first + len(positives)) // 2, device=positives.device)
    halves = [
        F.cross_entropy(_cosines(positives[side::2], predictions[1 - side :: 2]) / temperature, right)
        for side in (0, 1)
    ]
    return torch.stack(halves).mean()


def found_positives(
    own: Float[Tensor, "own channel"], everything: Float[Tensor, "all channel"], *, first: int = 0
) -> Float[Tensor, ""]:
    """Return the share of views to which the other view of their image is the most similar of all."""
    with torch.no_grad():
        rows = torch.arange(first, first + len(own), device=own.device)
        similarities = _cosines(own, everything).scatter(1, rows[:, None], -torch.inf)
        return (similarities.argmax(1) == rows ^ 1).float().mean()


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return cosine similarities `(one, other)`, at least float32."""
    if one.dtype.itemsize < torch.float32.itemsize:
        one, other = one.float(), other.float()
    with torch.autocast(one.device.type, enabled=False):
        return F.normalize(one, dim=1) @ F.normalize(other.to(one.dtype), dim=1).T
