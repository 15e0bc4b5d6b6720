"""Recipes of refinement: functions from a situation to a complete configuration. The user's choices take precedence.

A recipe of your own is a function of the same kind in a file, `--recipe FILE.py:FUNCTION`; it may start from one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ..data.config import ViewConfig, files_of
from ..training.config import LayeredOptimizerConfig, LoopConfig, ScheduleConfig
from ..training.memory import images_that_fit
from ..training.recipes import CommonSituation, divisible, native_precision, power_of_two, reading_processes
from ..training.schedule import steps_of
from .config import ContrastConfig, EncoderConfig, RefineConfig, RefineDataConfig, StrongViewConfig
from .network import ContrastiveNetwork

PART = 0.25
"""Share of the pretraining's views that a refinement shows."""


@dataclass(frozen=True, kw_only=True)
class Situation(CommonSituation):
    """What a recipe may look at: what :class:`~sparkmim.training.recipes.CommonSituation` has, and the images.

    Attributes:
        images: number of images to train on.
        view: how images were prepared where the encoder was trained.
        pretrained: views that the encoder was pretrained with; None if its folder does not say.
    """

    images: int
    view: ViewConfig
    pretrained: float | None = None


Recipe = Callable[[Situation], RefineConfig]


def auto(situation: Situation) -> RefineConfig:
    """Fit everything to the encoder, the number of images and the device.

    - Views as large as the encoder's, from a fifth of the area on, flipped, colored and blurred.
    - Batch size: a power of two that makes at least 32 steps an epoch, 16 to 256, no more than fits into memory at
      once: views that are accumulated are no negatives of each other.
    - Epochs: a quarter of the views of the encoder's pretraining, 5 to 200 of each image; where the folder does not
      say, ten million views, 25 to 200 of each. A tenth of them warm-up.
    - AdamW, learning rate 1e-3 at batch size 64 and as the root of the batch size, weight decay 0.05, layer decay 0.65,
      temperature 0.1: the settings of the trials in docs/guides/refinement.md.
    - bf16-mixed where the device computes it natively, 32 elsewhere.
    """
    images, view, parts = situation.images, situation.view, situation.parts
    precision = situation.choice("precision", native_precision(situation.device))
    batch_size = situation.choice("batch_size", None)
    if batch_size is None:
        wanted = divisible(power_of_two(images / 32, 16, 256, images), parts)
        fits = _pairs_that_fit(situation, precision) * parts
        batch_size = wanted if wanted <= fits else divisible(power_of_two(fits, 2, wanted, images), parts)
    views = situation.pretrained
    epochs = (
        float(min(200, max(25, round(1e7 / images))))
        if views is None
        else float(min(200, max(5, round(PART * views / images))))
    )
    epochs = situation.choice("epochs", epochs)
    steps = steps_of(epochs, images, batch_size)
    return RefineConfig(
        model=EncoderConfig(
            model=situation.chosen["model"], in_chans=situation.backbone.in_chans, encoder=situation.chosen["encoder"]
        ),
        data=RefineDataConfig(
            data=situation.chosen["data"],
            image_size=view.image_size,
            crop=view.crop,
            crop_scale=(0.2, 1.0),
            flip=view.flip,
            mean=view.mean,
            std=view.std,
            **asdict(files_of(vars(view))),
            workers=reading_processes(situation.device, situation.cores),
        ),
        views=StrongViewConfig(),
        contrast=ContrastConfig(),
        optimizer=LayeredOptimizerConfig(
            optimizer="adamw",
            lr=float(f"{1e-3 * math.sqrt(batch_size / 64):.2g}"),
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.05,
            weight_decay_end=0.05,
            clip=1.0,
            layer_decay=1.0 if situation.chosen["encoder"] == "none" else 0.65,
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=epochs / 10),
        run=LoopConfig(batch_size=batch_size, precision=precision, log_every=min(50, max(1, steps // 500))),
    ).replace(situation.chosen)


RECIPES: dict[str, Recipe] = {"auto": auto}


def _pairs_that_fit(situation: Situation, precision: str) -> int:
    """Return how many pairs of views fit into memory at once."""
    size = situation.choice("image_size", situation.view.image_size)
    shape = situation.backbone.in_chans, *size

    def blank(pairs: int) -> tuple[torch.Tensor]:
        return (torch.zeros(2 * pairs, *shape),)

    network = ContrastiveNetwork(situation.backbone, ContrastConfig()).train()
    found = images_that_fit(network, blank, precision, situation.memory_bytes)  # type: ignore[arg-type]
    network.eval()
    return found
