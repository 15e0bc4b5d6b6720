"""What k-NN and linear probe share: labelled images read into features of a frozen encoder, and where results go."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_network
from ..checkpoints.run_folder import RunFolder
from ..data.labels import LabelledImages
from ..utils.devices import pick_device
from ..utils.io import require_writable, write_json
from ..utils.text import printable
from .features import pooled_features

Device = Literal["auto", "cpu", "cuda", "mps"]


class LabelledFeatures(NamedTuple):
    """Features of images, and the numbers of their classes."""

    values: Float[Tensor, "image feature"]
    labels: Int[Tensor, "image"]

    def __len__(self) -> int:
        return len(self.labels)


class FrozenEncoder:
    """A frozen encoder that turns labelled images into features.

    Args:
        encoder: a file, a run folder, "timm" or "none", see :func:`~sparkmim.checkpoints.encoder.load_network`.
        model: the network's name, where the encoder does not know it.
        stage: which map, from 0, the finest, to -1, the deepest.
        image_size: pixels of the square view; that of the pretraining if not given.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights.

    Attributes:
        network: the encoder.
        skipped: how many images could not be read.
    """

    def __init__(
        self,
        encoder: Path,
        model: str | None,
        stage: int,
        image_size: int | None,
        batch_size: int,
        workers: int,
        device: Device,
        seed: int,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise ValueError(f"--image-size {image_size} is not a number of pixels")
        if batch_size < 1 or workers < 0:
            raise ValueError(f"--batch-size {batch_size} must be at least 1, and --workers {workers} at least 0")
        self.where = pick_device(device)
        network = load_network(encoder, model, seed)
        size = network.data.image_size if image_size is None else (image_size, image_size)
        self.network: TrainedEncoder = network._replace(data=replace(network.data, image_size=size))
        self.network.backbone.module.to(self.where)
        self.stage, self.batch_size, self.workers = stage, batch_size, workers
        self.skipped = 0
        self.described = {
            "encoder": str(encoder),
            "model": network.name,
            "stage": stage,
            "image_size": list(size),
            **({"seed": seed} if str(encoder) == "none" else {}),
        }

    def __call__(self, images: LabelledImages) -> LabelledFeatures:
        """The features of all images that can be read, those that cannot being named on standard error.

        Raises:
            ValueError: if there are none.
        """
        found = pooled_features(
            self.network.backbone,
            images.source,
            self.network.data,
            self.stage,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.where,
        )
        for index, error in found.broken:
            print(f"skipped {printable(images.source.name(index))}: {error}", file=sys.stderr)
        if not found.indices:
            raise ValueError(f"none of the {len(images)} images can be read")
        self.skipped += len(found.broken)
        return LabelledFeatures(found.values, torch.from_numpy(images.labels[found.indices]))

    def joined(self, parts: Sequence[LabelledImages]) -> LabelledFeatures:
        """The features of several sets as of one."""
        features = [self(part) for part in parts]
        return LabelledFeatures(torch.cat([f.values for f in features]), torch.cat([f.labels for f in features]))


def write_results(output: Path | None, kind: str, results: dict[str, Any]) -> None:
    """Write `results.json` into a folder, if one is asked for; see :func:`check_output`."""
    if output is None:
        return
    path = output / "results.json"
    write_json(path, {"sparkmim": version("sparkmim"), "evaluation": kind, **results})
    print(f"results: {path}")


def check_output(output: Path | None, kind: str) -> None:
    """Whether results of this kind can be written there.

    Raises:
        ValueError: if it is a file, the folder of a run, holds the results of something else, or cannot be written.
    """
    if output is None:
        return
    if output.is_file():
        raise ValueError(f"--output {output} is a file; it takes a folder")
    if _is_run(output):
        raise ValueError(f"--output {output} is the folder of a run, whose results are its own; name another")
    path = output / "results.json"
    if path.exists():
        try:
            there = json.loads(path.read_text())["evaluation"]
        except (ValueError, KeyError, TypeError):
            there = "something else"
        if there != kind:
            raise ValueError(f"{path} holds the results of {there}; use another --output")
    require_writable(path)


def _is_run(folder: Path) -> bool:
    try:
        return RunFolder(folder).read_config() is not None
    except (OSError, ValueError):  # it holds something else
        return False
