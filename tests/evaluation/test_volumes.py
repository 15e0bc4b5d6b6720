"""k-NN and the linear probe of labeled volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparkmim
from helpers import make_images
from sparkmim.cli import run_command
from sparkmim.data.labels import LabeledImages, labeled_splits
from sparkmim.data.volumes.preparing import Preparation
from sparkmim.evaluation.features import embed
from sparkmim.evaluation.frozen import FrozenEncoder
from sparkmim.evaluation.knn import knn
from sparkmim.evaluation.probe import linear_probe
from sparkmim.pretraining.run import pretrain
from volume_files import write_nifti, write_series

nibabel = pytest.importorskip("nibabel")

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"
KEPT = Preparation(None, ("none",), ("mr",), (None,), False, False)
TWO = Preparation(None, ("none", "none"), ("mr", "mr"), (None, None), False, False)


def volume(kind: int, number: int, size: tuple[int, ...] = (18, 20, 19)) -> np.ndarray:
    """A volume whose texture tells its class: slow or fast along an axis."""
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    noise = np.random.default_rng(100 * kind + number).normal(0, 0.3, size)
    return (np.sin(places[kind] * (0.4 + 1.2 * kind) + number) + noise).astype(np.float32)


def make_split(folder: Path, count: int) -> Path:
    for kind, name in enumerate(("fast", "slow")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            write_nifti(folder / name / f"v{number}.nii.gz", volume(kind, number))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labeled")
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        make_split(root / split, count)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    chosen: dict[str, Any] = {"model": NETWORK, "image_size": 16, "decoder_width": 16, "batch_size": 4, "epochs": 2.0}
    chosen |= {"lr": 0.01, "device": "cpu", "workers": 0, "accumulate": 1, "warmup_epochs": 0.5, "pictures": 1}
    pretrain(folder, chosen={**chosen, "data": data / "train", "monitor": "knn", "monitor_data": data})
    return folder


def test_features_are_those_of_embed_whatever_names_the_volumes(data: Path, run: Path, tmp_path: Path) -> None:
    """Each volume's central crop, prepared as the pretraining recorded it."""
    wanted = embed(run, data / "train", trust=True)
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(str(data / "train" / name), name.split("/")[0]) for name in wanted.names]
        csv.writer(file).writerows([("path", "label"), *rows])
    assert len(wanted.names) == 12
    for labels in (data, data / "train", f"volumes://{data / 'train'}", table):
        frozen = FrozenEncoder(run, None, -1, None, 5, 0, "cpu", 0, data=labels, trust=True)
        found = frozen(frozen.splits.train)
        torch.testing.assert_close(found.values, torch.from_numpy(wanted.features))
        assert found.labels.tolist() == [0] * 6 + [1] * 6


def test_random_weights_see_the_same_in_every_command(data: Path) -> None:
    """The baseline of `--encoder none`: labeled and unlabeled volumes are prepared and cropped alike."""
    for image_size in (None, 24):
        found = embed("none", data / "train", model=NETWORK, in_chans=1, image_size=image_size, seed=3)
        frozen = FrozenEncoder("none", NETWORK, -1, image_size, 5, 0, "cpu", 3, data=data / "train", in_chans=1)
        labeled = frozen(frozen.splits.train)
        torch.testing.assert_close(labeled.values, torch.from_numpy(found.features))
        assert frozen.network.data.image_size == ((image_size,) * 3 if image_size else (16, 16, 16))


def test_commands_find_classes_and_agree_with_the_monitor(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--encoder", str(run), "--data", str(data), "--trust", "--device", "cpu", "--workers", "0"]
    assert run_command(["knn", *options, "--test-data", str(data / "val"), "--output", str(tmp_path)]) == 0
    assert run_command(["probe", *options, "--output", str(tmp_path / "probe")]) == 0
    assert "linear probe" in capsys.readouterr().out
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["train_images"], result["test_images"], result["classes"]) == (12, 6, ["fast", "slow"])
    monitored = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "knn_top1" in line]
    assert monitored[-1]["knn_top1"] == pytest.approx(result["test"]["top1"])
    found = linear_probe(run, data, trust=True, workers=0, device="cpu")
    assert (found.train_images, found.val_images, found.test_images) == (12, 6, 6)
    assert found.accuracy.top1 == 1


