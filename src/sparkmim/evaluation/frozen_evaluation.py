"""All that labeled images tell of frozen features: k-NN, few-shot, retrieval and clustering, each with its error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.config import Pages, chosen_files
from ..training.config import Device, LoopConfig
from ..utils.fields import validate_as
from ..utils.text import counted, verb
from .clustering import clustering_agreement
from .config import NEIGHBOURS, SHOTS
from .features import Stage, log_places
from .few_shot import Measured, few_shot, share_of
from .frozen import FrozenEncoder
from .knn import best_neighbours, knn_predictions, leave_one_out
from .retrieval import mean_average_precision
from .standardization import Standardization


class FrozenScores(NamedTuple):
    """What frozen features are worth.

    Attributes:
        encoder: the encoder and how its features were computed.
        classes: names of the classes.
        train_images: number of labeled images.
        test_images: number of images that were classified, 0 where each was by all others.
        features: number of features.
        neighbours: k of the k-NN, chosen on the training images.
        scores: by name: `knn`, `few_shot_N` for N images of a class, `retrieval_map`, `clustering_nmi`.
        skipped: number of images that could not be read.
    """

    encoder: dict[str, Any]
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    features: int
    neighbours: int
    scores: dict[str, Measured]
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for `results.json`."""
        return {
            **self.encoder,
            "classes": list(self.classes),
            "train_images": self.train_images,
            "test_images": self.test_images,
            "features": self.features,
            "neighbours": self.neighbours,
            "scores": {name: score._asdict() for name, score in self.scores.items()},
        }


def evaluate_frozen(
    encoder: str | Path,
    data: str | Path,
    *,
    test_data: str | Path | Sequence[str | Path] = (),
    model: str | None = None,
    stage: Stage = -1,
    image_size: int | None = None,
    standardize: bool = True,
    shots: Sequence[int] = SHOTS,
    draws: int = 100,
    repeats: int = 10,
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
) -> FrozenScores:
    """Measure what the features of a frozen encoder are worth, by labeled images; features are computed once.

    Args:
        encoder: an `encoder.safetensors` or the run folder that holds one, other weights, "timm" or "none"; see
            :func:`sparkmim.load_encoder`.
        data: labeled images or volumes: class folders, a CSV file, or a folder that contains train, val and test.
        test_data: labeled images to classify; several sets are pooled into one; by default test beside train, else val,
            else each training image by all others.
        model: the network's name, for weights that do not record it.
        stage: index of the feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining by default.
        standardize: compare features with mean 0 and deviation 1 over the training images.
        shots: numbers of images of a class from which to classify all others.
        draws: random choices of these.
        repeats: clusterings, from different first centers.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, draws and clusterings.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the images, if not recorded.
        mean: mean of each channel; as recorded by default, or measured where nothing is known.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the encoder's file names, where `model` does not.

    Raises:
        ValueError: for an invalid setting, an encoder or labels that cannot be loaded, or too few images.
    """
    validate_as(LoopConfig, seed=seed)
    if any(count < 1 for count in (*shots, draws, repeats)):
        raise ValueError("--shots, --draws and --repeats must be at least 1")
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
        files=chosen_files(pages, nodata, max_pixels),
    )
    splits = frozen.splits
    classes = len(splits.train.classes)
    frozen.require_readable([(splits.train, "--data"), *((part, "--test-data") for part in splits.scored)])
    for part in splits.scored:
        log_places(part.source, splits.train.source)
    train = frozen(splits.train)
    standardization = Standardization.of(train.values) if standardize else None
    train = train.by(standardization)
    test = frozen.joined(splits.scored).by(standardization) if splits.scored else None
    within = leave_one_out(train.values, train.labels, NEIGHBOURS, classes=classes)
    if not within:
        raise ValueError(
            f"{counted(len(train), 'training image')} {verb(len(train), 'are')} too few to classify by their neighbors"
        )
    chosen = best_neighbours(within)
    queries = train if test is None else test
    predicted = knn_predictions(
        queries.values, train.values, train.labels, (chosen,), classes=classes, leave_one_out=test is None
    )[chosen]
    scores: dict[str, Measured | None] = {"knn": share_of(predicted == queries.labels)}
    scores |= {f"few_shot_{count}": few_shot(train, test, count, draws=draws, seed=seed) for count in shots}
    scores["retrieval_map"] = mean_average_precision(queries, None if test is None else train)
    scores["clustering_nmi"] = clustering_agreement(queries, repeats=repeats, seed=seed)
    return FrozenScores(
        encoder={**frozen.described, "standardized": standardize, "seed": seed, "draws": draws, "repeats": repeats},
        classes=tuple(splits.train.classes),
        train_images=len(train),
        test_images=0 if test is None else len(test),
        features=train.values.shape[1],
        neighbours=chosen,
        scores={name: score for name, score in scores.items() if score is not None},
        skipped=frozen.skipped,
    )
