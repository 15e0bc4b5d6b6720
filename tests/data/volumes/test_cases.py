"""What is found in folders, lists and data sets, and what is passed over or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from pydicom.uid import generate_uid

from sparkmim.data.volumes.cases import find_cases, is_volumes
from sparkmim.data.volumes.label_maps import named_as_labels
from volume_files import phantom, write_blosc, write_itk, write_nifti, write_ome_zarr, write_series, write_tiff


def touch(root: Path, *names: str) -> None:
    """Make volumes as small as they can be, and empty files of other kinds."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".nii", ".nii.gz")):
            label = any(word in name.lower() for word in ("seg", "label", "mask"))
            write_nifti(path, (phantom() > 300).astype(np.int16) if label else phantom())
        else:
            path.write_bytes(b"")


def names(root: Path) -> list[str]:
    return [case.name for case in find_cases(root)]


def test_nested_folder_of_every_format(tmp_path: Path) -> None:
    touch(tmp_path, "b/one.nii.gz", "b/c/two.nii", ".hidden.nii", "notes.txt")
    write_itk(tmp_path / "three.nrrd", phantom(), np.eye(4))
    write_itk(tmp_path / "four.mhd", phantom(), np.eye(4))
    write_blosc(tmp_path / "five.b2nd", phantom())
    write_ome_zarr(tmp_path / "six.ome.zarr", phantom())
    write_tiff(tmp_path / "seven.tif", phantom())
    np.save(tmp_path / "eight.npy", phantom())
    np.savez(tmp_path / "nine.npz", phantom())
    write_series(tmp_path / "ten", phantom(), np.eye(4))
    write_series(tmp_path / "eleven" / "a", phantom(), np.eye(4), extension="")
    expected = "b/c/two.nii b/one.nii.gz eight.npy eleven/a five.b2nd four.mhd nine.npz seven.tif six.ome.zarr ten"
    assert names(tmp_path) == [*expected.split(), "three.nrrd"]


def test_channels_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, *(f"case{i}_000{c}.nii.gz" for i in range(3) for c in range(2)), "other.nii.gz")
    found = find_cases(tmp_path)
    assert [(case.name, [file.name[-11:-7] for file in case.files]) for case in found][:3] == [
        (f"case{i}", ["0000", "0001"]) for i in range(3)
    ]
    (tmp_path / "case1_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 volumes has other channels.*case1 lacks 0001"):
        find_cases(tmp_path)


@pytest.mark.parametrize("numbers", [range(1, 4), range(4)])
def test_numbers_of_volumes_are_not_channels(numbers: range, tmp_path: Path) -> None:
    touch(tmp_path, *(f"scan_{i:04d}.nii.gz" for i in numbers))
    assert len(find_cases(tmp_path)) == len(numbers)


@pytest.mark.parametrize(
    "labels",
    ["labelsTr/a.nii.gz", "Segmentations/x/a.nii.gz", "images/a_seg.nii.gz", "images/a-mask.nii", "x/dseg.nii"],
)
def test_label_maps_are_passed_over_or_refused(labels: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, labels.replace("x/dseg", "x/a_dseg"))
    with pytest.raises(ValueError, match="holds label maps, not images: its 1 file is named as such"):
        find_cases(tmp_path)
    touch(tmp_path, "images/a.nii.gz")
    with caplog.at_level(logging.WARNING, "sparkmim"):
        found = find_cases(tmp_path)
    assert [case.name for case in found] == ["images/a.nii.gz"]
    assert "a label map" in found.skipped[0][1]
    assert "label map" in caplog.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_seg", True),
        ("Segmentation.seg", True),
        ("segmentation-12", True),
        ("labels/001", True),
        ("s0001/segmentations/liver", True),
        ("labelsTr/BRATS_001", True),
        ("BraTS-GLI-00000-000-seg", True),
        ("sub-01_space-T1w_dseg", True),
        ("manual_masks_final/x", False),
        ("masked_T1", False),
        ("segment_volume", False),
        ("images/case_001", False),
        ("gtx980", False),
    ],
)
def test_names_of_label_maps(name: str, expected: bool) -> None:
    assert named_as_labels(f"{name}.nii.gz") is expected


