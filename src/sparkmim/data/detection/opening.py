"""Find the annotations in a folder or file, and read its splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...utils.text import printable
from ..seeding import Stream, keyed_generator
from ..tables import SPLIT_NAMES, named
from ..targets import Splits
from .annotations import Annotations
from .coco import read_coco
from .table import DetectionImages, categories_of, table_of
from .voc import find_folders as find_voc
from .voc import find_lists, read_voc
from .yolo import YoloPlace, read_class_list, read_yaml, read_yolo
from .yolo import find_folders as find_yolo

Reader = Callable[[], Annotations]

COCO_FILE = "_annotations.coco.json"
"""In the folder of the images, as Roboflow writes it."""

EXPECTED = (
    "a folder of PASCAL VOC (Annotations, JPEGImages and ImageSets/Main, or XML files beside images), a COCO file "
    "(.json) or a folder of those, YOLO's data.yaml, or a folder with images and labels"
)


class Source(NamedTuple):
    """Which annotations are wanted.

    Attributes:
        data: to train on: a folder or file.
        val_data: to validate with, or None.
        test_data: to test with, or None.
        classes: file of the names of the classes, or None.
        image_folder: of the images of COCO files, or None.
        val_share: of the training images, to validate with where the data have no split for it.
    """

    data: str
    val_data: str | None
    test_data: str | None
    classes: str | None
    image_folder: str | None
    val_share: float


def readers_of(data: str | Path, option: str, images: Path | None) -> dict[str, Reader]:
    """Return what reads each split of a data set: of "train", "val" and "test", or "all" where there are none.

    Raises:
        ValueError: if there is no data set, with what is expected.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise ValueError(f"{printable(str(path))} does not exist; {option} takes {EXPECTED}")
    if path.is_file():
        if path.suffix.lower() == ".json":
            return {"all": partial(read_coco, path, images)}
        if path.suffix.lower() in (".yaml", ".yml"):
            return {split: partial(read_yolo, place) for split, place in read_yaml(path).items()}
        raise ValueError(f"{printable(str(path))} is a file of another kind; {option} takes {EXPECTED}")
    found = _in_folder(path, images)
    if not found:
        there = sorted(entry.name for entry in path.iterdir())
        raise ValueError(
            f"{printable(str(path))} holds no annotations that are known, but {named(there) or 'nothing'}; {option} "
            f"takes {EXPECTED}"
        )
    return found


def _in_folder(root: Path, images: Path | None) -> dict[str, Reader]:
    folders = find_voc(root)
    if folders is not None:
        lists = find_lists(root)
        return {split: partial(read_voc, folders, lists[split]) for split in lists} or {
            "all": partial(read_voc, folders, None)
        }
    for name in ("data.yaml", "data.yml", "dataset.yaml", f"{root.name}.yaml"):
        if (root / name).is_file():
            return {split: partial(read_yolo, place) for split, place in read_yaml(root / name).items()}
    coco = coco_files(root)
    if coco:
        return {split: partial(read_coco, path, images) for split, path in coco.items()}
    yolo: Mapping[str, YoloPlace] = find_yolo(root)
    if yolo:
        return {split: partial(read_yolo, place) for split, place in yolo.items()}
    split_folders = {name: root / name for name in SPLIT_NAMES if (root / name).is_dir()}
    beside = {SPLIT_NAMES[name]: find_voc(path) for name, path in split_folders.items()}
    found = {split: partial(read_voc, at, None) for split, at in beside.items() if at is not None}
    return dict(found) if "train" in found else {}


