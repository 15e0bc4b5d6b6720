"""Readers of boxes: one table whatever the format, and what is said of annotations that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection_data import NAMES, Shown, as_coco, make_images, write_coco, write_voc, write_yolo
from sparkmim.data.detection.opening import Source, read_splits
from sparkmim.data.detection.table import DetectionImages
from sparkmim.data.targets import Splits


def read(data: Path | str, seed: int = 0, **options: Any) -> Splits[DetectionImages]:
    given = {"val_data": None, "test_data": None, "classes": None, "image_folder": None, "val_share": 0.0, **options}
    return read_splits(Source(str(data), **given), seed)


def voc(root: Path, images: list[Shown]) -> Path:
    return write_voc(root, images)


def voc_beside(root: Path, images: list[Shown]) -> Path:
    write_voc(root, images, "images")
    return root / "images"


def coco(root: Path, images: list[Shown]) -> Path:
    return write_coco(root, images)


def coco_folder(root: Path, images: list[Shown]) -> Path:
    (root / "annotations").mkdir()
    write_coco(root / "annotations", images, "instances_train2017.json")
    (root / "images").rename(root / "train2017")
    return root


def roboflow(root: Path, images: list[Shown]) -> Path:
    write_coco(root / "images", images, "_annotations.coco.json")
    (root / "images").rename(root / "train")
    return root


def yolo(root: Path, images: list[Shown]) -> Path:
    write_yolo(root / "labels", images)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def yolo_yaml(root: Path, images: list[Shown]) -> Path:
    write_yolo(root / "labels", images, polygons=True)
    (root / "data.yaml").write_text("train: ../images\nnames: {0: dark, 1: light}\n")
    return root / "data.yaml"


WRITERS = [voc, voc_beside, coco, coco_folder, roboflow, yolo, yolo_yaml]


@pytest.mark.parametrize("write", WRITERS)
def test_one_table(write: Callable[[Path, list[Shown]], Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    found = read(write(tmp_path, images)).train
    assert [found.source.name(i) for i in range(len(found))] == [image.file for image in images]
    assert found.classes == list(NAMES)
    assert [c.id for c in found.categories] == {"V": [1, 2], "C": [3, 7], "Y": [0, 1]}[found.kind[0]]
    for own, image in zip(found.objects, images, strict=True):
        np.testing.assert_allclose(own.boxes, [box for _, box in image.objects], atol=1e-4)
        assert own.labels.tolist() == [label for label, _ in image.objects]
    assert found.with_masks == (found.kind == "COCO" or write is yolo_yaml)
    assert found.sizes.tolist() == [[36, 44]] * len(images)


def of_voc(root: Path, old: str, new: str) -> Path:
    write_voc(root, make_images(root / "images"))
    path = root / "Annotations" / "1.xml"
    path.write_text(path.read_text().replace(old, new, 1))
    return root


def of_coco(root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = as_coco(make_images(root / "images"))
    change(content)
    (root / "a.json").write_text(json.dumps(content))
    return root / "a.json"


def of_yolo(root: Path, line: str) -> Path:
    yolo(root, make_images(root / "images"))
    (root / "labels" / "1.txt").write_text(f"0 0.5 0.5 0.2 0.2\n\n{line}\n")
    return root


VOC_FAULTS = [
    ("<xmin>", "<xmin>9", "1.xml, line 4.*left edge 9.* right edge"),
    ("<xmax>", "<xmax>x", "1.xml, line 4: expected a finite number for xmax, got 'x"),
    ("<name>", "<nom>", "1.xml"),
    ("<ymax>", "<y>", "cannot be read as XML"),
    ("<width>44", "<width>50", "1.xml says 36 x 50 .* has 36 x 44"),
    ("annotation>\n<filename", "other>\n<filename", "cannot be read as XML"),
    ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "declares an entity"),
]


@pytest.mark.parametrize(("old", "new", "said"), VOC_FAULTS)
def test_bad_voc(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read(of_voc(tmp_path, old, new))


def test_an_object_without_a_box(tmp_path: Path) -> None:
    root = of_voc(tmp_path, "</annotation>", "<object><name>dark</name>\n</object></annotation>")
    with pytest.raises(ValueError, match=r"1.xml, line 6: the object has no xmin, ymin, xmax, ymax"):
        read(root)


def as_corners(content: dict[str, Any]) -> None:
    """Write corners for sizes, as is done by mistake, of boxes in the far half of their images."""
    content["annotations"] = [a for a in content["annotations"] if a["bbox"][0] > 28]
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left, top, left + width, top + height]


def as_shares(content: dict[str, Any]) -> None:
    """Write shares of the image, as YOLO has them."""
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left / 44, top / 36, width / 44, height / 36]


def y_before_x(content: dict[str, Any]) -> None:
    """Write y before x, and heights before widths."""
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [top, left, height, width]


COCO_FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation 1: the left edge 1 lies beyond"),
    (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1: expected bbox"),
    (
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 3]),
        "annotation 1: expected a finite number for w",
    ),
    (lambda c: c["annotations"][0].update(image_id=99), "annotation 1: there is no image of id 99"),
    (lambda c: c["annotations"][0].update(category_id=4), "no category of id 4; the categories are 3 dark, 7 light"),
    (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 1: a polygon has 3 numbers"),
    (lambda c: c["annotations"][0].update(segmentation={"size": [36, 44], "counts": [5]}), "add up to 5, not to 36"),
    (lambda c: c["annotations"][0].update(segmentation={"size": [4, 4], "counts": [16]}), "of 4 x 4 pixels"),
    (lambda c: c["images"][0].update(height=44, width=36), "image 1 says 44 x 36"),
    (lambda c: c["images"][0].update(file_name="none.png"), "lists 1 image not found in .*images: none.png"),
    (lambda c: c["images"][1].update(file_name="0.png"), "names images more than once: 0.png"),
    (lambda c: c["categories"][1].update(name="dark"), "names categories more than once: dark"),
    (lambda c: c.pop("categories"), "it has no categories"),
    (lambda c: c["annotations"].clear(), "show no object"),
    (as_corners, "look like .x1, y1, x2, y2."),
    (as_shares, "look like shares of the image, 0 to 1"),
    (y_before_x, "with x and y exchanged, all boxes lie within"),
]


@pytest.mark.parametrize(("change", "said"), COCO_FAULTS)
def test_bad_coco(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read(of_coco(tmp_path, change))


YOLO_FAULTS = [
    ("2 0.5 0.5 0.1 0.1", "1.txt, line 3: expected the number of a class, 0 to 1, those of .*classes.txt, got 2"),
    ("0.5 0.5 0.5 0.1 0.1", "line 3: expected the number of a class"),
    ("0 20 30 5 5", "line 3: 20 is not a share of the image"),
    ("0 0.5 0.5 0.1", "line 3: expected `class x y width height`.*got 4 numbers"),
    ("0 0.5 0.5 0.1 0.1 0.9", "line 3: .*a prediction's confidence"),
    ("0 0.5 0.5 -0.1 0.1", "line 3: the left edge .* lies beyond the right edge"),
    ("0 0.5 nan 0.1 0.1", "line 3: expected a finite number"),
]


@pytest.mark.parametrize(("line", "said"), YOLO_FAULTS)
def test_bad_yolo(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read(of_yolo(tmp_path, line))


def sloppy(content: dict[str, Any]) -> None:
    """Let every box reach a pixel beyond the image's first corner or last row."""
    for place, entry in enumerate(content["annotations"]):
        entry["bbox"] = [-2, 5, 9, 8] if place % 2 else [4, 20, 10, 17]