def labels_of(found: LabeledImages) -> dict[str, str]:
    return {found.source.name(index): found.classes[label] for index, label in enumerate(found.labels)}


def test_classes_of_every_way_that_volumes_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    numbered = [f"{name}/s_{number:04d}.nii.gz" for name in "ab" for number in range(2)]  # not channels: there is one
    for name in ("a/deep/1.nii.gz", "b/2.nii", *numbered):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(root / name, values)
    np.save(root / "a" / "3.npy", values)
    write_series(root / "b" / "patient", values, np.eye(4))
    write_series(root / "c", values, np.eye(4))  # one series, straight in the folder of its class
    found = labeled_splits(root, None, (), KEPT).train
    assert found.classes == ("a", "b", "c")
    expected = {"a/deep/1.nii.gz": "a", "a/3.npy": "a", "b/2.nii": "b", "b/patient": "b"}
    assert labels_of(found) == {**expected, "c": "c", **{name: name[0] for name in numbered}}
    assert all(found.source.open(index).decode(1).shape == (1, 4, 5, 6) for index in range(len(found)))


def test_tables_of_series_channels_and_splits(tmp_path: Path) -> None:
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    for name in ("x_0000", "x_0001", "y_0000", "y_0001", "z_0000", "z_0001"):
        write_nifti(tmp_path / f"{name}.nii.gz", values)
    table = tmp_path / "labels.csv"
    table.write_text("path;age;label;split\nx.nii.gz;70;ill;train\ny.nii.gz;60;well;train\nz.nii.gz;66;ill;test\n")
    train, val, test = labeled_splits(table, None, (), TWO)
    assert (labels_of(train), val) == ({"x.nii.gz": "ill", "y.nii.gz": "well"}, None)
    assert labels_of(test[0]) == {"z.nii.gz": "ill"}
    assert train.source.open(0).decode(2).shape == (2, 4, 5, 6)
    write_series(tmp_path / "series", values, np.eye(4))
    table.write_text("series,ill\nx_0000.nii.gz,well\n")
    assert labels_of(labeled_splits(table, None, (), KEPT).train) == {"series": "ill", "x_0000.nii.gz": "well"}
    table.write_text("path,label\nx.nii.gz,ill\nw.nii.gz,well\n")
    with pytest.raises(ValueError, match=r"1 of the 2 images of .* does not exist: w.nii.gz"):
        labeled_splits(table, None, (), TWO)


@pytest.mark.parametrize("command", [knn, linear_probe])
def test_bad_input(data: Path, run: Path, tmp_path: Path, command: Any) -> None:
    images = make_images(tmp_path / "images" / "a")
    weights = tmp_path / "weights.pt"
    torch.save(sparkmim.load_encoder("none", NETWORK, in_chans=1).state_dict(), weights)
    with pytest.raises(ValueError, match=r"no volume in .*: it holds \d+ .png"):
        command(run, images.parent, trust=True)
    with pytest.raises(ValueError, match="test_resnet takes images of 2 axes, and these are volumes"):
        command("none", data, model="test_resnet")
    with pytest.raises(ValueError, match=r"does not record how volumes were prepared.* use an encoder.safetensors"):
        command(weights, data, model=NETWORK, in_chans=1)
    (tmp_path / "flat").mkdir()
    write_nifti(tmp_path / "flat" / "v.nii.gz", volume(0, 0))
    with pytest.raises(ValueError, match="has no class folders"):
        command(run, tmp_path / "flat", trust=True)
    with pytest.raises(ValueError, match="--image-size 0 is not a number"):
        command(run, data, image_size=0, trust=True)


def test_volumes_that_are_both_learned_from_and_scored_are_told(
    data: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knn(run, data / "train", test_data=data / "train", trust=True, workers=0, device="cpu", neighbours=(1,))
    assert "12 of the 12 images that are scored are among those that are learned from" in caplog.text


def test_damaged_volumes_are_skipped(data: Path, run: Path, tmp_path: Path) -> None:
    folder = make_split(tmp_path / "some", 3)
    (folder / "fast" / "v1.nii.gz").write_bytes(b"damaged")
    found = knn(run, folder, trust=True, workers=0, device="cpu", neighbours=(1,), image_size=24)
    assert (found.skipped, found.train_images) == (1, 5)
    assert found.encoder["image_size"] == [24, 24, 24]