def coco_files(root: Path) -> dict[str, Path]:
    """Return the COCO file of each split; "all" for the only one of a folder.

    Raises:
        ValueError: if several may be of one split.
    """
    inside = {name: root / name / COCO_FILE for name in SPLIT_NAMES if (root / name / COCO_FILE).is_file()}
    if inside:
        return {SPLIT_NAMES[name]: path for name, path in inside.items()}
    if (root / COCO_FILE).is_file():
        return {"all": root / COCO_FILE}
    files = [
        path for folder in (root / "annotations", root) if folder.is_dir() for path in sorted(folder.glob("*.json"))
    ]
    objects = [path for path in files if path.stem.startswith("instances_")]
    files = objects or [
        path for path in files if not path.stem.startswith(("captions_", "person_keypoints_", "image_info_"))
    ]
    if len(files) == 1:
        return {"all": files[0]}
    found: dict[str, list[Path]] = {}
    for path in files:
        words = path.stem.lower().removeprefix("instances_")
        split = next((SPLIT_NAMES[name] for name in ("train", "val", "test", "dev") if words.startswith(name)), None)
        if split is not None:
            found.setdefault(split, []).append(path)
    several = [paths for paths in found.values() if len(paths) > 1]
    if several or (files and "train" not in found):
        raise ValueError(
            f"{printable(str(root))} holds several COCO files: {named([path.name for path in files])}; name one by "
            "--data, and others by --val-data and --test-data"
        )
    return {split: paths[0] for split, paths in found.items()}


def read_splits(source: Source, seed: int, *, hold_out: bool = True) -> Splits[DetectionImages]:
    """Read the splits of a data set.

    Args:
        source: which.
        seed: of the share that is held out.
        hold_out: draw images to validate with where the data have none.

    Raises:
        ValueError: naming what is wrong with the data.
    """
    images = None if source.image_folder is None else Path(source.image_folder).expanduser()
    own = readers_of(source.data, "--data", images)
    train = own.get("train") or own.get("all")
    if train is None:
        raise ValueError(
            f"{printable(str(source.data))} holds annotations of {named(sorted(own))} alone; --data takes those of the "
            "training images"
        )
    readers: dict[str, tuple[Reader, str]] = {"train": (train, "--data")}
    for split, given in (("val", source.val_data), ("test", source.test_data)):
        if given is not None:
            others = readers_of(given, f"--{split}-data", images)
            wanted = others.get(split) or others.get("all") or next(iter(others.values()))
            readers[split] = (wanted, f"--{split}-data")
        elif split in own:
            readers[split] = (own[split], "--data")
    read = {split: (reader(), option) for split, (reader, option) in readers.items()}
    listed = None if source.classes is None else read_class_list(Path(source.classes).expanduser())
    same = [annotations for annotations, option in read.values() if option == "--data"]
    categories = categories_of(same, listed)
    first = read["train"][0].counted_from
    tables = {
        split: table_of(annotations, categories, option, first if annotations.kind == "VOC" else None)
        for split, (annotations, option) in read.items()
    }
    for split, (_, option) in read.items():
        if not any(tables[split].counts()):
            raise ValueError(
                f"{option}: the images to {'train on' if split == 'train' else split} show no object, so that nothing "
                "can be learned or scored; add annotations"
            )
    trained, val, test = tables["train"], tables.get("val"), tables.get("test")
    if val is None and hold_out and source.val_share:
        trained, val = _held_out(trained, source.val_share, seed)
    return Splits(trained, val, test)


def _held_out(images: DetectionImages, share: float, seed: int) -> tuple[DetectionImages, DetectionImages]:
    """Return images to train on and a share to validate with, drawn by the seed.

    Raises:
        ValueError: if either would have no object.
    """
    count = max(1, round(share * len(images)))
    order = torch.randperm(len(images), generator=keyed_generator(seed, Stream.HELD_OUT)).numpy()
    train, val = images.subset(np.sort(order[count:])), images.subset(np.sort(order[:count]))
    if not any(train.counts()) or not any(val.counts()):
        raise ValueError(
            f"of {len(images)} images, --val-share {share:g} draws {count} to validate with, and a part has no object; "
            "name images by --val-data, use another --seed, or train on all: --val-share 0"
        )
    drawn = f"{count} of {len(images)} images drawn to validate with (--val-share {share:g})"
    return replace(train, held_out=drawn), replace(val, held_out=drawn)
