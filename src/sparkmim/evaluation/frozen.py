"""Frozen encoders as feature extractors of labeled images, for k-NN and the linear probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_trained_encoder, with_input
from ..data.labels import LabeledImages, LabeledSplits, labeled_splits
from ..data.sources.pages import by_page
from ..data.statistics import require_readable
from ..data.tables import named
from ..data.volumes.preparing import Preparation
from ..training.config import Device
from ..utils.devices import pick_device
from ..utils.logging import log
from ..utils.memory import host_memory
from ..utils.text import counted
from .config import Pooling
from .features import (
    Stage,
    log_skipped,
    pooled_features,
    preparation_for,
    ready_for,
    require_poolable,
    stages_of,
    untrained_on,
)
from .standardization import Standardization


class LabeledFeatures(NamedTuple):
    """Features of images, with an axis of positions if they were not pooled, and their class indices."""

    values: Float[Tensor, "image *position feature"]
    labels: Int[Tensor, "image"]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def joined(cls, parts: Sequence[LabeledFeatures]) -> LabeledFeatures:
        """Return several sets of features as one."""
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts]))

    def pooled(self) -> LabeledFeatures:
        """Return the features averaged over positions; as they are if they have none."""
        return LabeledFeatures(self.values.mean(1), self.labels) if self.values.ndim == 3 else self

    def by(self, standardization: Standardization | None) -> LabeledFeatures:
        """Return the features standardized; as they are without a standardization."""
        return self if standardization is None else LabeledFeatures(standardization(self.values), self.labels)


def named_stage(stage: Stage) -> int | list[int]:
    """Return the stage as `results.json` has it: a number, or several."""
    places = stages_of(stage)
    return places[0] if len(places) == 1 else list(places)


class FrozenEncoder:
    """A frozen encoder that turns labeled images into features.

    Args:
        encoder: a file, a run folder, "timm" or "none"; see
            :func:`~sparkmim.checkpoints.encoder.load_trained_encoder`.
        model: the network's name, for weights that do not record it.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights.
        data: labeled images, on whose training images mean and standard deviation are measured where they are not
            known: class folders, a CSV file, or a folder that contains train, val and test. Volumes are prepared as
            those that the encoder has learned from.
        val_data: labeled images to validate with; val beside train by default.
        test_data: labeled images to score; test beside train by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the file names, where `model` does not.
        files: how images are read, where that differs; see :func:`~sparkmim.data.config.chosen_files`.
        pooling: "mean" averages each map over all positions; "attention" keeps the positions, of one map.

    Attributes:
        network: the encoder.
        splits: the labeled images.
        skipped: number of images that could not be read.
        described: the settings above as recorded in `results.json`.

    Raises:
        ValueError: for an invalid setting, or an encoder or labels that cannot be loaded.
    """

    def __init__(
        self,
        encoder: str | Path,
        model: str | None,
        stage: Stage,
        image_size: int | None,
        batch_size: int,
        workers: int,
        device: Device,
        seed: int,
        *,
        data: str | Path,
        val_data: str | Path | None = None,
        test_data: str | Path | Sequence[str | Path] = (),
        stages: Sequence[str] = (),
        in_chans: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        trust: bool = False,
        files: Mapping[str, Any] = {},
        pooling: Pooling = "mean",
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(f"--batch-size {batch_size} must be at least 1, and --workers {workers} at least 0")
        require_poolable(stage, pooling)
        self.device = pick_device(device)
        loaded = load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans, trust=trust)
        if loaded.backbone.dims == 1 or loaded.clips is not None:
            raise ValueError(
                f"{loaded.name} takes {'signals' if loaded.backbone.dims == 1 else 'clips'}, and k-NN and the linear "
                "probe classify images; `sparkmim embed` computes features to classify by"
            )
        chosen = with_input(loaded, image_size=image_size, mean=mean, std=std, files=files)
        if str(encoder) == "none" and chosen.backbone.dims == 3:
            bare = labeled_splits(data, val_data, test_data, Preparation.nothing(chosen.backbone.in_chans))
            chosen = untrained_on(chosen, bare.train.cases(), image_size, statistics=mean is not None)
        self.splits: LabeledSplits = labeled_splits(data, val_data, test_data, preparation_for(chosen, data))
        source = by_page(self.splits.train.source, chosen.backbone.in_chans, chosen.data)
        self.network: TrainedEncoder = ready_for(chosen, source, stage)
        self.network.backbone.module.to(self.device)
        self.stage, self.batch_size, self.workers, self.pooling = stage, batch_size, workers, pooling
        self.skipped = 0
        self.described: dict[str, Any] = {
            "encoder": str(encoder),
            "model": self.network.name,
            "stage": named_stage(stage),
            "image_size": list(self.network.data.image_size),
            "mean": list(self.network.data.mean),
            "std": list(self.network.data.std),
            **({"seed": seed} if str(encoder) == "none" else {}),
        }

    def require_readable(self, sets: Iterable[tuple[LabeledImages, str]]) -> None:
        """Raise for a set of images, given with the option that named it, that seems to be of no use.

        Raises:
            ValueError: if none of a few images that are tried can be read.
        """
        channels, data = self.network.backbone.in_chans, self.network.data
        for images, option in sets:
            require_readable(images.by_page(channels, data).source, channels, data, 1.0, option, by_part=data.by_part)

    def require_memory(self, *sets: LabeledImages) -> None:
        """Raise if the features of some images do not fit into memory: with attention, those of all positions.

        Raises:
            ValueError: with the bytes that they take, and what takes fewer.
        """
        backbone = self.network.backbone
        places = stages_of(self.stage)
        strides, channels = (
            [backbone.strides[place] for place in places],
            [backbone.channels[place] for place in places],
        )
        values = sum(channels)
        if self.pooling == "attention":
            values *= math.prod(math.ceil(n / s) for n, s in zip(self.network.data.image_size, strides[0], strict=True))
        images = sum(map(len, sets))
        wanted = 2 * 4 * values * images  # float32, and once more where parts are joined
        if wanted > (available := host_memory()):
            raise ValueError(
                f"features of {counted(images, 'image')}, {values:,} values each, take {wanted / 2**30:.1f} GiB of "
                f"memory, and {available / 2**30:.1f} GiB are available; name a deeper --stage or a smaller "
                + ("--image-size, or use --pooling mean" if self.pooling == "attention" else "--image-size")
            )

    def __call__(self, images: LabeledImages) -> LabeledFeatures:
        """Return the features of all readable images; log the others as skipped.

        Raises:
            ValueError: if no image can be read.
        """
        images = images.by_page(self.network.backbone.in_chans, self.network.data)
        found = pooled_features(
            self.network.backbone,
            images.source,
            self.network.data,
            self.stage,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            pooling=self.pooling,
        )
        log_skipped(images.source, found.broken)
        if not found.indices:
            raise ValueError(f"none of the {len(images)} images can be read")
        self.skipped += len(found.broken)
        lost = set(images.labels.tolist()) - set(images.labels[found.indices].tolist())
        if lost:
            log.warning(f"no image of {named([images.classes[label] for label in sorted(lost)])} can be read")
        return LabeledFeatures(found.values, torch.from_numpy(images.labels[found.indices]))

    def joined(self, parts: Sequence[LabeledImages]) -> LabeledFeatures:
        """Return the features of several sets, concatenated."""
        features = [self(part) for part in parts]
        return LabeledFeatures(torch.cat([f.values for f in features]), torch.cat([f.labels for f in features]))
