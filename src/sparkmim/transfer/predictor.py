"""Predict the classes of images with a fine-tuned classifier."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.run_folder import RunFolder
from ..data.config import ViewConfig
from ..data.sources.folder import find_images
from ..training.config import Device, LoopConfig
from ..utils.devices import pick_device
from ..utils.fields import validate_as
from ..utils.io import write_text
from ..utils.logging import log
from ..utils.text import printable
from .model_file import load_model
from .outputs import compute_outputs


class Prediction(NamedTuple):
    """Prediction for one image.

    Attributes:
        image: its path, relative to the folder.
        classes: the most likely classes in descending order; empty if the image cannot be read.
        probabilities: their probabilities.
        error: why the image cannot be read, else empty.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""


def predict(
    run: str | Path,
    data: str | Path,
    *,
    top_k: int = 1,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    device: Device = "auto",
) -> list[Prediction]:
    """Classify the images of a folder, in the order of their names; unreadable ones are logged and have an error.

    Args:
        run: folder of a fine-tuning run, or its `model.safetensors`.
        data: folder of images, flat or nested.
        top_k: number of classes to return for each image.
        image_size: side of the square view in pixels; that of the fine-tuning by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.

    Raises:
        ValueError: for an invalid setting, a missing classifier, or if no image can be read.
    """
    run = Path(run)
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ViewConfig, workers=workers)
    path = RunFolder(run).classifier if run.is_dir() else run
    saved = load_model(path)
    if "classes" not in saved.targets:
        raise ValueError(f"expected a classifier, got a model of {type(saved.task).__name__}: {path}")
    names = saved.targets["classes"]
    if not 1 <= top_k <= len(names):
        raise ValueError(f"--top-k {top_k} must be 1 to {len(names)}, the number of classes")
    view = saved.view if image_size is None else replace(saved.view, image_size=(image_size, image_size))
    source = find_images(Path(data))
    where = pick_device(device)
    found = compute_outputs(
        saved.module.to(where),
        source,
        view,
        saved.in_chans,
        batch_size=batch_size,
        workers=workers,
        device=where,
    )
    if not found.indices:
        raise ValueError(f"none of the {len(source)} images can be read; {found.broken[0][1]}")
    for index, error in found.broken:
        log.warning(f"skipped {printable(source.name(index))}: {error}")
    likely = found.values.softmax(1).topk(top_k)
    predictions = {index: Prediction(source.name(index), (), (), error) for index, error in found.broken}
    for index, classes, values in zip(found.indices, likely.indices.tolist(), likely.values.tolist(), strict=True):
        predictions[index] = Prediction(source.name(index), tuple(names[number] for number in classes), tuple(values))
    return [predictions[index] for index in range(len(source))]


def write_csv(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Write predictions as a CSV file: a row for each image with its classes, their probabilities, and the error."""
    top_k = max(len(prediction.classes) for prediction in predictions)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("class", "probability")]
    writer.writerow(["image", "class", "probability", *more, "error"])
    for image, classes, probabilities, error in predictions:
        pairs = zip(classes, probabilities, strict=True)
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6f}")]
        writer.writerow([image, *(cells or [""] * (2 * top_k)), " ".join(error.split())])
    write_text(Path(path), text.getvalue())