def test_boxes_that_are_not_exact_are_clipped(tmp_path: Path) -> None:
    """They would fit with x and y exchanged too, by accident."""
    found = read(of_coco(tmp_path, sloppy)).train
    assert any("clipped" in note for note in found.notes)


def test_corners_in_files_of_yolo(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    yolo(tmp_path, images)
    for image in images:
        rows = [(label, *(v / s for v, s in zip(box, (44, 36, 44, 36), strict=True))) for label, box in image.objects]
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        (tmp_path / "labels" / image.file).with_suffix(".txt").write_text(text)
    with pytest.raises(ValueError, match="look like `class x1 y1 x2 y2`, and YOLO has the middle"):
        read(tmp_path)


def test_boxes_are_clipped_and_dropped_and_counted(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second, third = (dict(content["annotations"][0]) for _ in range(3))
        first.update(id=90, bbox=[40, 30, 10, 10], segmentation=None)  # beyond the image
        second.update(id=91, bbox=[5, 5, 0, 3], segmentation=None)
        third.update(id=92, bbox=[50, 5, 3, 3], segmentation=None)  # outside of it
        again = dict(content["annotations"][0], id=93)
        content["annotations"] += [first, second, third, again]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]

    found = read(of_coco(tmp_path, change)).train
    assert found.objects[0].boxes[-1].tolist() == [40, 30, 44, 36]
    said = "; ".join(found.notes)
    assert "1 box clipped" in said
    assert "2 boxes without area in the image dropped" in said
    assert "annotation 91" in said
    assert "1 box listed twice" in said
    assert "1 image without an object" in said
    assert len(found.objects[1].labels) == 0


def test_difficult_objects_and_crowds_are_ignored(tmp_path: Path) -> None:
    root = of_voc(tmp_path, "</name>", "</name><difficult>1</difficult>")
    assert [one.ignored.tolist() for one in read(root).train.objects[:2]] == [[False], [True, False]]
    other = of_coco(tmp_path, lambda c: c["annotations"][0].update(iscrowd=1))
    assert read(other).train.objects[0].ignored.tolist() == [True]
    assert sum(read(other).train.counts()) == sum(len(one.labels) for one in read(other).train.objects) - 1


def test_run_lengths_and_polygons(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from sparkmim.transfer.detection.targets import as_array

    images = make_images(tmp_path / "images")
    mask = np.zeros((36, 44), np.uint8)
    _, (left, top, right, bottom) = images[0].objects[0]
    mask[top:bottom, left:right] = 1
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.reshape(-1), [0]])))
    runs = np.diff(np.concatenate([[0], flat, [mask.size]])).tolist()
    path = tmp_path / "a.json"
    content = as_coco(images)
    content["annotations"][0]["segmentation"] = {"size": [36, 44], "counts": runs}
    path.write_text(json.dumps(content))
    found = read(path).train.objects
    np.testing.assert_array_equal(as_array(found[0].masks[0], 36, 44), mask)
    drawn = as_array(as_coco(images)["annotations"][0]["segmentation"], 36, 44)
    np.testing.assert_array_equal(drawn, mask)


