"""COCO's average precision of detections, by pycocotools, with what it says of classes, thresholds and images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data.detection.coco_masks import run_lengths
from ...data.detection.table import DetectionImages
from .masks import paste
from .whole import Detections

Kind = Literal["bbox", "segm"]

AREAS = ("all", "small", "medium", "large")
"""COCO's: objects of any area, below 32 x 32 pixels, to 96 x 96, and above."""

HALF, THREE_QUARTERS = 0, 5
"""Places of an overlap of 0.5 and 0.75 among COCO's ten."""


@dataclass(frozen=True)
class Score:
    """Average precisions, each a mean over the classes that there are; None where there are none.

    Attributes:
        map: mean over overlaps (intersection over union) of 0.5, 0.55, ..., 0.95.
        map50: at an overlap of 0.5.
        map75: at an overlap of 0.75.
        map_small, map_medium, map_large: `map` of objects by their area.
        recall: highest recall, mean over the ten overlaps: COCO's AR at the most detections of an image.
        map_of_classes, map50_of_classes: of each class.
        threshold: score from which on the F1 of all classes together is highest, at an overlap of 0.5.
        precision, sensitivity: share of the detections from there on that are right; of the objects that they find.
        found, false, objects: for each class the hits, the false alarms, and the objects, from that score on.
        curves: precision of each class at recalls of 0, 0.01, ..., 1, at an overlap of 0.5; None without objects.
    """

    map: float
    map50: float
    map75: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    recall: float
    map_of_classes: list[float | None]
    map50_of_classes: list[float | None]
    threshold: float
    precision: float
    sensitivity: float
    found: list[int]
    false: list[int]
    objects: list[int]
    curves: list[list[float] | None]


def score_of(found: Sequence[Detections], images: DetectionImages, kind: Kind, most: int) -> Score:
    """Return the scores of detections.

    Args:
        found: of each image.
        images: with their objects.
        kind: overlaps of boxes, "bbox", or of masks, "segm".
        most: detections of an image that count, the ones of the highest scores; COCO's scores are of 100.
    """
    evaluation = evaluate(found, images, kind, most)
    table = evaluation.eval["precision"][..., -1]  # (overlap, recall, class, area)
    recall = evaluation.eval["recall"][..., 0, -1]  # (overlap, class)
    threshold = best_threshold(evaluation, len(images))
    hits, alarms, objects = counts_at(evaluation, threshold, len(images), len(images.categories))
    return Score(
        map=_mean(table[:, :, :, 0]) or 0.0,
        map50=_mean(table[HALF, :, :, 0]) or 0.0,
        map75=_mean(table[THREE_QUARTERS, :, :, 0]) or 0.0,
        map_small=_mean(table[:, :, :, 1]),
        map_medium=_mean(table[:, :, :, 2]),
        map_large=_mean(table[:, :, :, 3]),
        recall=_mean(recall) or 0.0,
        map_of_classes=[_mean(table[:, :, k, 0]) for k in range(table.shape[2])],
        map50_of_classes=[_mean(table[HALF, :, k, 0]) for k in range(table.shape[2])],
        threshold=threshold,
        precision=sum(hits) / max(1, sum(hits) + sum(alarms)),
        sensitivity=sum(hits) / max(1, sum(objects)),
        found=hits,
        false=alarms,
        objects=objects,
        curves=[_curve(table[HALF, :, k, 0]) for k in range(table.shape[2])],
    )


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of those that are defined, which COCO marks by -1 where they are not."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _curve(values: np.ndarray) -> list[float] | None:
    return None if (values < 0).all() else [round(float(v), 4) for v in values]


