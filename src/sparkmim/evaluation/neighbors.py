"""Nearest neighbors among features, and a page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.config import ViewConfig
from ..data.normalize import unit_scale
from ..data.sources.base import ImageSource
from ..data.views import evaluation_view
from ..reporting.neighbors import Pictured, neighbors_page
from ..reporting.reconstructions import as_colors, to_rgb
from ..utils.io import write_text

QUERIES, NEIGHBORS = 16, 8
"""Rows of a page, and neighbors in each."""

SIDE = 128
"""Pixels of the longer side of a picture."""


def nearest_images(features: Tensor, rows: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest others of some rows by cosine similarity, the nearest first.

    Args:
        features: `(images, features)`.
        rows: that are looked up.
        count: neighbors of each, or as many as there are.

    Returns:
        Similarities and rows, `(queries, count)`.
    """
    units = F.normalize(features.double(), dim=1)
    similarity = units[list(rows)] @ units.T
    similarity[torch.arange(len(rows)), torch.tensor(rows)] = -torch.inf
    found = similarity.topk(min(count, len(units) - 1), dim=1)
    return found.values, found.indices


def write_neighbors(
    path: Path,
    title: str,
    source: ImageSource,
    data: ViewConfig,
    channels: int,
    features: Tensor,
    indices: Sequence[int],
) -> None:
    """Write a page of images spread over a source and their nearest neighbors.

    Args:
        path: of the page.
        title: of it.
        source: the images.
        data: how they are seen.
        channels: of them.
        features: of the images that could be read.
        indices: of these images in the source.

    Raises:
        ValueError: if there are fewer than two images.
    """
    if len(indices) < 2:
        raise ValueError(f"--index shows neighbors among at least 2 images, and {len(indices)} could be read")
    queries = sorted({round(place) for place in np.linspace(0, len(indices) - 1, QUERIES)})
    similarities, nearest = nearest_images(features, queries, NEIGHBORS)
    view = evaluation_view(data, source)

    def picture(row: int) -> Image.Image:
        seen = unit_scale(view.look(source, indices[row], channels)).nan_to_num(0.0)[None]
        shown = to_rgb(as_colors(seen, seen, data.mean, data.std), seen)[0]
        made = Image.fromarray(shown.contiguous().numpy())
        made.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return made

    rows = []
    for query, values, found in zip(queries, similarities.tolist(), nearest.tolist(), strict=True):
        own = Pictured(picture(query), source.name(indices[query]), "query")
        others = [
            Pictured(picture(row), source.name(indices[row]), f"similarity {value:.3f}")
            for value, row in zip(values, found, strict=True)
        ]
        rows.append([own, *others])
    about = (
        f"{len(rows)} of {len(indices):,} images, left, and their nearest neighbors among the others by cosine "
        "similarity of features, the nearest first."
    )
    write_text(path, neighbors_page(title, about, rows))
