"""Predict the classes of images with a fine-tuned network, or what else it was trained for."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.metadata import read_network_metadata
from ..checkpoints.weights import is_safetensors
from ..data.config import Pages, chosen_files
from ..data.sources.address import open_source
from ..data.sources.base import ImageSource
from ..data.sources.pages import by_page
from ..data.volumes.opening import are_volumes, open_prepared
from ..evaluation.features import log_places
from ..models.factory import require_image_size
from ..training.config import Device
from ..utils.devices import pick_device
from ..utils.io import write_text
from ..utils.logging import log
from ..utils.text import counted, printable, verb
from .config import SEGMENTATION
from .model_file import SavedModel, load_for_prediction, model_file, recorded_volumes
from .outputs import compute_outputs

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets compute."""


class Prediction(NamedTuple):
    """Prediction for one image.

    Attributes:
        image: its path, relative to the folder.
        classes: of a classifier the most likely classes in descending order; empty if the image cannot be read.
        probabilities: their probabilities.
        values: of another task its predictions; empty if the image cannot be read.
        error: why the image cannot be read, else empty.
    """

    image: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
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
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    model: str | None = None,
    trust: bool = False,
) -> list[Prediction]:
    """Predict for the images of a folder, in the order of their names; unreadable ones are logged and have an error.

    Args:
        run: folder of a fine-tuning run, or its `model.safetensors`.
        data: folder of images, flat or nested, or an address.
        top_k: number of classes that a classifier returns for each image.
        image_size: side of the square view in pixels; that of the fine-tuning by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        pages: what the pages of a TIFF file are, "channels", "images" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        model: the network, where the file names code: `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: run the code of a network or a task that the file names, where `model` does not.

    Raises:
        ValueError: for an invalid setting, a missing classifier, or if no image can be read.
    """
    saved, path = load_for_prediction(
        run,
        model,
        trust=trust,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        files=chosen_files(pages, nodata, max_pixels),
    )
    if task_of(path) == SEGMENTATION or 2 not in saved.task.dims:
        raise ValueError(f"{path} is a model of {type(saved.task).__name__}, which writes masks: use sparkmim.segment")
    if "categories" in saved.targets:
        raise ValueError(f"{path} is a model of {type(saved.task).__name__}, which finds boxes: use sparkmim.detect")
    names = saved.targets.get("classes")
    if names is None and top_k != 1:
        raise ValueError(f"--top-k {top_k} is for classifiers; {path} is a model of {type(saved.task).__name__}")
    if names is not None and not 1 <= top_k <= len(names):
        raise ValueError(f"--top-k {top_k} must be 1 to {len(names)}, the number of classes")
    view = saved.view
    require_image_size(saved.module, saved.module, path.name, saved.in_chans, view.image_size)
    source = by_page(_open(data, saved, path), saved.in_chans, view)
    log_places(source)
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
    predictions = {index: Prediction(source.name(index), error=error) for index, error in found.broken}
    if names is None:
        table = saved.task.predictions(found.values, saved.targets).tolist()
        for index, row in zip(found.indices, table, strict=True):
            predictions[index] = Prediction(source.name(index), values=tuple(row))
        return [predictions[index] for index in range(len(source))]
    likely = found.values.softmax(1).topk(top_k)
    for index, classes, values in zip(found.indices, likely.indices.tolist(), likely.values.tolist(), strict=True):
        predictions[index] = Prediction(source.name(index), tuple(names[number] for number in classes), tuple(values))
    return [predictions[index] for index in range(len(source))]


def _open(data: str | Path, saved: SavedModel, path: Path) -> ImageSource:
    """Return the images at an address; volumes are prepared as those that the network was fine-tuned on.

    Raises:
        ValueError: for volumes where the network takes images, or images where it takes volumes.
    """
    preparation = recorded_volumes(saved, path)
    if preparation is not None:
        return open_prepared(data, preparation)
    if are_volumes(data):
        raise ValueError(f"{data} holds volumes, and {path} is a model of images")
    return open_source(data)


def task_of(run: str | Path) -> str | None:
    """Return the task of a run's folder, or of a model's file, where it is not a classification; None of nothing."""
    path = model_file(run)
    if not path.is_file() or not is_safetensors(path):
        return None
    task = read_network_metadata(path).get("task")
    return None if task is None else str(task)


def write_csv(predictions: Sequence[Prediction], path: str | Path) -> None:
    """Write predictions as a CSV file: a row for each image with its classes and their probabilities, or its values,
    and the error."""
    top_k = max(len(prediction.classes) for prediction in predictions)
    count = max(len(prediction.values) for prediction in predictions)
    ranked = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
    columns = ranked or [f"prediction_{number}" for number in range(1, count + 1)]
    lines = [csv_line(["image", *(name.removesuffix("_1") for name in columns), "error"])]
    for image, classes, probabilities, values, error in predictions:
        pairs = zip(classes, probabilities, strict=True)
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6f}")]
        cells += [f"{value:.6g}" for value in values]
        lines.append(csv_line([image, *(cells or [""] * len(columns)), " ".join(error.split())]))
    write_text(Path(path), "".join(lines))
    formulas = sum(name.startswith(FORMULA) for image, classes, *_ in predictions for name in (image, *classes))
    if formulas:
        log.warning(
            f"{path}: {counted(formulas, 'name')} {verb(formulas, 'begin')} as a formula does; open the file in a "
            "spreadsheet as text only"
        )


def csv_line(cells: Sequence[str]) -> str:
    """Return a row of a CSV file, whose cells hold any character: line ends of both kinds are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # it quotes the characters of its own line end
    return f"{text.getvalue().removesuffix(chr(13) + chr(10))}\n"