def test_splits_of_lists(tmp_path: Path) -> None:
    write_voc(tmp_path, make_images(tmp_path / "JPEGImages"))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, names in (("train", "0\n1\n\n2.png\n"), ("val", "3\n"), ("test", "4\n5\n")):
        (lists / f"{split}.txt").write_text(names)
    found = read(tmp_path, val_share=0.2)
    assert [len(images) for images in found if images is not None] == [3, 1, 2]
    assert found.train.held_out == ""
    (lists / "val.txt").write_text("3\n9\n")
    with pytest.raises(ValueError, match=r"val.txt, line 2: there is no file 9.xml"):
        read(tmp_path)
    (lists / "val.txt").write_text("3\n4\n3\n")
    with pytest.raises(ValueError, match=r"val.txt, line 3: 3 stands in line 1"):
        read(tmp_path)


@pytest.mark.parametrize("write", [voc, coco, yolo])
def test_a_split_is_drawn_by_the_seed(write: Callable[[Path, list[Shown]], Path], tmp_path: Path) -> None:
    data = write(tmp_path, make_images(tmp_path / "images"))
    drawn = [read(data, seed, val_share=0.3) for seed in (0, 0, 1)]
    names = [
        [images.source.name(i) for i in range(len(images))]
        for split in drawn
        for images in (split.train, split.val)
        if images
    ]
    assert names[:2] == names[2:4]
    assert len(names[0]) == 4
    assert not set(names[0]) & set(names[1])
    assert "2 of 6 images drawn to validate with" in drawn[0].train.held_out
    assert read(data).val is None


