"""Look at a model during pretraining: the held-out loss, pictures of reconstructions, and the monitor's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..data.labels import read_splits
from ..data.loader import MaskedViews, evaluation_batches, read
from ..data.normalize import join
from ..data.statistics import first_readable
from ..evaluation.evaluators import KnnMonitor
from ..models.spark import SparK
from ..reporting.reconstructions import reconstruction_grid, save_png
from ..utils.distributed import gather_results
from ..utils.modules import eval_mode
from .config import PretrainConfig

PICTURED = 8
"""Images whose reconstructions are drawn."""

ToInput = Callable[[Tensor], Tensor]
"""Makes a network's input of pixels, on its device."""


@torch.no_grad()
def held_out_loss(
    model: SparK, views: MaskedViews, to_input: ToInput, fabric: Fabric, *, batch_size: int, workers: int
) -> float:
    """Return the mean loss in evaluation mode. All processes share the work and get the same number."""
    batches = evaluation_batches(views, batch_size, workers, process=fabric.global_rank, processes=fabric.world_size)

    def sum_of_losses() -> tuple[Tensor, int]:
        total, images = torch.zeros((), device=fabric.device), 0
        with eval_mode(model), read(batches) as each:
            for batch in each:
                with fabric.autocast():
                    out = model.forward(to_input(batch.images), batch.visible)
                total += out.loss.float() * len(batch.images)
                images += len(batch.images)
        return total.cpu(), images

    parts = gather_results(fabric, sum_of_losses)
    return float(sum(total for total, _ in parts) / sum(images for _, images in parts))


@torch.no_grad()
def draw_reconstructions(
    model: SparK, views: MaskedViews, to_input: ToInput, fabric: Fabric, config: PretrainConfig, path: Path
) -> None:
    """Save a picture of reconstructions, of the same images under the same masks each time."""
    count = min(PICTURED, len(views))
    shown = [views[0, index * len(views) // count] for index in range(count)]
    images = to_input(join([view.images for view in shown]))
    visible = torch.cat([view.visible for view in shown])
    model.eval()
    with fabric.autocast():
        pictures = model.reconstruct(images, visible)
    model.train()
    data = config.data
    grid = reconstruction_grid(images.cpu(), visible, pictures.float().cpu(), mean=data.mean, std=data.std)
    save_png(grid, path)


def find_monitor(config: PretrainConfig) -> KnnMonitor | None:
    """Return the monitor of a configuration, its images found.

    Raises:
        ValueError: if there are none, or their labels make no sense.
    """
    where = config.data.monitor_data
    if config.run.monitor == "none":
        if where is not None:
            raise ValueError("--monitor-data is given without a monitor; give --monitor knn too")
        return None
    if where is None:
        raise ValueError("--monitor knn requires --monitor-data (class folders or a CSV file)")
    train, val = read_splits(where, option="--monitor-data")
    for labeled in (train, val):
        if labeled is not None:
            first_readable(labeled.source, config.model.in_chans)
    return KnnMonitor(train, val)
