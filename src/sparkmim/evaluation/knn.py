"""k-nearest-neighbor classification of frozen features.

Source: Wu et al. 2018 (arXiv 1805.01978), with the settings of DINO's `eval_knn.py`: cosine similarity; each of the k
nearest images votes for its class with weight exp(similarity / 0.07).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.config import Pages, chosen_files
from ..training.config import Device, LoopConfig
from ..utils.fields import validate_as
from ..utils.text import counted, verb
from .config import NEIGHBOURS
from .features import Stage, log_places
from .frozen import FrozenEncoder
from .standardization import Standardization

TEMPERATURE = 0.07
"""Temperature of the votes, as in DINO."""

CHUNK = 1024
"""Images compared with all others at once."""


class Accuracy(NamedTuple):
    """Share of images classified correctly: of all images, and the mean over the classes that have images."""

    top1: float
    class_mean: float


class KnnResult(NamedTuple):
    """Accuracy of k-NN classification.

    Attributes:
        encoder: the encoder and how its features were computed, as recorded in `results.json`.
        classes: names of the classes.
        train_images: number of labeled images that vote.
        features: number of features.
        neighbours: the chosen k.
        leave_one_out: accuracy on the training images, each classified by all others, by k.
        test_images: number of images that were classified.
        test: accuracy on them by k; empty without test images.
        skipped: number of images that could not be read.
    """

    encoder: dict[str, Any]
    classes: tuple[str, ...]
    train_images: int
    features: int
    neighbours: int
    leave_one_out: dict[int, Accuracy]
    test_images: int
    test: dict[int, Accuracy]
    skipped: int

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy with the chosen k: on the test images, or leave-one-out without any."""
        return (self.test or self.leave_one_out)[self.neighbours]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for `results.json`."""
        values = {
            **self.encoder,
            "classes": list(self.classes),
            "train_images": self.train_images,
            "neighbours": self.neighbours,
            "leave_one_out": {str(k): value._asdict() for k, value in self.leave_one_out.items()},
        }
        if self.test:
            values |= {
                "test_images": self.test_images,
                "test": self.test[self.neighbours]._asdict(),
                "test_by_neighbours": {str(k): value._asdict() for k, value in self.test.items()},
            }
        return values


def knn(
    encoder: str | Path,
    data: str | Path,
    *,
    test_data: str | Path | Sequence[str | Path] = (),
    model: str | None = None,
    stage: Stage = -1,
    image_size: int | None = None,
    neighbours: Sequence[int] = NEIGHBOURS,
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
    standardize: bool = False,
) -> KnnResult:
    """Classify images by their nearest labeled neighbors, with the features of a frozen encoder.

    k is the one of `neighbours` with the highest leave-one-out accuracy on the training images.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, "timm" or "none"; see
            :func:`sparkmim.load_encoder`.
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test.
        test_data: labeled images to classify; several sets are pooled into one; by default test beside train, else val.
        model: the network's name, for weights that do not record it.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        neighbours: values of k to try.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default, or measured where nothing is known.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the encoder's file names, where `model` does not.
        standardize: compare features with mean 0 and deviation 1 over the training images.

    Raises:
        ValueError: for an invalid setting, an encoder or labels that cannot be loaded, or too few images.
    """
    validate_as(LoopConfig, seed=seed)
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"--neighbours {' '.join(map(str, neighbours))} must be at least 1")
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
        test_data=test_data,
        stages=stages,
        in_chans=in_chans,
        mean=mean,
        std=std,
        trust=trust,
        files=files,
    )
    splits = frozen.splits
    classes = splits.train.classes
    frozen.require_readable([(splits.train, "--data"), *((part, "--test-data") for part in splits.scored)])
    train = frozen(splits.train)
    standardization = Standardization.of(train.values) if standardize else None
    if standardization is not None:
        train = train.by(standardization)
        frozen.described["standardized"] = True
    within = leave_one_out(train.values, train.labels, neighbours, classes=len(classes))
    if not within:
        raise ValueError(
            f"{counted(len(train), 'training image')} {verb(len(train), 'are')} too few for {min(neighbours)} "
            "neighbours; see --neighbours"
        )
    by_k: dict[int, Accuracy] = {}
    images = 0
    for part in splits.scored:
        log_places(part.source, splits.train.source)
    if splits.scored:
        test = frozen.joined(splits.scored).by(standardization)
        images = len(test)
        predicted = knn_predictions(test.values, train.values, train.labels, neighbours, classes=len(classes))
        by_k = {k: accuracy(prediction, test.labels) for k, prediction in predicted.items()}
    return KnnResult(
        encoder=frozen.described,
        classes=tuple(classes),
        train_images=len(train),
        features=train.values.shape[1],
        neighbours=best_neighbours(within),
        leave_one_out=within,
        test_images=images,
        test=by_k,
        skipped=frozen.skipped,
    )


def knn_predictions(
    features: Float[Tensor, "image feature"],
    bank: Float[Tensor, "other feature"],
    bank_labels: Int[Tensor, "other"],
    neighbours: Sequence[int] = NEIGHBOURS,
    *,
    classes: int,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
) -> dict[int, Int[Tensor, "image"]]:
    """Predict the class of each image by its nearest labeled neighbors, for several values of k.

    Args:
        features: features of the images to classify.
        bank: features of labeled images.
        bank_labels: their class indices.
        neighbours: values of k; repeated values, and values above the number of labeled images, are left out.
        classes: number of classes.
        temperature: temperature of the votes.
        leave_one_out: `features` are those of the bank, and no image is its own neighbor.

    Returns:
        Predicted class indices by k.
    """
    others = len(bank) - leave_one_out
    wanted = [k for k in dict.fromkeys(neighbours) if k <= others]
    bank = F.normalize(bank, dim=1)
    queries = F.normalize(features, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in wanted}
    for start in range(0, len(queries) if wanted else 0, CHUNK):
        similarity = queries[start : start + CHUNK] @ bank.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest, which = similarity.topk(max(wanted), dim=1)
        # Weights relative to the nearest one: exp of large arguments would overflow for small temperatures.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        labels = bank_labels[which]
        for k in wanted:
            votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def accuracy(predicted: Int[Tensor, "image"], labels: Int[Tensor, "image"]) -> Accuracy:
    """Return the share of correct predictions: of all images, and the mean over classes."""
    right = (predicted == labels).double()
    each = [right[labels == label].mean() for label in labels.unique()]
    return Accuracy(float(right.mean()), float(torch.stack(each).mean()))


def leave_one_out(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    neighbours: Sequence[int] = NEIGHBOURS,
    *,
    classes: int,
) -> dict[int, Accuracy]:
    """Return the accuracy of classifying each image by all others, for several values of k."""
    predicted = knn_predictions(features, features, labels, neighbours, classes=classes, leave_one_out=True)
    return {k: accuracy(prediction, labels) for k, prediction in predicted.items()}


def best_neighbours(accuracies: dict[int, Accuracy]) -> int:
    """Return the k with the highest accuracy, the smallest one of equals."""
    return max(accuracies, key=lambda k: (accuracies[k].top1, -k))
