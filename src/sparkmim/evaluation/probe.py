"""Fit probes to the features of a frozen encoder, and score them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..data.config import Pages, chosen_files
from ..data.labels import fold
from ..training.config import Device, LoopConfig
from ..utils.fields import validate_as
from .attentive_probe import RATES, AttentiveProbe, fit_attentive_probe
from .config import Pooling
from .features import Stage, log_places
from .frozen import FrozenEncoder, LabeledFeatures
from .knn import Accuracy
from .linear_probe import PENALTIES, LinearProbe, fit_probes

FOLDS = 5
"""Without validation images, one of so many folds of the training images chooses the penalty."""


class ProbeResult(NamedTuple):
    """Accuracy of a probe.

    Attributes:
        encoder: the encoder and how its features were computed, as recorded in `results.json`.
        classes: names of the classes.
        probe: the classifier with the chosen penalty, and with attention the chosen learning rate.
        train_images: number of images that it was fitted to.
        train: accuracy on them.
        val_images: number of images that chose the penalty.
        val: accuracy on them.
        val_by_penalty: the same of the linear probe for every penalty, strongest first.
        val_by_rate: with attention, the same for every learning rate; that of 0 is the linear probe.
        test_images: number of test images, 0 without any.
        test: accuracy on them, None without any.
        mean_pooled: with attention, what `accuracy` is of the linear probe; None without.
        skipped: number of images that could not be read.
    """

    encoder: dict[str, Any]
    classes: tuple[str, ...]
    probe: LinearProbe | AttentiveProbe
    train_images: int
    train: Accuracy
    val_images: int
    val: Accuracy
    val_by_penalty: dict[float, Accuracy]
    val_by_rate: dict[float, Accuracy]
    test_images: int
    test: Accuracy | None
    mean_pooled: Accuracy | None
    skipped: int

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy on the test images, or on the validation images without any."""
        return self.val if self.test is None else self.test

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for `results.json`."""
        return {
            **self.encoder,
            "classes": list(self.classes),
            "train_images": self.train_images,
            "val_images": self.val_images,
            "penalty": self.probe.penalty,
            "train": self.train._asdict(),
            "val": self.val._asdict(),
            "val_by_penalty": _by_value(self.val_by_penalty),
            **({} if self.mean_pooled is None else {"val_by_rate": _by_value(self.val_by_rate)}),
            **({"rate": self.probe.rate} if isinstance(self.probe, AttentiveProbe) else {}),
            **({} if self.mean_pooled is None else {"mean_pooled": self.mean_pooled._asdict()}),
            **({} if self.test is None else {"test_images": self.test_images, "test": self.test._asdict()}),
        }


def linear_probe(
    encoder: str | Path,
    data: str | Path,
    *,
    val_data: str | Path | None = None,
    test_data: str | Path | Sequence[str | Path] = (),
    model: str | None = None,
    stage: Stage = -1,
    pooling: Pooling = "mean",
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust: bool = False,
) -> ProbeResult:
    """Fit a linear classifier to the features of a frozen encoder.

    Validation images choose the penalty. Without any, a fifth of each class's training images does, and the classifier
    with the chosen penalty is fitted again to all training images. With `pooling="attention"`, queries that weight the
    positions of the feature map are then learned beside it, and the same images choose the learning rate.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, "timm" or "none"; see
            :func:`sparkmim.load_encoder`.
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test.
        val_data: labeled images that choose the penalty; val beside train by default.
        test_data: labeled images to score; several sets are pooled into one; test beside train by default.
        model: the network's name, for weights that do not record it.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        pooling: "mean" averages the feature map over positions; "attention" weights them by learned queries.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, of the choice of validation images, and with attention of the order of images.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default, or measured where nothing is known.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the encoder's file names, where `model` does not.

    Raises:
        ValueError: for an invalid setting, an encoder or labels that cannot be loaded, or feature maps that do not fit
            into memory.
    """
    validate_as(LoopConfig, seed=seed)
    files = chosen_files(pages, nodata, max_pixels)
    frozen = FrozenEncoder(
        encoder,
        model,
        stage,
        image_size,
        batch_size,
        workers,
        device,
        seed,
        data=data,
        val_data=val_data,
        test_data=test_data,
        stages=stages,
        in_chans=in_chans,
        mean=mean,
        std=std,
        trust=trust,
        files=files,
        pooling=pooling,
    )
    splits = frozen.splits
    rest, held = (splits.train, splits.val) if splits.val is not None else fold(splits.train, FOLDS, 0, seed)
    classes = splits.train.classes
    for part in [*([] if splits.val is None else [splits.val]), *splits.test]:
        log_places(part.source, splits.train.source)
    sets = [(rest, "--data"), (held, "--data" if splits.val is None else "--val-data")]
    frozen.require_readable([*sets, *((part, "--test-data") for part in splits.test)])
    frozen.require_memory(rest, held, *splits.test)
    fitted, val = frozen(rest), frozen(held)
    means = fitted.pooled()
    by_penalty = _scored(fit_probes(means.values, means.labels, classes=len(classes)), val.pooled())
    linear, chosen_by = _best(by_penalty)
    chosen: LinearProbe | AttentiveProbe = linear
    by_rate: list[tuple[AttentiveProbe, Accuracy]] = []
    if pooling == "attention":
        by_rate = _scored((fit_attentive_probe(linear, fitted, rate=rate, seed=seed) for rate in RATES), val)
        chosen, chosen_by = _best(by_rate)
    if splits.val is None:
        fitted = LabeledFeatures.joined([fitted, val])
        means = fitted.pooled()
        path = PENALTIES[: PENALTIES.index(linear.penalty) + 1]
        linear = fit_probes(means.values, means.labels, classes=len(classes), penalties=path)[-1]
        if isinstance(chosen, AttentiveProbe):
            chosen = fit_attentive_probe(linear, fitted, rate=chosen.rate, seed=seed)
        else:
            chosen = linear
    test = frozen.joined(splits.test) if splits.test else None
    mean_pooled = None
    if pooling == "attention":
        mean_pooled = _best(by_penalty)[1] if test is None else linear.score(test.pooled())
    return ProbeResult(
        encoder={**frozen.described, "pooling": pooling},
        classes=tuple(classes),
        probe=chosen,
        train_images=len(fitted),
        train=chosen.score(fitted),
        val_images=len(val),
        val=chosen_by,
        val_by_penalty={probe.penalty: score for probe, score in by_penalty},
        val_by_rate={probe.rate: score for probe, score in by_rate},
        test_images=0 if test is None else len(test),
        test=None if test is None else chosen.score(test),
        mean_pooled=mean_pooled,
        skipped=frozen.skipped,
    )


ProbeT = TypeVar("ProbeT", LinearProbe, AttentiveProbe)


def _scored(probes: Iterable[ProbeT], images: LabeledFeatures) -> list[tuple[ProbeT, Accuracy]]:
    """Return probes with their accuracies."""
    return [(probe, probe.score(images)) for probe in probes]


def _best(scored: Sequence[tuple[ProbeT, Accuracy]]) -> tuple[ProbeT, Accuracy]:
    """Return the first of the probes with the highest accuracy, and that accuracy."""
    return max(scored, key=lambda pair: pair[1].top1)


def _by_value(scores: dict[float, Accuracy]) -> dict[str, Any]:
    """Return scores by a setting as plain values."""
    return {f"{value:.3g}": score._asdict() for value, score in scores.items()}
