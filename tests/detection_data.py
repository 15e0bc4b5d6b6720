"""Tiny images of bright rectangles, and their annotations in each format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from helpers import TINY_FINETUNE

NAMES = ("dark", "light")

DETECT: dict[str, Any] = {
    **TINY_FINETUNE,
    "task": "detection",
    "model": f"{Path(__file__).absolute().with_name('segmentation_networks.py')}:network",
    "image_size": (64, 64),
    "batch_size": 4,
    "epochs": 2.0,
    "warmup_epochs": 0.5,
    "fpn_width": 32,
    "detections": 10,
}
"""Settings of a tiny run."""


class Shown(NamedTuple):
    """An image: its file, its size (height, width), and its objects: number of the class, and edges."""

    file: str
    size: tuple[int, int]
    objects: tuple[tuple[int, tuple[int, int, int, int]], ...]


def make_images(folder: Path, count: int = 6, size: tuple[int, int] = (36, 44), seed: int = 0) -> list[Shown]:
    """Write images of one to three rectangles."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        pixels = np.full((*size, 3), 30, np.uint8)
        objects = []
        for place in range(1 + number % 3):
            label = int(generator.integers(2))
            width, height = (int(v) for v in generator.integers(8, 14, 2))
            left = int(generator.integers(1 + 14 * place, 3 + 14 * place))
            top = int(generator.integers(1, size[0] - height))
            box = (left, top, min(left + width, size[1]), top + height)
            pixels[box[1] : box[3], box[0] : box[2]] = (130, 230)[label]
            objects.append((label, box))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        found.append(Shown(f"{number}.png", size, tuple(objects)))
    return found


def write_voc(root: Path, images: Sequence[Shown], folder: str = "Annotations") -> Path:
    """Write XML files, whose pixels are counted from 1."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for image in images:
        objects = "\n".join(
            f"<object><name>{NAMES[label]}</name><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for label, box in image.objects
        )
        (root / folder / image.file).with_suffix(".xml").write_text(
            f"<annotation>\n<filename>{image.file}</filename>\n<size><width>{image.size[1]}</width>"
            f"<height>{image.size[0]}</height><depth>3</depth></size>\n{objects}\n</annotation>\n"
        )
    return root


def as_coco(images: Sequence[Shown], *, masks: bool = True) -> dict[str, Any]:
    """Return a COCO file, whose categories are numbered 3 and 7."""
    rows: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for label, (left, top, right, bottom) in image.objects:
            box = [left, top, right - left, bottom - top]
            row: dict[str, Any] = {"id": len(rows) + 1, "image_id": number, "category_id": (3, 7)[label], "bbox": box}
            if masks:
                row["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
            rows.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    return {
        "images": [
            {"id": number, "file_name": image.file, "height": image.size[0], "width": image.size[1]}
            for number, image in enumerate(images, start=1)
        ],
        "categories": [{"id": 3, "name": NAMES[0]}, {"id": 7, "name": NAMES[1]}],
        "annotations": rows,
    }


def write_coco(root: Path, images: Sequence[Shown], name: str = "annotations.json", **options: Any) -> Path:
    """Write a COCO file."""
    (root / name).write_text(json.dumps(as_coco(images, **options)))
    return root / name


def write_yolo(labels: Path, images: Sequence[Shown], *, polygons: bool = False) -> None:
    """Write text files."""
    labels.mkdir(parents=True, exist_ok=True)
    for image in images:
        height, width = image.size
        lines = []
        for label, (left, top, right, bottom) in image.objects:
            if polygons:
                numbers = [left / width, top / height, right / width, top / height]
                numbers += [right / width, bottom / height, left / width, bottom / height]
            else:
                numbers = [(left + right) / 2 / width, (top + bottom) / 2 / height]
                numbers += [(right - left) / width, (bottom - top) / height]
            lines.append(" ".join([str(label), *(f"{v:.9f}" for v in numbers)]))
        (labels / image.file).with_suffix(".txt").write_text("\n".join(lines))