def evaluate(found: Sequence[Detections], images: DetectionImages, kind: Kind, most: int) -> Any:
    """Return pycocotools' evaluation. Images are numbered from 1, classes from 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, predicted = COCO(), COCO()
    truth.dataset = {**_frame(images), "annotations": _objects(images, kind)}
    predicted.dataset = {**_frame(images), "annotations": _detections(found, images, kind)}
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        predicted.createIndex()
        evaluation = COCOeval(truth, predicted, kind)
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _frame(images: DetectionImages) -> dict[str, Any]:
    sizes = images.sizes.tolist()
    return {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)],
        "categories": [{"id": i, "name": category.name} for i, category in enumerate(images.categories, start=1)],
    }


def _objects(images: DetectionImages, kind: Kind) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, (one, (height, width)) in enumerate(zip(images.objects, images.sizes.tolist(), strict=True), start=1):
        for box, label, ignored, mask in zip(*one, strict=True):
            row = {
                "id": len(rows) + 1,
                "image_id": image,
                "category_id": int(label) + 1,
                "iscrowd": int(ignored),
                **box_entry(box),
            }
            if kind == "segm" or mask is not None:
                row["segmentation"], row["area"] = _encoded(mask, box, height, width)  # whose area COCO takes
            rows.append(row)
    return rows


def _encoded(mask: Any, box: np.ndarray, height: int, width: int) -> tuple[Any, float]:
    """Return run lengths of a mask and its area; those of the box of an ignored object that has none."""
    from pycocotools import mask as coco

    if mask is None:
        left, top, right, bottom = box.tolist()
        mask = [[left, top, right, top, right, bottom, left, bottom]]
    found = run_lengths(mask, height, width)
    return found, float(coco.area(found))


def _detections(found: Sequence[Detections], images: DetectionImages, kind: Kind) -> list[dict[str, Any]]:
    from pycocotools import mask as coco

    rows: list[dict[str, Any]] = []
    for image, (one, (height, width)) in enumerate(zip(found, images.sizes.tolist(), strict=True), start=1):
        masks = paste(one, height, width) if kind == "segm" else [None] * len(one.scores)
        for box, value, label, mask in zip(one.boxes, one.scores, one.labels, masks, strict=True):
            row = {
                "id": len(rows) + 1,
                "image_id": image,
                "category_id": int(label) + 1,
                "score": float(value),
                **box_entry(box),
            }
            if kind == "segm":
                row["segmentation"], row["area"] = mask, float(coco.area(mask))
            rows.append(row)
    return rows


def box_entry(box: np.ndarray) -> dict[str, Any]:
    """Return a box as COCO writes it: left, top, width and height, and its area."""
    left, top, right, bottom = (float(v) for v in box)
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def _matches(evaluation: Any, images: int) -> dict[tuple[int, int], dict[str, Any]]:
    """Return pycocotools' matches by class and image, from 0, for objects of any area."""
    areas = len(evaluation.params.areaRng)
    return {
        (place // (images * areas), place % images): match
        for place, match in enumerate(evaluation.evalImgs)
        if match is not None and place // images % areas == 0
    }


def best_threshold(evaluation: Any, images: int) -> float:
    """Return the score from which on the F1 of all classes together is highest, at an overlap of 0.5."""
    scores, right, objects = [np.zeros(0)], [np.zeros(0, bool)], 0
    for match in _matches(evaluation, images).values():
        counted = ~match["dtIgnore"][HALF].astype(bool)
        scores.append(np.array(match["dtScores"])[counted])
        right.append(match["dtMatches"][HALF][counted] > 0)
        objects += int((np.array(match["gtIgnore"]) == 0).sum())
    values, hits = np.concatenate(scores), np.concatenate(right)
    if not hits.any():
        return 0.5
    order = np.argsort(-values, kind="stable")
    so_far = hits[order].cumsum()
    f1 = 2 * so_far / (np.arange(1, len(order) + 1) + objects)
    last = np.append(np.diff(values[order]) != 0, True)  # detections of one score count together
    return float(values[order][np.where(last, f1, -1).argmax()])


def counts_at(evaluation: Any, threshold: float, images: int, classes: int) -> tuple[list[int], list[int], list[int]]:
    """Return for each class the hits and the false alarms from a score on, and the objects."""
    hits, alarms, objects = [0] * classes, [0] * classes, [0] * classes
    for (label, _), match in _matches(evaluation, images).items():
        counted = (np.array(match["dtScores"]) >= threshold) & ~match["dtIgnore"][HALF].astype(bool)
        right = match["dtMatches"][HALF] > 0
        hits[label] += int((counted & right).sum())
        alarms[label] += int((counted & ~right).sum())
        objects[label] += int((np.array(match["gtIgnore"]) == 0).sum())
    return hits, alarms, objects


@dataclass(frozen=True)
class Verdict:
    """How the detections of an image compare with its objects.

    Attributes:
        hits: of each detection, whether it matches an object of its class.
        missed: numbers of the objects that no detection matches.
    """

    hits: np.ndarray
    missed: list[int]


OVERLAP = 0.5
"""Intersection over union from which on a detection matches an object."""


def compare(found: Detections, boxes: np.ndarray, labels: np.ndarray, ignored: np.ndarray) -> Verdict:
    """Match detections with objects at an overlap of 0.5, those of the highest scores first, as COCO does.

    Detections that match an ignored object count as hits: they are no false alarms.
    """
    hits = np.zeros(len(found.scores), bool)
    taken = np.zeros(len(boxes), bool)
    overlaps = box_overlaps(found.boxes, boxes)
    for place in np.argsort(-found.scores, kind="stable").tolist():
        own = np.where((labels == found.labels[place]) & ~taken, overlaps[place], 0)
        wanted = np.where(ignored, 0, own)
        best = wanted if (wanted >= OVERLAP).any() else own
        if len(best) and best.max() >= OVERLAP:
            hits[place] = True
            taken[int(best.argmax())] |= not ignored[int(best.argmax())]
    return Verdict(hits, np.flatnonzero(~taken & ~ignored).tolist())


def box_overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return intersection over union of each pair of boxes, `(N, M)`."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inner = (high - low).clip(min=0).prod(2)
    areas = [(part[:, 2:] - part[:, :2]).prod(1) for part in (one, other)]
    found: np.ndarray = inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9)
    return found
