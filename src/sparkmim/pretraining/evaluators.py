"""Look at a model during pretraining: the held-out loss, pictures of reconstructions, and the monitor's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..data.labels import read_splits
from ..data.loader import Batch, MaskedViews, evaluation_batches, read
from ..data.normalize import join
from ..data.statistics import require_readable
from ..data.volumes.preparing import Preparation
from ..evaluation.evaluators import KnnMonitor
from ..models.spark import SparK
from ..reporting.reconstructions import reconstruction_grid, save_png
from ..training.errors import RunStopped
from ..utils.distributed import gather_results
from ..utils.logging import log
from ..utils.modules import eval_mode
from ..utils.text import printable
from .config import PretrainConfig
from .kinds import kind_in

PICTURED = 8
"""Images whose reconstructions are drawn."""

MOST_UNREADABLE = 100
"""Unreadable images after which no others are tried for a picture."""

ToInput = Callable[[Tensor], Tensor]
"""Makes a network's input of pixels, on its device."""


def beside_images(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a model beside images and masks, on the device.

    They say where images have no data, if they lack any, and what a teacher makes of them, if there is one.
    """
    found: dict[str, Any] = {}
    if batch.has_data is not None:
        found["has_data"] = batch.has_data.to(device, non_blocking=True)
    if batch.targets is not None:
        found["given"] = type(batch.targets)(*(part.to(device, non_blocking=True) for part in batch.targets))
    return found


@torch.no_grad()
def held_out_loss(
    model: SparK, views: MaskedViews, to_input: ToInput, fabric: Fabric, *, batch_size: int, workers: int
) -> tuple[float, list[tuple[int, str]]]:
    """Return the mean loss in evaluation mode, and index and error of each image that could not be read.

    All processes share the work and get the same answer. Each image that can be read counts once.

    Raises:
        RunStopped: if none can be read.
    """
    batches = evaluation_batches(views, batch_size, workers, process=fabric.global_rank, processes=fabric.world_size)

    def sum_of_losses() -> tuple[Tensor, int, list[tuple[int, str]]]:
        total, images = torch.zeros((), device=fabric.device), 0
        broken: list[tuple[int, str]] = []
        with eval_mode(model), read(batches) as each:
            for batch in each:
                broken += batch.broken
                if not batch.indices:
                    continue
                with fabric.autocast():
                    out = model.forward(to_input(batch.images), batch.visible, **beside_images(batch, fabric.device))
                total += out.loss.float() * len(batch.images)
                images += len(batch.images)
        return total.cpu(), images, broken

    parts = gather_results(fabric, sum_of_losses)
    broken = [pair for _, _, part in parts for pair in part]
    images = sum(count for _, count, _ in parts)
    if not images:
        raise RunStopped(
            f"none of the {len(views)} held-out images can be read any more ({broken[0][1]}); resume with others by "
            "--val-data"
        )
    return float(sum(total for total, _, _ in parts) / images), broken


@torch.no_grad()
def draw_reconstructions(
    model: SparK, views: MaskedViews, to_input: ToInput, fabric: Fabric, config: PretrainConfig, path: Path
) -> None:
    """Save a picture of reconstructions, of the same images under the same masks each time."""
    shown, broken = readable_views(views, PICTURED)
    for index, error in broken:
        log.info(f"not pictured: {printable(views.source.name(index))}: {error}")
    if not shown:
        return
    images = to_input(join([view.images for view in shown]))
    visible = torch.cat([view.visible for view in shown])
    model.eval()
    with fabric.autocast():
        pictures = model.reconstruct(images, visible)
    model.train()
    data = config.data
    grid = reconstruction_grid(
        images.cpu(),
        visible,
        pictures.float().cpu(),
        mean=data.mean,
        std=data.std,
        clips=kind_in(config) == "clips",
        orientation=config.volumes.orientation,
    )
    save_png(grid, path)


def readable_views(views: MaskedViews, count: int) -> tuple[list[Batch], list[tuple[int, str]]]:
    """Return up to `count` views, spread evenly, and index and error of each image that could not be read.

    Another image that follows stands in for one that cannot be read, and none is shown twice. Views do not replace
    images themselves here (`replace=False`).
    """
    shown: list[Batch] = []
    broken: list[tuple[int, str]] = []
    tried: set[int] = set()
    count = min(count, len(views))
    for place in range(count):
        index = place * len(views) // count
        while index < len(views) and index not in tried and len(broken) < MOST_UNREADABLE:
            tried.add(index)
            view = views[0, index]
            if view.indices:
                shown.append(view)
                break
            broken += view.broken
            index += 1
    return shown, broken


def find_monitor(config: PretrainConfig, volumes: Preparation | None = None) -> KnnMonitor | None:
    """Return the monitor of a configuration, its images found; volumes are prepared as those that are trained on.

    Raises:
        ValueError: if there are none, or their labels make no sense.
    """
    where = config.data.monitor_data
    if config.run.monitor == "none":  # a run that is resumed without it keeps its images recorded
        return None
    if where is None:
        raise ValueError("--monitor knn requires --monitor-data (class folders or a CSV file)")
    train, val = read_splits(where, option="--monitor-data", volumes=volumes)
    data, channels = config.data, config.model.in_chans
    train, val = train.by_page(channels, data), None if val is None else val.by_page(channels, data)
    for labeled in (train, val):
        if labeled is not None:
            require_readable(labeled.source, channels, data, data.max_broken, "--monitor-data", by_part=data.by_part)
    return KnnMonitor(train, val)
