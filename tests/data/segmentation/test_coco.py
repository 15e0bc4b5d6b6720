"""COCO's polygons and run lengths become masks of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparkmim.data.segmentation.classes import IGNORED
from sparkmim.data.segmentation.images import read_images
from sparkmim.data.segmentation.masks import read_mask
from sparkmim.data.segmentation.pairs import Place, find_places
from sparkmim.data.segmentation.volumes import holds_volumes

coco = pytest.importorskip("pycocotools.mask")

HEIGHT, WIDTH = 8, 10


def square(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths: by columns, the first of zeros."""
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def annotation(number: int, category: int, segmentation: Any, image: int = 1) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [0, 0, 4, 4],
        "iscrowd": int(isinstance(segmentation, dict)),
        "segmentation": segmentation,
    }


def described() -> dict[str, Any]:
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 3, "name": "cell"}, {"id": 7, "name": "core"}],
        "annotations": [
            annotation(1, 7, [square(2, 2, 4, 4)]),
            annotation(2, 3, [square(1, 1, 6, 6), square(7, 0, 9, 2)]),
        ],
    }


def write(folder: Path, content: dict[str, Any], name: str = "labels.json") -> Path:
    folder.mkdir(exist_ok=True)
    for image in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / image)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def expected() -> np.ndarray:
    """By hand: the core lies on the cell that it is in, though it is listed first."""
    wanted = np.zeros((HEIGHT, WIDTH), int)
    wanted[1:6, 1:6] = 3
    wanted[0:2, 7:9] = 3
    wanted[2:4, 2:4] = 7
    return wanted


def as_polygons(content: dict[str, Any]) -> None:
    pass


def as_runs(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        mask = coco.decode(coco.merge(coco.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)))
        entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs(mask)}


def as_packed_runs(content: dict[str, Any]) -> None:
    as_runs(content)
    for entry in content["annotations"]:
        packed = coco.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)
        entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}


@pytest.mark.parametrize("change", [as_polygons, as_runs, as_packed_runs])
def test_masks_of_every_kind_say_the_same(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = described()
    change(content)
    images = read_images(Place(write(tmp_path, content)), None, IGNORED, "--data")
    assert images.table.names == ("background", "cell", "core")
    assert images.table.values == (0, 3, 7)
    drawn = images.table.values_of(read_mask(images.masks[0], images.table))
    np.testing.assert_array_equal(drawn, expected())
    assert images.pixels.sum(1).tolist() == [HEIGHT * WIDTH] * 2
    assert images.pixels[1].tolist() == [HEIGHT * WIDTH, 0, 0]  # an image without objects shows the background
    part = images.subset([1])
    assert part.source.name(0) == "b.png"
    assert part.digest() != images.digest()


@pytest.mark.parametrize(
    ("categories", "values"),
    [
        ([{"id": 0, "name": "cell"}, {"id": 1, "name": "core"}], {"cell": 0, "core": 1, "background": 2}),
        ([{"id": 3, "name": "cell"}, {"id": 7, "name": "Background"}], {"cell": 3, "Background": 7}),
    ],
)
def test_a_class_for_what_no_object_covers(
    tmp_path: Path, categories: list[dict[str, Any]], values: dict[str, int]
) -> None:
    content = described()
    content["categories"] = categories
    for entry in content["annotations"]:
        entry["category_id"] = categories[0]["id"]
    images = read_images(Place(write(tmp_path, content)), None, IGNORED, "--data")
    assert dict(zip(images.table.names, images.table.values, strict=True)) == values
    number = images.table.background
    assert number is not None
    assert images.pixels[1, number] == HEIGHT * WIDTH


def test_a_table_without_background_leaves_the_rest_out(tmp_path: Path) -> None:
    from sparkmim.data.segmentation.classes import read_classes

    path = write(tmp_path, described())
    (tmp_path / "classes.csv").write_text("cell,1\ncore,2\n")
    images = read_images(Place(path), read_classes(tmp_path / "classes.csv", IGNORED), IGNORED, "--data")
    drawn = read_mask(images.masks[0], images.table)
    assert (drawn == IGNORED).sum() == (expected() == 0).sum()


def reserved_id(content: dict[str, Any]) -> None:
    content["categories"][0]["id"] = content["annotations"][1]["category_id"] = 255


def box_alone(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = []


def other_runs(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": [2, 2], "counts": [4]}


def other_size(content: dict[str, Any]) -> None:
    content["images"][0]["width"] = WIDTH + 1


def far_id(content: dict[str, Any]) -> None:
    content["categories"][0]["id"] = content["annotations"][1]["category_id"] = 70_000


def many_categories(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": number, "name": str(number)} for number in range(1, 300)]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (reserved_id, r"the id 255 of the category cell .*--ignore-index -1"),
        (box_alone, r"annotation 1: it has a box and no segmentation.*--task detection"),
        (other_runs, r"annotation 1: its run lengths are of 2 x 2 pixels, and its image has 8 x 10"),
        (other_size, r"image 1: it states 8 x 11 pixels .* a.png has 8 x 10"),
        (far_id, r"70000 cell; number them from 1 on"),
        (many_categories, r"has 299 categories; at most 255, background among them"),
    ],
)
def test_bad_files(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], said: str) -> None:
    content = described()
    spoil(content)
    with pytest.raises(ValueError, match=said):
        read_images(Place(write(tmp_path, content)), None, IGNORED, "--data")


def test_classes_that_the_training_images_do_not_have(tmp_path: Path) -> None:
    train = read_images(Place(write(tmp_path / "a", described())), None, IGNORED, "--data")
    other = described()
    other["categories"][0]["name"] = "dust"
    with pytest.raises(ValueError, match=r"has objects of dust, which are not among the classes \(background, cell, c"):
        read_images(Place(write(tmp_path / "b", other)), train.table, IGNORED, "--val-data")


def test_files_of_splits_are_found(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path / split, described(), "_annotations.coco.json")
    train, val, test = find_places(str(tmp_path), None, None)
    assert train.path == tmp_path / "train" / "_annotations.coco.json"
    assert val is not None
    assert val.path == tmp_path / "valid" / "_annotations.coco.json"
    assert test is None
    named, other, _ = find_places(str(train.path), str(tmp_path / "valid"), None)
    assert (named, other) == (train, val)
    assert not holds_volumes(train.path)
    assert train.is_coco


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "pictures", described())
    (tmp_path / "labels").mkdir()
    path = (tmp_path / "pictures" / "labels.json").rename(tmp_path / "labels" / "labels.json")
    with pytest.raises(ValueError, match="--image-folder"):
        read_images(Place(path), None, IGNORED, "--data")
    images = read_images(Place(path, images=tmp_path / "pictures"), None, IGNORED, "--data")
    assert len(images) == 2