def test_classes(tmp_path: Path) -> None:
    """Those of validation must be known; a file lists them."""
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    images = make_images(tmp_path / "train" / "images")
    only = [image._replace(objects=tuple((0, box) for _, box in image.objects)) for image in images]
    write_voc(tmp_path / "train", only)
    write_voc(tmp_path / "val", make_images(tmp_path / "val" / "images"))
    given: dict[str, Any] = {"val_data": str(tmp_path / "val")}
    with pytest.raises(ValueError, match=r"--val-data: \d+ objects? (is|are) of unknown classes: light.*--classes"):
        read(tmp_path / "train", **given)
    (tmp_path / "classes").write_text("light\ndark\n")
    found = read(tmp_path / "train", classes=str(tmp_path / "classes"), **given)
    assert found.train.classes == ["light", "dark"]
    assert found.train.counts()[0] == 0
    (tmp_path / "classes").write_text("light\nlight\n")
    with pytest.raises(ValueError, match="names classes more than once: light"):
        read(tmp_path / "train", classes=str(tmp_path / "classes"), **given)


def test_images_without_annotations(tmp_path: Path) -> None:
    root = yolo(tmp_path, make_images(tmp_path / "images"))
    (root / "labels" / "2.txt").unlink()
    (root / "labels" / "3.txt").write_text("")
    found = read(root).train
    assert [len(one.labels) for one in found.objects[2:4]] == [0, 0]
    assert "1 image without a file of annotations taken as negatives" in "; ".join(found.notes)
    (root / "images" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"no image in .* for 1 file of labels .*: 0"):
        read(root)


def test_annotations_without_images(tmp_path: Path) -> None:
    root = voc(tmp_path, make_images(tmp_path / "images"))
    (root / "images" / "4.png").unlink()
    with pytest.raises(ValueError, match=r"no image in .* for 1 file of annotations: .*4.xml"):
        read(root)
    Image.new("RGB", (44, 36)).save(root / "images" / "4.png")
    Image.new("RGB", (44, 36)).save(root / "images" / "4.jpg")
    with pytest.raises(ValueError, match=r"4.jpg and 4.png have the same name"):
        read(root)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "does not exist"),
        ("file.txt", "a file of another kind"),
        (".", "holds no annotations that are known"),
    ],
)
def test_no_data_set(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / name)


def test_arrays_of_many_channels(tmp_path: Path) -> None:
    """Their size is found, without which shares of it are no boxes."""
    images = make_images(tmp_path / "images", 2)
    for image in images:
        (tmp_path / "images" / image.file).unlink()
        np.save(tmp_path / "images" / image.file.replace("png", "npy"), np.zeros((36, 44, 6), np.float32))
    found = read(yolo(tmp_path, images)).train
    assert found.sizes.tolist() == [[36, 44]] * 2
    np.testing.assert_allclose(found.objects[0].boxes, [box for _, box in images[0].objects], atol=1e-4)


def test_an_image_that_is_turned(tmp_path: Path) -> None:
    """Its annotations are of the pixels as they are stored."""
    images = make_images(tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "images" / "0.png") as file:
        file.save(tmp_path / "images" / "0.png", exif=exif)
    with pytest.raises(ValueError, match="turned upright by its EXIF orientation"):
        read(voc(tmp_path, images))
