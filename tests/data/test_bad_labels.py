"""What fine-tuning refuses before it begins, and what it makes of data that are merely poor."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from helpers import CLASSES, TINY_FINETUNE, make_split
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.training.errors import RunStopped
from sparkmim.transfer.run import finetune


def run(folder: Path, **chosen: Any) -> dict[str, Any]:
    """The results of a run."""
    assert finetune(folder, chosen=TINY_FINETUNE | chosen) is not None
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def table(root: Path, *rows: str) -> Path:
    file = root / "labels.csv"
    names = [path.relative_to(root) for path in sorted(root.rglob("*.png"))]
    file.write_text("\n".join([*(f"{name},{name.parent.name}" for name in names), *rows]))
    return file


@pytest.fixture
def copy(tmp_path: Path, data: Path) -> Path:
    """The data, to be spoilt."""
    return shutil.copytree(data, tmp_path / "data")


def refused(folder: Path, message: str, **chosen: Any) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(folder, chosen=TINY_FINETUNE | chosen)
    assert not folder.exists()


@pytest.mark.parametrize("option", ["data", "val_data", "test_data"])
def test_sources_that_know_no_classes_are_refused(tmp_path: Path, data: Path, option: str) -> None:
    own = tmp_path / "own.py"
    own.write_text("from sparkmim.data.sources.folder import Files\n\nclass Own(Files):\n    pass\n")
    refused(
        tmp_path / "run",
        f"--{option.replace('_', '-')} .*own.py:Own:.*: Own does not know the classes of images; name class folders",
        **{"data": data, option: f"{own}:Own://{data}"},
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_classes_in_another_split(tmp_path: Path, copy: Path, split: str) -> None:
    (copy / split / "red").rename(copy / split / "yellow")
    refused(
        tmp_path / "run",
        rf"expected .*{split} to have the classes of .*: yellow only in .*{split}; red missing there",
        data=copy,
        test_data=copy / "test",
    )


@pytest.mark.parametrize("accumulate", [{}, {"accumulate": 2}], ids=["measured", "told"])
@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"image_size": (64, 64, 64)}, "--image-size takes one number or 2, not 3"),
        (
            {"model": "hrnet_w18_small", "image_size": (40, 40)},
            r"hrnet_w18_small does not take images of --image-size 40 40 \(.*\); use a larger one",
        ),
    ],
    ids=["three numbers", "too small"],
)
def test_image_size(
    tmp_path: Path, data: Path, chosen: dict[str, Any], message: str, accumulate: dict[str, int]
) -> None:
    refused(tmp_path / "run", message, data=data, **chosen, **accumulate)


@pytest.mark.parametrize(("scale", "fits"), [(1.0, True), (255.0, False)], ids=["0 to 1", "beyond"])
def test_changes_of_color_of_floating_point_images(tmp_path: Path, scale: float, fits: bool) -> None:
    for name in ("one", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).random((3, 48, 48), dtype=np.float32)
            np.save(tmp_path / "data" / name / f"{number}.npy", scale * pixels)
    chosen = {"data": tmp_path / "data", "policy": "trivial", "epochs": 1.0}
    if fits:
        run(tmp_path / "run", **chosen)
    else:
        message = r"--policy trivial takes floating-point images for 0 to 1, .*\(.* to 25\d.*\); use --policy none"
        refused(tmp_path / "run", message, **chosen)


def test_more_views_of_an_image_than_are_trained_on_at_a_time(tmp_path: Path, data: Path) -> None:
    refused(
        tmp_path / "run",
        "--repeats 4 views of an image do not fit into the 3 images that are trained on at a time; use fewer",
        data=data,
        repeats=4,
        accumulate=2,
    )


def test_files_that_are_missing(tmp_path: Path, copy: Path) -> None:
    file = table(copy / "train", "red/99.png,red")
    refused(tmp_path / "run", r"1 of the 25 images of .*labels.csv does not exist: red/99.png", data=file)


@pytest.mark.parametrize("folders", [CLASSES, ()])
def test_empty_validation_folder(tmp_path: Path, copy: Path, folders: tuple[str, ...]) -> None:
    shutil.rmtree(copy / "val")
    for name in ("", *folders):
        (copy / "val" / name).mkdir()
    refused(tmp_path / "run", "no image in .*val", data=copy)


def test_validation_images_that_cannot_be_read(tmp_path: Path, copy: Path) -> None:
    for path in (copy / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    refused(tmp_path / "run", "none of 8 images tried can be read as 3 channels; blue/0.png", data=copy)


def test_images_that_go_during_the_run(tmp_path: Path, copy: Path) -> None:
    def empty(done: int) -> None:
        for path in (copy / "val").rglob("*.png"):
            path.write_bytes(b"")

    with pytest.raises(RunStopped, match="none of 12 images to be scored can be read"):
        finetune(tmp_path / "run", chosen=TINY_FINETUNE | {"data": copy}, after_step=empty)


def spoil(folder: Path, count: int) -> list[str]:
    """Make some images unreadable; their names below the folder."""
    paths = sorted(folder.rglob("*.png"))[::4][:count]
    for path in paths:
        path.write_bytes(b"no image")
    return [str(path.relative_to(folder)) for path in paths]


@pytest.mark.parametrize(("split", "option"), [("val", "--val-data"), ("test", "--test-data")])
def test_more_unreadable_images_of_a_split_than_are_allowed(
    tmp_path: Path, copy: Path, split: str, option: str
) -> None:
    """They are refused before the run, and with the flag of the message they are listed and left out."""
    names = spoil(copy / split, 2)
    refused(tmp_path / "run", rf"{option}: [12] of [0-9]+ images tried cannot be read .*by --max-broken", data=copy)
    found = run(tmp_path / "run", data=copy, max_broken=0.4)["test" if split == "test" else "validation"]
    assert sorted(found["unreadable"]) == names
    assert sum(sum(row) for row in found["confusion"]) == found["images"] == 10
    if split == "val":
        listed = (tmp_path / "run" / "broken_held_out_images.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in listed] == names
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(name in report for name in names)


def test_validation_images_that_break_during_the_run(tmp_path: Path, copy: Path) -> None:
    """The run saves, stops, and goes on with the flag that it names."""

    def break_some(done: int) -> None:
        if done == 2:
            spoil(copy / "val", 3)

    message = r"3 of 12 images cannot be read, more than the share of 0.1 that --max-broken .*Last good state: .*-0"
    with pytest.raises(RunStopped, match=message) as stopped:
        finetune(tmp_path / "run", chosen=TINY_FINETUNE | {"data": copy}, after_step=break_some)
    flag = re.search(r"--max-broken ([\d.]+\d)", str(stopped.value))
    assert flag is not None
    outcome = finetune(tmp_path / "run", chosen={"max_broken": float(flag[1])})
    assert outcome is not None
    assert outcome.step == outcome.steps
    assert json.loads((tmp_path / "run" / "results.json").read_text())["validation"]["images"] == 9


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"model": "resnet18"},
            r"holds the weights of test_resnet, not of resnet18: leave --model out.*another",
        ),
        ({"model": None, "encoder": "none"}, "--encoder none does not say which network; name it with --model"),
        ({"encoder": "nowhere"}, "there is no file .*nowhere; --encoder takes"),
        ({"label_share": 0.0}, "--label-share is a share of the labels, above 0"),
        ({"folds": 3}, "--folds and --val-data both say"),
        ({"data": None}, "--data is required"),
    ],
)
def test_choices_that_do_not_fit(tmp_path: Path, data: Path, chosen: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    save_encoder(timm.create_model("test_resnet", num_classes=0), path, {"sparkmim": '{"model": "test_resnet"}'})
    settings = TINY_FINETUNE | {"encoder": path, "data": data, "val_data": data / "val"} | chosen
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "run", chosen={k: v for k, v in settings.items() if v is not None})
    assert not (tmp_path / "run").exists()


def test_a_class_with_one_image_is_trained_on(tmp_path: Path) -> None:
    make_split(tmp_path / "train")
    for path in sorted((tmp_path / "train" / "red").iterdir())[1:]:
        path.unlink()
    found = run(tmp_path / "run", data=tmp_path / "train", folds=4)
    assert found["train"]["per_class"] == [6, 6, 1]
    assert sum(found["validation"]["confusion"][2]) == 0


def test_a_class_without_validation_images_does_not_count(tmp_path: Path, copy: Path) -> None:
    for path in (copy / "val" / "red").iterdir():
        path.unlink()
    validation = run(tmp_path / "run", data=copy)["validation"]
    confusion = validation["confusion"]
    assert (validation["images"], sum(confusion[2])) == (8, 0)
    assert validation["mean_per_class"] == pytest.approx((confusion[0][0] + confusion[1][1]) / 8)
    assert "<th scope=row>red</th>" in (tmp_path / "run" / "report.html").read_text()


def test_a_share_that_would_leave_nothing_of_a_class(tmp_path: Path, data: Path) -> None:
    found = run(tmp_path / "run", data=data, label_share=0.01, batch_size=3)
    assert found["train"]["per_class"] == [1, 1, 1]
