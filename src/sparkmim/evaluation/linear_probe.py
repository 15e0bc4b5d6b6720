"""Linear probe: multinomial logistic regression on frozen features, fitted to convergence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.config import Pages, chosen_files
from ..data.labels import fold
from ..training.config import Device, LoopConfig
from ..utils.fields import validate_as
from .features import Stage, log_places
from .frozen import FrozenEncoder, LabeledFeatures
from .knn import Accuracy, accuracy
from .standardization import Standardization

PENALTIES = tuple(10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -5, -6))
"""Weights of half the sum of squared weights, strongest first."""

ITERATIONS = 500
"""Maximum of L-BFGS iterations for each penalty; unless the penalty is tiny, it converges earlier."""

FOLDS = 5
"""Without validation images, one of so many folds of the training images chooses the penalty."""


class LinearProbe(NamedTuple):
    """A fitted linear classifier.

    Attributes:
        penalty: weight of the L2 penalty that it was fitted with.
        standardization: applied to features first.
        weight: weight of each class.
        bias: bias of each class.
    """

    penalty: float
    standardization: Standardization
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, "class"]

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image class"]:
        """Return the logits."""
        return F.linear(self.standardization(features), self.weight, self.bias)

    def score(self, images: LabeledFeatures) -> Accuracy:
        """Return the accuracy on labeled images."""
        return accuracy(self(images.values).argmax(1), images.labels)


class ProbeResult(NamedTuple):
    """Accuracy of a linear probe.

    Attributes:
        encoder: the encoder and how its features were computed, as recorded in `results.json`.
        classes: names of the classes.
        probe: the classifier with the chosen penalty.
        train_images: number of images that it was fitted to.
        train: accuracy on them.
        val_images: number of images that chose the penalty.
        val: accuracy on them.
        val_by_penalty: the same for every penalty, strongest first.
        test_images: number of test images, 0 without any.
        test: accuracy on them, None without any.
        skipped: number of images that could not be read.
    """

    encoder: dict[str, Any]
    classes: tuple[str, ...]
    probe: LinearProbe
    train_images: int
    train: Accuracy
    val_images: int
    val: Accuracy
    val_by_penalty: dict[float, Accuracy]
    test_images: int
    test: Accuracy | None
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
            "val_by_penalty": {f"{penalty:.3g}": score._asdict() for penalty, score in self.val_by_penalty.items()},
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
    with the chosen penalty is fitted again to all training images.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, "timm" or "none"; see
            :func:`sparkmim.load_encoder`.
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test.
        val_data: labeled images that choose the penalty; val beside train by default.
        test_data: labeled images to score; several sets are pooled into one; test beside train by default.
        model: the network's name, for weights that do not record it.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, and of the choice of validation images.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default, or measured where nothing is known.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the encoder's file names, where `model` does not.

    Raises:
        ValueError: for an invalid setting, or an encoder or labels that cannot be loaded.
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
    )
    splits = frozen.splits
    rest, held = (splits.train, splits.val) if splits.val is not None else fold(splits.train, FOLDS, 0, seed)
    classes = splits.train.classes
    for part in [*([] if splits.val is None else [splits.val]), *splits.test]:
        log_places(part.source, splits.train.source)
    sets = [(rest, "--data"), (held, "--data" if splits.val is None else "--val-data")]
    frozen.require_readable([*sets, *((part, "--test-data") for part in splits.test)])
    fitted, val = frozen(rest), frozen(held)
    candidates = fit_probes(fitted.values, fitted.labels, classes=len(classes))
    scores = [(candidate, candidate.score(val)) for candidate in candidates]
    best, chosen_by = max(scores, key=lambda pair: pair[1].top1)
    if splits.val is None:
        fitted = LabeledFeatures(torch.cat([fitted.values, val.values]), torch.cat([fitted.labels, val.labels]))
        path = PENALTIES[: PENALTIES.index(best.penalty) + 1]
        best = fit_probes(fitted.values, fitted.labels, classes=len(classes), penalties=path)[-1]
    test = frozen.joined(splits.test) if splits.test else None
    return ProbeResult(
        encoder=frozen.described,
        classes=tuple(classes),
        probe=best,
        train_images=len(fitted),
        train=best.score(fitted),
        val_images=len(val),
        val=chosen_by,
        val_by_penalty={candidate.penalty: score for candidate, score in scores},
        test_images=0 if test is None else len(test),
        test=None if test is None else best.score(test),
        skipped=frozen.skipped,
    )


def fit_probes(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[LinearProbe]:
    """Minimize cross entropy plus `penalty / 2` times the sum of squared weights, for each penalty.

    The problem is convex and has one solution, so there is no learning rate to choose: L-BFGS (full batch, strong Wolfe
    line search) starts from the solution of the previous penalty. The bias is not penalized.

    Args:
        features: features of labeled images, without augmentation.
        labels: their class indices.
        classes: number of classes.
        penalties: from strong to weak.
    """
    standardization = Standardization.of(features)
    x = standardization(features)
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    probes = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def loss(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        probes.append(LinearProbe(penalty, standardization, weight.detach().clone(), bias.detach().clone()))
    return probes
