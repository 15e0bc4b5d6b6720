"""Images and volumes with masks: what is found, what each bad input is told, and masks of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation_data import CLASSES, make_pairs, make_volumes
from sparkmim.data.config import VolumeConfig
from sparkmim.data.segmentation.classes import IGNORED, ClassTable, read_classes, table_of
from sparkmim.data.segmentation.images import read_images
from sparkmim.data.segmentation.masks import read_mask
from sparkmim.data.segmentation.pairs import Place, find_places
from sparkmim.data.segmentation.volumes import SegmentedVolumes, cases_of, holds_volumes, read_volumes
from sparkmim.data.volumes.geometry import from_ras, to_ras
from sparkmim.data.volumes.opening import Stores
from volume_files import load_nifti, oblique, write_nifti


def table(folder: Path, text: str = CLASSES, ignore: int = 255) -> ClassTable:
    (folder / "classes.csv").write_text(text)
    return read_classes(folder / "classes.csv", ignore)


def mask_of(folder: Path, number: int = 0) -> Path:
    return folder / "masks" / f"{number}.png"


def rewrite(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


# --- tables of classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a,0\nb,3\n",
        "name,index\na,0\nb,3\n",
        "index;name\n0;a\n3;b\n",
        "a,0,#0a0b0c\nb,3,#ff0000\n",
        "name,r,g,b,index\na,10,11,12,0\nb,255,0,0,3\n",
        "name\tindex\tcolor\nb\t3\t255 0 0\na\t0\t10 11 12\n",
        '{"labels": {"a": 0, "b": 3}}',
        '{"labels": {"0": "a", "3": "b"}}',
    ],
)
def test_tables(tmp_path: Path, text: str) -> None:
    file = tmp_path / ("dataset.json" if text.startswith("{") else "classes.csv")
    file.write_text(text)
    found = read_classes(file, 255)
    assert (found.names, found.values) == (("a", "b"), (0, 3))
    if found.colored:
        assert found.colors == ((10, 11, 12), (255, 0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no classes"),
        ("a,0\na,1\n", "names more than once: a"),
        ("a,0\nb,0\n", "indices more than once: 0"),
        ("a,0,#000000\nb,1,#000000\n", "several classes the color"),
        ("a,0,#000000\nb,1\n", "none to b"),
        ("a,0\nb,70000\n", "line 2: expected an index from 0 to 65535, got '70000'"),
        ("a,0,#00\nb,1,#111111\n", "line 1: expected a color"),
        ("a,0\nvoid,255\n", "1 class beside the ignored index 255"),
        ("a\nb\n", "line 1: expected `name,index`"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_a_table_is_restored_from_json() -> None:
    first = table_of([0, 2, 700], 255, volumes=True)
    assert ClassTable.from_json(json.loads(json.dumps(first.as_json()))) == first
    assert first.names == ("background", "2", "700")
    assert first.background == 0
    numbers = np.array([0, 2, 1], np.uint8)
    assert np.array_equal(first.numbers_of(first.values_of(numbers)), numbers)
    with pytest.raises(ValueError, match="does not record the classes"):
        ClassTable.from_json({"classes": ["a"]})


# --- masks ----------------------------------------------------------------------------------------------------------

NUMBERS = np.array([[0, 1, 2], [2, 1, IGNORED]], np.uint8)


def as_index(path: Path) -> None:
    rewrite(path, NUMBERS)


def as_palette(path: Path) -> None:
    image = Image.fromarray(NUMBERS).copy()
    image.putpalette([7, 7, 7] * 256)  # colors that say nothing
    image.save(path)


def as_colors(path: Path) -> None:
    colors = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), IGNORED: (255, 255, 255)}
    rewrite(path, np.array([[colors[value] for value in row] for row in NUMBERS.tolist()], np.uint8))


def as_gray_rgb(path: Path) -> None:
    rewrite(path, np.repeat(NUMBERS[..., None], 3, 2))


def as_16_bits(path: Path) -> None:
    rewrite(path, NUMBERS.astype(np.uint16))


@pytest.mark.parametrize("write", [as_index, as_palette, as_16_bits, as_colors])
def test_masks_of_every_kind_say_the_same(tmp_path: Path, write: Callable[[Path], None]) -> None:
    classes = table(tmp_path, CLASSES + "void,255,#ffffff\n")
    write(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", classes), NUMBERS)


def test_gray_masks_of_three_channels_hold_indices_without_colors(tmp_path: Path) -> None:
    as_gray_rgb(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", table_of([0, 1, 2], 255)), NUMBERS)


# --- images ---------------------------------------------------------------------------------------------------------


def test_images_are_found_and_counted(tmp_path: Path) -> None:
    make_pairs(tmp_path, 3)
    found = read_images(Place(tmp_path), None, 255, "--data")
    assert len(found) == 3
    assert found.table.values == (0, 1, 2)
    assert (found.pixels.sum(1) == 36 * 44).all()
    assert found.pixels[1].tolist() == np.bincount(np.asarray(Image.open(mask_of(tmp_path, 1))).ravel()).tolist()
    part = found.subset([2, 0])
    assert [part.source.name(i) for i in range(2)] == ["2.png", "0.png"]
    assert part.masks == (mask_of(tmp_path, 2), mask_of(tmp_path, 0))
    assert part.digest() != found.digest()


def test_masks_may_have_a_suffix_and_lie_in_folders(tmp_path: Path) -> None:
    make_pairs(tmp_path, 2)
    for kind, name in (("images", "0.png"), ("masks", "0_mask.png")):
        (tmp_path / kind / "sub").mkdir()
        (tmp_path / kind / "0.png").rename(tmp_path / kind / "sub" / name)
    found = read_images(Place(tmp_path), None, 255, "--data")
    assert [found.source.name(i) for i in range(2)] == ["1.png", "sub/0.png"]


def no_mask(folder: Path) -> None:
    mask_of(folder).unlink()


def no_image(folder: Path) -> None:
    (folder / "images" / "0.png").unlink()


def other_size(folder: Path) -> None:
    rewrite(mask_of(folder), np.zeros((44, 36), np.uint8))


def strange_value(folder: Path) -> None:
    values = np.asarray(Image.open(mask_of(folder))).copy()
    values[0, :3] = 7
    rewrite(mask_of(folder), values)


def strange_color(folder: Path) -> None:
    values = np.zeros((36, 44, 3), np.uint8)
    values[0, :5] = (1, 2, 3)
    rewrite(mask_of(folder), values)


def no_folder(folder: Path) -> None:
    (folder / "masks").rename(folder / "annots")


def empty(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()


def twice(folder: Path) -> None:
    Image.open(folder / "images" / "0.png").convert("RGB").save(folder / "images" / "0.jpg")


def damaged(folder: Path) -> None:
    mask_of(folder).write_bytes(b"no picture")


def ignored_alone(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        rewrite(path, np.full((36, 44), 255, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_mask, "no mask of the same name in .*masks for 1 image: 0. Add each mask"),
        (no_image, "no image of the same name in .*images for 1 mask: 0"),
        (other_size, r"images/0.png has 36 x 44 pixels .*masks/0.png 44 x 36"),
        (strange_value, r"masks/0.png has values that are not among the classes: 7 \(3 pixels\); expected 0, 1, 2 or"),
        (strange_color, r"masks/0.png has 1 color that is not in the table of classes: #010203 \(5 pixels\)"),
        (no_folder, r"has no folder masks \(or labels, labelsTr\): it holds the folders annots, images"),
        (empty, "no file in .*images ends in one of"),
        (twice, "0.jpg and 0.png have the same name but for the extension"),
        (damaged, "masks/0.png cannot be read"),
        (ignored_alone, "no pixel of the masks .* has a class"),
    ],
)
def test_bad_images(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = make_pairs(tmp_path / "data", 3)
    classes = table(tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        read_images(Place(folder), classes, 255, "--data")


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG"])
def test_lossy_masks_do_not_tell_the_classes(tmp_path: Path, ending: str) -> None:
    """Beside a table, values that the compression has changed are not classes, and refused as such."""
    make_pairs(tmp_path, 2)
    path = mask_of(tmp_path)
    Image.open(path).save(path.with_suffix(f".{ending}"), format="JPEG")
    path.unlink()
    with pytest.raises(ValueError, match=rf"0.{ending} is a JPEG file, whose compression changes values.*--classes"):
        read_images(Place(tmp_path), None, 255, "--data")


def test_values_of_masks_without_a_table(tmp_path: Path) -> None:
    make_pairs(tmp_path, 2)
    for number in range(2):
        values = np.asarray(Image.open(mask_of(tmp_path, number)))
        rewrite(mask_of(tmp_path, number), np.where(values > 0, 255, 0).astype(np.uint8))
    with pytest.raises(ValueError, match=r"hold 0 and 255, which is ignored; .* use --ignore-index -1"):
        read_images(Place(tmp_path), None, 255, "--data")
    assert read_images(Place(tmp_path), None, -1, "--data").table.values == (0, 255)
    strange_color(tmp_path)
    with pytest.raises(ValueError, match="is in colors, and no table says which classes they are: give --classes FILE"):
        read_images(Place(tmp_path), None, -1, "--data")


# --- tables of pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["", "image,mask,split\n", "id;mask;split;image\n"])
def test_a_csv_file_names_pairs_and_splits(tmp_path: Path, head: str) -> None:
    make_pairs(tmp_path, 4)
    rows = [(f"images/{n}.png", f"masks/{n}.png", split) for n, split in enumerate(("train", "train", "val", "test"))]
    lines = [f"{n};{m};{s};{i}" if ";" in head else f"{i},{m},{s}" for n, (i, m, s) in enumerate(rows)]
    (tmp_path / "pairs.csv").write_text(head + "\n".join(lines))
    places = find_places(str(tmp_path / "pairs.csv"), None, None)
    sizes = [len(read_images(place, None, 255, "--data")) for place in places if place is not None]
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("images/0.png\n", "line 1: expected `image,mask`"),
        ("images/0.png,masks/9.png\n", "lists 1 file not found: .*masks/9.png"),
        ("images/0.png,masks/0.png\n./images/0.png,masks/0.png\n", "lists images more than once: images/0.png"),
        ("images/0.png,masks/0.png,later\n", "line 1: expected a split .*, got 'later'"),
    ],
)
def test_bad_csv_files(tmp_path: Path, text: str, message: str) -> None:
    make_pairs(tmp_path, 1)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_images(find_places(str(tmp_path / "pairs.csv"), None, None)[0], None, 255, "--data")


# --- volumes --------------------------------------------------------------------------------------------------------


def read(folder: Path, *, stored: bool = True, config: VolumeConfig | None = None, **more: Any) -> SegmentedVolumes:
    stores = Stores(folder.parent / "run" if stored else None, workers=0)
    return read_volumes(Place(folder), stores, config or VolumeConfig(), None, 255, "--data", **more)


@pytest.mark.parametrize("stored", [True, False])
def test_label_maps_go_through_the_geometry_of_volumes(tmp_path: Path, stored: bool) -> None:
    """Whatever the order and direction of axes, labels lie where bright voxels do."""
    affine = oblique((2, 0, 1), (1, -1, -1), (1.0, 1.5, 2.0), 5.0)
    folder = make_volumes(tmp_path / "data", 2, affine=affine)
    found = read(folder, stored=stored, config=VolumeConfig(spacing="none", intensity="none", foreground=False))
    assert found.table.names == ("background", "1", "2")
    for index in range(2):
        values = found.source.open(index).decode(1)[0]
        numbers = found.numbers(torch.from_numpy(found.labels[index].open().decode(1)[0].numpy().astype(np.int64)))
        assert torch.equal(numbers.long(), torch.bucketize(values, torch.tensor([85.0, 175.0])))
        places = found.places(index)
        assert set(places) == {1, 2}
        for value, voxels in places.items():
            assert all(numbers[tuple(voxel)] == value for voxel in voxels)


def test_label_maps_follow_resampled_volumes(tmp_path: Path) -> None:
    folder = make_volumes(tmp_path / "data", 2, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    config = VolumeConfig(spacing=(1.0, 1.0, 1.0), intensity="none", foreground=False)
    found = read(folder, config=config)
    drawn = np.asarray(load_nifti(folder / "labels" / "case0.nii.gz").dataobj)
    whole = found.labels[0].open().decode(1)[0].numpy()
    assert np.array_equal(whole, drawn.repeat(2, 0).repeat(2, 1).repeat(2, 2)), "the nearest voxel"
    assert dict(found.labels[0].counts) == dict(zip(*np.unique(drawn, return_counts=True), strict=True))


def test_prepared_label_maps_are_kept_and_prepared_anew_when_their_file_changes(tmp_path: Path) -> None:
    folder = make_volumes(tmp_path / "data", 2)
    first = read(folder)
    times = [Path(entry.content).stat().st_mtime_ns for entry in first.labels]  # type: ignore[arg-type]
    again = read(folder)
    assert [Path(e.content).stat().st_mtime_ns for e in again.labels] == times  # type: ignore[arg-type]
    changed = np.zeros((18, 20, 16), np.uint8)
    changed[3:6, 3:6, 3:6] = 2
    write_nifti(folder / "labels" / "case0.nii.gz", changed)
    assert read(folder).labels[0].counts == {0: 18 * 20 * 16 - 27, 2: 27}
    assert read(folder).digest() != first.digest()


def test_the_layout_of_nnunet(tmp_path: Path) -> None:
    folder = make_volumes(tmp_path / "data", 2, names=("imagesTr", "labelsTr"))
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    assert set(cases_of(Place(folder), "--data")[1].values()) == set((folder / "labelsTr").iterdir())
    about = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "box": 1, "ball": 2},
        "file_ending": ".nii.gz",
        "numTraining": 2,
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    assert read(folder).table.names == ("background", "box", "ball")
    make_volumes(folder, 1, names=("imagesTs", "labelsTs"), seed=3)
    places = find_places(str(folder), None, None)
    assert places[2] == Place(folder, "test")
    assert len(cases_of(Place(folder, "test"), "--test-data")[0]) == 1


def test_volumes_of_arrays_are_named_by_their_scheme(tmp_path: Path) -> None:
    folder = make_volumes(tmp_path / "data", 2)
    for path in [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]:
        values = np.asarray(load_nifti(path).dataobj)
        np.save(path.with_name(path.name.replace(".nii.gz", ".npy")), values)
        path.unlink()
    assert not holds_volumes(folder)
    assert holds_volumes(f"volumes://{folder}")
    place, *_ = find_places(f"volumes://{folder}", None, None)
    stores = Stores(tmp_path / "run", workers=0)
    assert len(read_volumes(place, stores, VolumeConfig(), None, 255, "--data").table) == 3


def wrong_size(folder: Path) -> None:
    write_nifti(folder / "labels" / "case0.nii.gz", np.zeros((9, 20, 16), np.uint8))


def wrong_place(folder: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 30.0
    write_nifti(folder / "labels" / "case0.nii.gz", np.ones((18, 20, 16), np.uint8), affine)


def fractions(folder: Path) -> None:
    write_nifti(folder / "labels" / "case0.nii.gz", np.full((18, 20, 16), 0.5, np.float32))


def unlisted(folder: Path) -> None:
    values = np.zeros((18, 20, 16), np.uint8)
    values[:2] = 9
    write_nifti(folder / "labels" / "case0.nii.gz", values)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "box": 1, "ball": 2}}))


def lost(folder: Path) -> None:
    (folder / "labels" / "case0.nii.gz").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_size, r"case0.nii.gz has 9 x 20 x 16 voxels, and the volume case0.nii.gz 18 x 20 x 16"),
        (wrong_place, r"case0.nii.gz has the size of the volume .* and lies elsewhere in the world"),
        (fractions, r"case0.nii.gz holds 0.5, which is not a label"),
        (unlisted, r"case0.nii.gz has values that are not among the classes: 9 \(640 voxels\)"),
        (lost, "no mask of the same name in .*labels for 1 image: case0"),
    ],
)
def test_bad_volumes(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = make_volumes(tmp_path / "data", 2)
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_from_ras_undoes_to_ras(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = oblique(order, signs, (1.0, 2.0, 3.0), 10.0)
    values = np.random.default_rng(0).integers(0, 9, (4, 5, 6))
    turned, _ = to_ras(values[None], affine)
    assert np.array_equal(from_ras(turned[0], affine), values)
