"""The public function :func:`detect`: objects of new images, as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...data.config import Pages, ViewConfig, chosen_files
from ...data.decoding.encoded import UnreadableImage
from ...data.detection.coco_masks import require_coco
from ...data.segmentation.classes import default_color
from ...data.sources.address import open_source
from ...data.sources.base import ImageSource, open_image
from ...data.tables import named
from ...evaluation.features import log_places
from ...models.factory import require_image_size
from ...reporting.boxes import Drawn
from ...reporting.reconstructions import save_png
from ...training.config import Device
from ...utils.devices import pick_device
from ...utils.io import write_text
from ...utils.logging import log
from ...utils.text import counted, printable, verb
from ..model_file import SavedModel, load_for_prediction
from ..predictor import FORMULA, csv_line
from ..segmentation.pictures import picture_of
from ..segmentation.predict import inside, require_outside
from ..tasks.detection import Detection
from .masks import paste
from .pictures import draw_found
from .scores import box_entry
from .whole import Detections, each_detected

JSON_FILE, CSV_FILE, OVERLAYS = "detections.json", "detections.csv", "overlays"
"""What is written to the folder."""

DRAWN_FROM = 0.5
"""Least score of detections in pictures, unless a higher one is asked for."""


class Detected(NamedTuple):
    """What is found in an image.

    Attributes:
        image: its path, relative to the folder.
        boxes: left, top, right and bottom edge in pixels of the image, for each object.
        classes: of each.
        scores: of each, from the highest on.
        masks: of each, COCO's compressed run lengths; empty if the model finds boxes alone.
        error: why the image cannot be read, else empty.
    """

    image: str
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    classes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    masks: tuple[dict[str, Any], ...] = ()
    error: str = ""


def detect(
    run: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    min_score: float = 0.0,
    draw: bool = False,
    tiles: bool = False,
    image_size: int | None = None,
    batch_size: int = 8,
    workers: int = 1,
    device: Device = "auto",
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    model: str | None = None,
    trust: bool = False,
) -> list[Detected]:
    """Find the objects in the images of a folder, as validation and test do.

    `detections.json` is a COCO file of images, categories and annotations with scores, `detections.csv` a table with a
    row for each object. Both hold all that the detector returns, scores from 0.05 on, unless `min_score` is higher:
    average precision is computed from all of them.

    Args:
        run: folder of a fine-tuning for detection or instance segmentation, or its `model.safetensors`.
        data: folder of images, flat or nested, or an address.
        output: folder to write to; None to write nothing.
        min_score: least score of an object.
        draw: write pictures of the images with what is found too, scores from 0.5 on, into `overlays`.
        tiles: cut images that are larger than a view into overlapping tiles at their own resolution, instead of scaling
            them down; for a detector that was trained on images of the size of a tile.
        image_size: side of the square into which images are fitted, in pixels; the size of the training's views by
            default.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        pages: what the pages of a TIFF file are, "channels" or "first"; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        model: the network, where the file names code: `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: run the code of a network that the file names, where `model` does not.

    Returns:
        What is found, in the order of the images' names.

    Raises:
        ValueError: for an invalid setting, a model of another task, images that the network does not take, files that
            would be replaced, or if no image can be read.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score {min_score:g} is not a score, 0 to 1")
    if draw and output is None:
        raise ValueError("draw=True requires output, the folder to draw to")
    saved, path = load_for_prediction(
        run,
        model,
        trust=trust,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        files=chosen_files(pages, nodata, max_pixels),
    )
    if not isinstance(saved.task, Detection):
        raise ValueError(f"{path} is a model of {type(saved.task).__name__}, not of a detection; use sparkmim.predict")
    require_coco("detection needs")
    view = saved.view
    if view.pages == "images":
        raise ValueError("--pages images: objects are found in files of one image each; use --pages channels or first")
    require_image_size(saved.module, saved.module, path.name, saved.in_chans, view.image_size)
    source = open_source(data)
    log_places(source)
    folder = None if output is None else Path(output).expanduser()
    if folder is not None:
        _require_folder(folder, data)
    found, sizes = _find(saved, source, min_score, batch_size, workers, device, tiles=tiles)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / JSON_FILE, json.dumps(as_coco(found, sizes, saved.targets["categories"])))
        write_text(folder / CSV_FILE, _table(found))
        if draw:
            _draw(saved, source, found, folder / OVERLAYS, view, max(min_score, DRAWN_FROM))
    return found


def _find(
    saved: SavedModel,
    source: ImageSource,
    min_score: float,
    batch_size: int,
    workers: int,
    device: Device,
    *,
    tiles: bool,
) -> tuple[list[Detected], list[tuple[int, int]]]:
    """Return what is found in each image, and each one's height and width, 0 where it cannot be read."""
    where = pick_device(device)
    names = [category["name"] for category in saved.targets["categories"]]
    found: list[Detected] = []
    sizes: list[tuple[int, int]] = []
    for one, row in each_detected(
        saved.module.to(where),
        source,
        saved.view,
        saved.in_chans,
        batch_size=batch_size,
        workers=workers,
        device=where,
        tiles=tiles,
    ):
        name = source.name(one.number)
        sizes.append(one.size)
        if row is None:
            log.warning(f"skipped {printable(name)}: {one.error}")
            found.append(Detected(name, error=one.error))
        else:
            found.append(_detected(name, row, one.size, names, min_score))
    if all(one.error for one in found):
        raise ValueError(f"none of the {len(source)} images can be read; {found[0].error}")
    return found, sizes


def _detected(name: str, row: Tensor, size: tuple[int, int], names: Sequence[str], min_score: float) -> Detected:
    own = Detections.of(row).at_least(min_score)
    boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in own.boxes)
    masks = () if own.masks is None else tuple(paste(own, *size))
    return Detected(name, boxes, tuple(names[label] for label in own.labels), tuple(map(float, own.scores)), masks)


def _require_folder(folder: Path, data: str | Path) -> None:
    """Raise unless files may be written to a folder: not a file, not within the images, and none there already.

    Raises:
        ValueError: naming it.
    """
    if folder.is_file() or folder.suffix.lower() in (".csv", ".json"):
        raise ValueError(f"--output {folder}: a detection writes {JSON_FILE} and {CSV_FILE}; name a folder for them")
    require_outside(folder, data)
    there = [name for name in (JSON_FILE, CSV_FILE, OVERLAYS) if (folder / name).exists()]
    if there:
        raise ValueError(f"--output {folder} holds {named(there)} already; name another folder, or delete them")


def as_coco(
    found: Sequence[Detected], sizes: Sequence[tuple[int, int]], categories: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return detections as a COCO file: images are numbered from 1 in their order, categories as in training.

    Args:
        found: in each image.
        sizes: height and width of each.
        categories: with id and name.
    """
    numbers = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (one, (height, width)) in enumerate(zip(found, sizes, strict=True), start=1):
        if one.error:
            continue
        images.append({"id": number, "file_name": one.image, "height": height, "width": width})
        masks: Sequence[dict[str, Any] | None] = one.masks or [None] * len(one.boxes)
        for box, name, score, mask in zip(one.boxes, one.classes, one.scores, masks, strict=True):
            entry = {"image_id": number, "category_id": numbers[name], "score": score, "iscrowd": 0}
            annotation = {"id": len(annotations) + 1, **entry, **box_entry(np.array(box))}
            if mask is not None:
                from pycocotools import mask as coco

                annotation["area"] = float(coco.area(mask))
                annotation["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
            annotations.append(annotation)
    return {"images": images, "categories": list(categories), "annotations": annotations}


def _table(found: Sequence[Detected]) -> str:
    lines = [csv_line(["image", "class", "score", "left", "top", "right", "bottom", "error"])]
    for one in found:
        for box, name, score in zip(one.boxes, one.classes, one.scores, strict=True):
            lines.append(csv_line([one.image, name, f"{score:.6f}", *(f"{edge:.2f}" for edge in box), ""]))
        if one.error:
            lines.append(csv_line([one.image, *[""] * 6, " ".join(one.error.split())]))
    formulas = {name for one in found for name in (one.image, *one.classes) if name.startswith(FORMULA)}
    if formulas:
        log.warning(
            f"{CSV_FILE}: {counted(len(formulas), 'name')} {verb(len(formulas), 'begin')} as a formula does; open it "
            "in a spreadsheet as text only"
        )
    return "".join(lines)


def _draw(
    saved: SavedModel, source: ImageSource, found: Sequence[Detected], folder: Path, view: ViewConfig, least: float
) -> None:
    colors = {entry["name"]: default_color(i) for i, entry in enumerate(saved.targets["categories"], start=1)}
    for index, one in enumerate(found):
        if one.error:
            continue
        try:
            pixels = open_image(source, index, view).decode(saved.in_chans)
        except UnreadableImage:  # since objects were found in it
            continue
        shown = [place for place, score in enumerate(one.scores) if score >= least]
        boxes = [
            Drawn(np.array(one.boxes[i]), f"{one.classes[i]} {one.scores[i]:.0%}", colors[one.classes[i]])
            for i in shown
        ]
        picture = draw_found(picture_of(pixels, view), boxes, [one.masks[i] for i in shown] if one.masks else [])
        target = folder / f"{inside(one.image)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_png(picture, target)