def test_images_and_label_maps_of_like_names_are_told_apart(tmp_path: Path) -> None:
    for index in range(4):
        write_nifti(tmp_path / f"label_{index}.nii.gz", phantom(index) if index % 2 else phantom(index) // 200)
    found = find_cases(tmp_path)
    assert [case.name for case in found] == ["label_1.nii.gz", "label_3.nii.gz"]


def test_images_that_are_named_as_labels_are_kept(tmp_path: Path) -> None:
    write_nifti(tmp_path / "brain_mask.nii.gz", np.random.default_rng(0).normal(size=(8, 9, 10)))
    assert names(tmp_path) == ["brain_mask.nii.gz"]


def test_folder_of_labels_named_itself(tmp_path: Path) -> None:
    touch(tmp_path / "labelsTr", "a_label.nii.gz")
    with pytest.raises(ValueError, match="name the folder of the images"):
        find_cases(tmp_path / "labelsTr")


def test_pictures_among_volumes_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    write_tiff(tmp_path / "c.tif", phantom()[:, :, :1])
    np.save(tmp_path / "d.npy", phantom()[0])
    np.savez(tmp_path / "e.npz", phantom()[0])
    found = find_cases(tmp_path)
    assert [case.name for case in found] == ["a.nii.gz"]
    assert found.skipped == [(name, "a picture, not a volume") for name in ("b.png", "c.tif", "d.npy", "e.npz")]


def test_bids(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "derivatives/x/sub-01_T1w.nii.gz",
    )
    found = find_cases(tmp_path)
    assert [Path(case.name).name for case in found] == ["sub-01_T1w.nii.gz", "sub-01_ses-1_T2w.nii.gz"]
    assert [Path(name).name for name, _ in found.skipped] == ["sub-01_task-rest_bold.nii.gz"]


def test_series_of_one_folder(tmp_path: Path) -> None:
    one, other = generate_uid(), generate_uid()
    write_series(tmp_path / "scan", phantom(), np.eye(4), uid=one, prefix="a")
    write_series(tmp_path / "scan", phantom(), np.eye(4), uid=other, prefix="b")
    write_series(tmp_path / "scout", phantom()[:, :, :1], np.eye(4))
    write_series(
        tmp_path / "report", phantom()[:, :, :1], np.eye(4), change=lambda data, _: setattr(data, "Modality", "SR")
    )
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    found = find_cases(tmp_path)
    assert {case.name for case in found} == {f"scan/{one}", f"scan/{other}"}
    assert all(len(case.files) == 16 for case in found)
    reasons = " ".join(reason for _, reason in found.skipped)
    assert "one slice" in reasons
    assert "modality SR" in reasons
    assert "not readable" in reasons


def test_plate(tmp_path: Path) -> None:
    plate = zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for well in ("A/1", "B/2"):
        group = plate.create_group(well)
        group.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in ("0", "1"):
            write_ome_zarr(tmp_path / "p.zarr" / well / field, phantom())
    expected = [f"p.zarr/{well}/{field}" for well in ("A/1", "B/2") for field in "01"]
    assert names(tmp_path) == expected
    assert names(tmp_path / "p.zarr") == expected


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.nii.gz", "data/b.nii.gz", "data/c.nii.gz", "data/d.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("t1;t2\ndata/a.nii.gz;data/b.nii.gz\n\ndata/c.nii.gz; data/d.nii.gz\n")
    assert [[file.name for file in case.files] for case in find_cases(table)] == [
        ["a.nii.gz", "b.nii.gz"],
        ["c.nii.gz", "d.nii.gz"],
    ]
    write_series(tmp_path / "series", phantom(), np.eye(4))
    table.write_text("data/a.nii.gz\nseries\n")
    assert [len(case.files) for case in find_cases(table)] == [1, 16]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.nii.gz\nnone.nii.gz\n", "1 of the 2 files .* does not exist: .*none.nii.gz"),
        ("a.nii.gz,a.nii.gz\na.nii.gz\n", "line 2: expected 2 paths"),
        ("a.nii.gz,benign\n", "line 1: expected the path of a volume, got 'benign'"),
        ("path\n", "lists no volumes"),
        ("a.nii.gz\na.nii.gz\n", "more than once"),
    ],
)
def test_bad_csv(text: str, words: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_cases(tmp_path / "list.csv")


def test_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/c{i}_000{c}.nii.gz" for i in range(2) for c in range(2)), "labelsTr/c0.nii.gz")
    about = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert names(tmp_path) == names(tmp_path / "dataset.json") == ["c0", "c1"]
    about["channel_names"] = {"0": "T1"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="c0 has as well 0001"):
        find_cases(tmp_path)
    about["dataset"] = {"x": {"images": ["imagesTr/c0_0000.nii.gz"], "label": "labelsTr/c0.nii.gz"}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert names(tmp_path) == ["x"]


def test_decathlon(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz", "labelsTr/a.nii.gz")
    training = [{"image": f"./imagesTr/{x}.nii.gz", "label": f"./labelsTr/{x}.nii.gz"} for x in "ab"]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": training}))
    assert [(case.name, len(case.files)) for case in find_cases(tmp_path)] == [("a.nii.gz", 1), ("b", 2)]


def test_nnssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "raw/a.nii.gz", "raw/b.nii.gz")
    images = [{"name": "a.nii.gz", "modality": "T1", "image_path": "$nnssl_raw/a.nii.gz", "associated_masks": None}]
    images.append({"name": "b.nii.gz", "modality": "T1", "image_path": str(tmp_path / "raw" / "b.nii.gz")})
    subjects = {"s1": {"subject_id": "s1", "sessions": {"ses": {"session_id": "ses", "images": images}}}}
    data_sets = {"1": {"dataset_index": 1, "name": "D", "subjects": subjects}}
    path = tmp_path / "pretrain_data.json"
    path.write_text(json.dumps({"collection_index": 1, "collection_name": "X", "datasets": data_sets}))
    monkeypatch.delenv("nnssl_raw", raising=False)
    with pytest.raises(ValueError, match=r"\$nnssl_raw, which is not set"):
        find_cases(path)
    monkeypatch.setenv("nnssl_raw", str(tmp_path / "raw"))
    assert names(path) == names(tmp_path) == ["D/s1/ses/a.nii.gz", "D/s1/ses/b.nii.gz"]
    assert is_volumes(path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: touch(root, "a/b.nii.gz"), True),
        (lambda root: write_series(root / "x", phantom(), np.eye(4), extension=""), True),
        (lambda root: write_ome_zarr(root / "a.zarr", phantom()), True),
        (lambda root: (root / "l.csv").write_text("a.nii.gz,x\n"), False),
        (lambda root: touch(root, "a.png", "b.jpg"), False),
        (lambda root: np.save(root / "a.npy", phantom()), False),
        (lambda root: write_tiff(root / "a.tif", phantom()), False),
        (lambda root: None, False),
    ],
)
def test_is_volumes(make: Callable[[Path], object], expected: bool, tmp_path: Path) -> None:
    make(tmp_path)
    assert is_volumes(tmp_path) is expected


def test_is_volumes_of_lists(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("a.nii.gz\n")
    (tmp_path / "p.csv").write_text("a.png,cat\nb.niigata.png,dog\n")
    assert is_volumes(tmp_path / "v.csv")
    assert not is_volumes(tmp_path / "p.csv")
    assert not is_volumes(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no volume in .* it holds no other file"),
        (lambda root: touch(root, "a.txt", "b.txt"), "it holds 2 .txt"),
        (lambda root: Image.new("L", (4, 4)).save(root / "b.png"), "1 .png; b.png: a picture"),
    ],
)
def test_folder_without_volumes(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_cases(tmp_path)


def test_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file or folder"):
        find_cases(tmp_path / "x")
    touch(tmp_path, "a.txt")
    with pytest.raises(ValueError, match="neither a file of a volume"):
        find_cases(tmp_path / "a.txt")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="not a list of volumes"):
        find_cases(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        find_cases(tmp_path / "c.json")
    touch(tmp_path, "one.nii.gz")
    assert names(tmp_path / "one.nii.gz") == ["one.nii.gz"]
