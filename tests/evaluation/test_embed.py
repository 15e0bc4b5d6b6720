from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import sparkmim
from sparkmim import pretrain
from sparkmim.commands.embed import command as embed
from sparkmim.commands.reconstruct import command as reconstruct
from sparkmim.data.config import DataConfig
from sparkmim.data.decoding.images import read_image
from sparkmim.data.normalize import Normalize
from sparkmim.data.views import evaluation_view
from sparkmim.utils.logging import printing

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    chosen = {
        "model": "test_resnet",
        "data": str(images),
        "image_size": 64,
        "decoder_width": 32,
        "batch_size": 3,
        "epochs": 1.0,
        "warmup_epochs": 0.0,
        "workers": 0,
        "precision": "32",
    }
    pretrain(folder, chosen=chosen)
    return folder


def test_features_are_the_ordinary_networks(run: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npz"
    assert embed(run / "encoder.safetensors", output, data=str(images), workers=0, batch_size=4) == 0
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(load_file(run / "encoder.safetensors"))
    network.eval()
    config = json.loads((run / "config.json").read_text())["data"]
    data = DataConfig(image_size=(64, 64), mean=tuple(config["mean"]), std=tuple(config["std"]))
    view = evaluation_view(data)
    with torch.no_grad():
        wanted = network(Normalize(data)(torch.stack([view(read_image(images / f"{i}.png")) for i in range(6)])))
    found = np.load(output)
    assert found["names"].tolist() == [f"{i}.png" for i in range(6)]
    torch.testing.assert_close(torch.from_numpy(found["features"]), wanted)


def test_any_map_and_size(run: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npz"
    embed(run / "encoder.safetensors", output, data=str(images), stage=(0,), image_size=96, workers=0)
    assert np.load(output)["features"].shape[1] == sparkmim.Backbone.create("test_resnet").channels[0]


def test_broken_images_are_skipped_and_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    with printing():
        embed(run / "encoder.safetensors", tmp_path / "x.npz", data=str(folder), workers=0)
    assert np.load(tmp_path / "x.npz")["names"].tolist() == ["good.png"]
    printed = capsys.readouterr()
    assert "skipped bad.png" in printed.err
    assert "1 skipped" in printed.out
    (folder / "good.png").unlink()
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        embed(run / "encoder.safetensors", tmp_path / "y.npz", data=str(folder), workers=0)


def test_parquet(run: Path, images: Path, tmp_path: Path) -> None:
    embed(run / "encoder.safetensors", tmp_path / "x.parquet", data=str(images), workers=0)
    embed(run / "encoder.safetensors", tmp_path / "x.npz", data=str(images), workers=0)
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["name"] == [f"{i}.png" for i in range(6)]
    np.testing.assert_array_equal(
        np.array(table["features"], dtype=np.float32), np.load(tmp_path / "x.npz")["features"]
    )


def test_parquet_without_pyarrow(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.commands.embed.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        embed(run / "encoder.safetensors", tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": Path("x.csv")}, "must end in .npz or .parquet"),
        ({"stage": 9}, "--stage 9 is not one of the network's"),
        ({"encoder": Path("nowhere")}, "there is no file nowhere"),
        ({"data": Path("nowhere")}, "there is no folder nowhere"),
        ({"image_size": 0}, "--image-size 0 is not a number of pixels"),
        ({"batch_size": 0}, "--batch-size is a number of images, at least 1, not 0"),
        ({"workers": -1}, "--workers is a number of processes, at least 0, not -1"),
        ({"output": Path(__file__) / "x.npz"}, "x.npz cannot be written .*; name another file"),
    ],
)
def test_embed_refuses(run: Path, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    usual = {"encoder": run / "encoder.safetensors", "output": tmp_path / "x.npz", "workers": 0}
    with pytest.raises(ValueError, match=message):
        embed(**{**usual, **settings})  # type: ignore[arg-type]


def test_weights_that_do_not_know_their_network_are_named(images: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="--model"):
        embed(tmp_path / "weights.pth", tmp_path / "x.npz", data=str(images))
    embed(tmp_path / "weights.pth", tmp_path / "x.npz", data=str(images), model="test_resnet", image_size=64, workers=0)
    assert len(np.load(tmp_path / "x.npz")["names"]) == 6


def test_reconstruct(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reconstruct(run, tmp_path / "a.png", data=str(images), count=3)
    reconstruct(run, tmp_path / "b.png", data=str(images), count=3, seed=1)
    assert "3 reconstructions after step 2" in capsys.readouterr().out
    a, b = (np.array(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert a.shape == b.shape
    assert (a != b).any()  # other masks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": Path("x.jpg")}, "must end in .png or .nii.gz or .nii; write x.png"),
        ({"count": 0}, "--count 0"),
        ({"count": 9}, "--count 9 is not a number of images from 1 to 8"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"output": Path(__file__) / "x.png"}, "x.png cannot be written .*; name another file"),
        ({"run": Path("nowhere")}, "there is no run in nowhere; --run takes the folder of a pretraining"),
        ({"run": Path(__file__).parent}, "there is no run in .*; --run takes the folder of a pretraining"),
        ({"run": OLD / "finetune"}, "holds a run of `sparkmim finetune`; --run takes the folder of a pretraining"),
        ({"mask_ratio": 1.0}, "--mask-ratio is the share of patches to hide, from 0 to below 1, not 1.0"),
        ({"mask_ratio": 0.99}, "hides all"),
    ],
)
def test_reconstruct_refuses(run: Path, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    usual = {"run": run, "output": tmp_path / "x.png"}
    with pytest.raises(ValueError, match=message):
        reconstruct(**{**usual, **settings})  # type: ignore[arg-type]


def test_a_run_without_checkpoint_has_nothing_to_show(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        reconstruct(folder, tmp_path / "x.png")


# --- the functions --------------------------------------------------------------------------------------------------


def test_embed_returns_what_the_command_writes(run: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    found = sparkmim.embed(run, images, workers=0)
    assert capsys.readouterr() == ("", "")
    embed(run, tmp_path / "x.npz", data=str(images), workers=0)
    written = np.load(tmp_path / "x.npz")
    assert found.names == written["names"].tolist()
    np.testing.assert_array_equal(found.features, written["features"])
    assert found.skipped == []
    with pytest.raises(ValueError, match=r"must end in .npz or .parquet"):
        found.write(tmp_path / "x.csv")


def test_reconstruct_returns_images_and_picture(run: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    found = sparkmim.reconstruct(run, images, count=2)
    assert capsys.readouterr() == ("", "")
    assert found.images.shape == found.reconstructions.shape == (2, 3, 64, 64)
    assert found.visible.shape == (2, 2, 2)
    assert found.step == 2
    seen = found.visible.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1).expand_as(found.images)
    assert torch.equal(found.reconstructions[seen], found.images[seen])
    reconstruct(run, tmp_path / "x.png", data=str(images), count=2)
    assert (np.asarray(found.picture) == np.asarray(Image.open(tmp_path / "x.png"))).all()
