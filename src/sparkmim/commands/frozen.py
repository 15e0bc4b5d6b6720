"""`sparkmim knn` and `sparkmim probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..data.labels import fold, labelled_splits
from ..evaluation.frozen import Device, FrozenEncoder, LabelledFeatures, check_output, write_results
from ..evaluation.knn import NEIGHBOURS, Accuracy, accuracy, best_neighbours, knn_predictions, leave_one_out
from ..evaluation.linear_probe import PENALTIES, LinearProbe, fit_probes

FOLDS = 5
"""A fifth of the training images chooses a probe's penalty if there are no validation images."""


def knn(
    encoder: Path,
    data: Path,
    test_data: tuple[Path, ...] = (),
    output: Path | None = None,
    model: str | None = None,
    stage: int = -1,
    image_size: int | None = None,
    neighbours: tuple[int, ...] = NEIGHBOURS,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
) -> int:
    """Classify images by their nearest labelled neighbours, on the features of a frozen encoder.

    Cosine similarity, votes weighted by exp(similarity / 0.07). The number of neighbours is chosen by classifying each
    training image by all others.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights; timm; or none (random).
        data: labelled images: class folders, a CSV file, or a folder with train, val and test in it.
        test_data: labelled images to score, several sets together; test, else val, beside train if not given.
        output: folder for results.json.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the encoder does not know it.
        stage: which map, from 0, the finest, to -1, the deepest.
        image_size: pixels of the square view; that of the pretraining if not given.
        neighbours: numbers of neighbours to try.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights.
    """
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"--neighbours {' '.join(map(str, neighbours))} must be at least 1")
    check_output(output, "knn")
    splits = labelled_splits(data, None, test_data)
    frozen = FrozenEncoder(encoder, model, stage, image_size, batch_size, workers, device, seed)
    classes = len(splits.train.classes)
    train = frozen(splits.train)
    within = leave_one_out(train.values, train.labels, neighbours, classes=classes)
    if not within:
        raise ValueError(f"{len(train)} training images are too few for {min(neighbours)} neighbours; see --neighbours")
    chosen = best_neighbours(within)
    print(f"{len(train)} training images of {classes} classes, {train.values.shape[1]} features")
    results: dict[str, Any] = {
        **frozen.described,
        "classes": list(splits.train.classes),
        "train_images": len(train),
        "neighbours": chosen,
        "leave_one_out": {str(k): value._asdict() for k, value in within.items()},
    }
    scored = splits.test or [part for part in (splits.val,) if part is not None]
    by_k: dict[int, Accuracy] = {}
    if scored:
        test = frozen.joined(scored)
        predicted = knn_predictions(test.values, train.values, train.labels, neighbours, classes=classes)
        by_k = {k: accuracy(prediction, test.labels) for k, prediction in predicted.items()}
        results |= {
            "test_images": len(test),
            "test": by_k[chosen]._asdict(),
            "test_by_neighbours": {str(k): value._asdict() for k, value in by_k.items()},
        }
    print(f"{'neighbours':>10}  leave one out" + (f"  {len(test)} test images" if by_k else ""))
    for k, value in within.items():
        mark = " <- chosen" if k == chosen else ""
        print(f"{k:>10}  {value.top1:>12.2%} " + (f"  {by_k[k].top1:>10.2%}" if by_k else "") + mark)
    final = by_k[chosen] if by_k else within[chosen]
    print(f"\nk-NN: top-1 {final.top1:.2%}, mean over classes {final.class_mean:.2%}" + _skipped(frozen))
    write_results(output, "knn", results)
    return 0


def probe(
    encoder: Path,
    data: Path,
    val_data: Path | None = None,
    test_data: tuple[Path, ...] = (),
    output: Path | None = None,
    model: str | None = None,
    stage: int = -1,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 1,
    device: Device = "auto",
    seed: int = 0,
) -> int:
    """Fit a linear classifier to the features of a frozen encoder.

    Logistic regression on standardised features, fitted to convergence for each of several penalties. Validation images
    choose among them: a fifth of the training images, the same share of each class, if there are no others; the chosen
    classifier is then fitted to all training images.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights; timm; or none (random).
        data: labelled images: class folders, a CSV file, or a folder with train, val and test in it.
        val_data: labelled images that choose the penalty; val beside train if not given.
        test_data: labelled images to score, several sets together; test beside train if not given.
        output: folder for results.json.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the encoder does not know it.
        stage: which map, from 0, the finest, to -1, the deepest.
        image_size: pixels of the square view; that of the pretraining if not given.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
        seed: of random weights, and of which training images validate.
    """
    check_output(output, "probe")
    splits = labelled_splits(data, val_data, test_data)
    rest, held = (splits.train, splits.val) if splits.val is not None else fold(splits.train, FOLDS, 0, seed)
    frozen = FrozenEncoder(encoder, model, stage, image_size, batch_size, workers, device, seed)
    classes = len(splits.train.classes)
    fitted, val = frozen(rest), frozen(held)
    probes = fit_probes(fitted.values, fitted.labels, classes=classes)
    tried = [(candidate, _score(candidate, val)) for candidate in probes]
    best, chosen_by = max(tried, key=lambda pair: pair[1].top1)
    if splits.val is None:  # with the penalty chosen, the images that chose it are trained on as well
        fitted = LabelledFeatures(torch.cat([fitted.values, val.values]), torch.cat([fitted.labels, val.labels]))
        path = PENALTIES[: PENALTIES.index(best.penalty) + 1]
        best = fit_probes(fitted.values, fitted.labels, classes=classes, penalties=path)[-1]
    print(f"{len(fitted)} training images of {classes} classes, {fitted.values.shape[1]} features")
    print(f"{'penalty':>10}  {len(val)} validation images")
    for candidate, score in tried:
        print(f"{candidate.penalty:>10.3g}  {score.top1:>8.2%}" + " <- chosen" * (candidate.penalty == best.penalty))
    results: dict[str, Any] = {
        **frozen.described,
        "classes": list(splits.train.classes),
        "train_images": len(fitted),
        "val_images": len(val),
        "penalty": best.penalty,
        "train": _score(best, fitted)._asdict(),
        "val": chosen_by._asdict(),
        "val_by_penalty": {f"{candidate.penalty:.3g}": score._asdict() for candidate, score in tried},
    }
    if splits.test:
        test = frozen.joined(splits.test)
        final = _score(best, test)
        results |= {"test_images": len(test), "test": final._asdict()}
        where = f"{len(test)} test images"
    else:
        final = chosen_by
        where = "the validation images, which chose the penalty: a little too good"
    told = f"top-1 {final.top1:.2%}, mean over classes {final.class_mean:.2%}"
    print(f"\nlinear probe: {told} on {where}{_skipped(frozen)}")
    write_results(output, "probe", results)
    return 0


def _score(classifier: LinearProbe, images: LabelledFeatures) -> Accuracy:
    return accuracy(classifier(images.values).argmax(1), images.labels)


def _skipped(frozen: FrozenEncoder) -> str:
    return f"; {frozen.skipped} images skipped" if frozen.skipped else ""
