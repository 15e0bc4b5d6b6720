"""The plan of a pretraining, shown before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.kinds import Kind
from ..data.places import files_outside
from ..data.sources.base import ImageSource
from ..data.sources.pages import Pages
from ..models.backbone import Backbone
from ..models.decoder import UNetDecoder
from ..models.masking import visible_patches
from ..models.spark import SparK
from ..training.config import COMPUTATION
from ..training.schedule import steps_of
from ..utils.devices import device_name
from ..utils.text import counted
from .config import PretrainConfig, RunConfig
from .images import PretrainingImages
from .kinds import described, kind_in
from .task import PretrainingTask

OTHER_PARTS = {"unet": "decoder and mask embeddings", "own": "its own decoder; projections and mask embeddings"}
"""What a model has beside the network, by decoder."""

VIEWED: dict[Kind, str] = {
    "images": "pixels",
    "volumes": "voxels",
    "signals": "samples",
    "clips": "frames and pixels",
}
"""What views are measured in."""


def plan_of(
    recipe: str,
    config: PretrainConfig,
    images: PretrainingImages,
    task: PretrainingTask,
    peculiarities: Sequence[str],
    beside: Mapping[str, str],
) -> dict[str, str]:
    """Return the plan: label to text; `peculiarities` are of the images, `beside` are further lines."""
    fabric, model = task.fabric, task.model
    data, run, schedule = config.data, config.run, config.schedule
    steps = steps_of(schedule.epochs, len(images.source), run.batch_size)
    grid = model.grid_shape(data.image_size)
    patches, shown = math.prod(grid), visible_patches(grid, config.model.mask_ratio)
    other_parts = "heads" if model.whole else OTHER_PARTS[config.model.decoder]
    computed = "the ordinary network" if model.whole else config.model.execution
    hidden = f"{counted(patches, 'patch', 'patches')} of {_by(model.patch_size)}, {patches - shown} hidden"
    encoder = sum(p.numel() for p in model.encoder.parameters())
    reached = encoder - sum(model.encoder.get_parameter(name).numel() for name in model.unreached)
    others = sum(p.numel() for p in model.parameters()) - encoder
    parts = [f"{run.accumulate} x accumulated"] * (run.accumulate > 1) + [
        counted(fabric.world_size, "process", "processes")
    ] * (fabric.world_size > 1)
    where = Path(data.data).name if data.data else "built-in photographs"
    norm = "synchronized" if fabric.world_size > 1 and fabric.device.type == "cuda" else "of each process"
    millions, trained = f"{encoder / 1e6:.1f}", f"{reached / 1e6:.1f}"
    return {
        "recipe": Path(recipe).name,
        "network": f"{Path(config.model.model).name}, {millions} million parameters"
        + (f", {trained} million of them trained" if trained != millions else "")
        + f"; {other_parts} {others / 1e6:.1f} million"
        + (f"; stochastic depth up to {config.model.drop_path:g}" if config.model.drop_path else "")
        + ("" if config.model.init == "none" else f"; starting from {Path(config.model.init).name}"),
        "images": f"{len(images.source):,} ({where}{_files(images.source)})"
        + (f"; {len(images.held_out):,} held out" if images.held_out is not None else "")
        + ("" if (outside := files_outside(images.source)) is None else f"; {outside}")
        + "".join(f"; {text}" for text in peculiarities),
        **described(images.source),
        "values": f"mean {_numbers(data.mean)}, deviation {_numbers(data.std)}"
        + ("" if data.nodata is None else f"; {data.nodata:g} is no data"),
        "views": f"{_by(data.image_size)} {VIEWED[kind_in(config)]}, "
        + ("whole" if model.whole else hidden)
        + (f"; jitter {data.jitter:g}" if data.jitter else "")
        + (f"; {config.model.masks_per_image} masks of each" if config.model.masks_per_image > 1 else ""),
        **_maps(model.backbone),
        **({} if config.model.objective == "pixels" else {"objective": Path(config.model.objective).name}),
        "batch": f"{counted(run.batch_size, 'image')}"
        + (f" ({', '.join(parts)}: {task.micro_batch} at a time)" if parts else "")
        + (f"; batch norm's statistics {norm}" if fabric.world_size > 1 else ""),
        "length": f"{counted(schedule.epochs, 'epoch')} = {counted(steps, 'step')}, "
        f"{counted(schedule.warmup_epochs, 'epoch')} of warm-up",
        "optimizer": f"{config.optimizer.optimizer}, learning rate up to {config.optimizer.lr:.3g}, weight decay "
        f"{config.optimizer.weight_decay:g} to {config.optimizer.weight_decay_end:g}, betas "
        f"{config.optimizer.betas[0]:g} {config.optimizer.betas[1]:g}"
        + (f", gradients clipped at {config.optimizer.clip:g}" if config.optimizer.clip else ""),
        "computation": f"{device_name(fabric.device)}, {run.precision}{COMPUTATION[run.compile]}, "
        f"{computed}{_kept(model, run)}, {counted(data.workers, 'worker')}",
        **beside,
        "steps": f"{steps}",
    }


def _kept(model: SparK, run: RunConfig) -> str:
    """Return that the decoder's maps are kept, which the recipe decides by memory, in words."""
    keeps = isinstance(model.decoder, UNetDecoder) and not run.memory_efficient
    return ", nothing of the decoder computed twice" if keeps else ""


def _files(source: ImageSource) -> str:
    """Return of how many files images are pages, in words; nothing where each file is an image."""
    return f", pages of {counted(len(np.unique(source.files)), 'file')}" if isinstance(source, Pages) else ""


def _maps(backbone: Backbone) -> dict[str, str]:
    """Return the lines of the plan on the feature maps: where they were found, and what is unusual."""
    names = backbone.stages or ["the network's own"] * len(backbone.levels)
    maps = ", ".join(
        f"{_by(level.stride)}: {name or 'its output'}" for level, name in zip(backbone.levels, names, strict=True)
    )
    lines = {"maps": f"of strides {maps}"} if backbone.stages else {}
    return lines | {f"note {number}": note for number, note in enumerate(backbone.notes, start=1)}


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.10g}" for value in values)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
