"""`sparkmim reconstruct`: a picture of what a run has learned to predict."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data.loader import MaskedViews
from ..data.normalize import Normalise, join
from ..data.sources.builtin import builtin_photographs
from ..data.sources.folder import find_images
from ..data.statistics import first_readable
from ..data.views import evaluation_view
from ..models.config import ModelConfig
from ..pretraining.model import load_run
from ..reporting.reconstructions import MOST_IMAGES, reconstruction_grid, save_png
from ..training.config import LoopConfig
from ..utils.fields import validate_as
from ..utils.io import require_writable


def reconstruct(
    run: Path, output: Path, data: Path | None = None, count: int = 8, seed: int = 0, mask_ratio: float | None = None
) -> int:
    """Draw images, what the network sees of them, and its reconstructions.

    Args:
        run: folder of a run.
        output: the PNG file to write.
        data: folder of images; the built-in photographs if not given.
        count: how many images, spread over the folder, at most 8.
        seed: of the masks.
        mask_ratio: share of patches to hide; that of the run if not given.
    """
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output} is not a .png file")
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"--count {count} is not a number of images from 1 to {MOST_IMAGES}")
    validate_as(LoopConfig, seed=seed)
    if mask_ratio is not None:
        validate_as(ModelConfig, mask_ratio=mask_ratio)
    require_writable(output)
    trained = load_run(run)
    config = trained.config
    source = find_images(data) if data is not None else builtin_photographs()
    first_readable(source, config.model.in_chans)
    grid = trained.model.grid_shape(config.data.image_size)
    ratio = config.model.mask_ratio if mask_ratio is None else mask_ratio
    views = MaskedViews(source, evaluation_view(config.data), config.model.in_chans, grid, ratio, seed)
    count = min(count, len(source))
    batch = [views[0, index * len(source) // count] for index in range(count)]
    images = Normalise(config.data)(join([view.images for view in batch]))
    visible = torch.cat([view.visible for view in batch])
    with torch.no_grad():
        pictures = trained.model.reconstruct(images, visible)
    save_png(reconstruction_grid(images, visible, pictures, mean=config.data.mean, std=config.data.std), output)
    print(f"{count} reconstructions after step {trained.step}: {output}")
    return 0
