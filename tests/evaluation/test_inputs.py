"""The network and input of an encoder: what is known is used, what is not is measured, and options are everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

import sparkmim
from helpers import FOUR_STEPS, TINY_FINETUNE, make_split, record
from sparkmim.checkpoints.encoder import load_trained_encoder, save_encoder
from sparkmim.cli import run_command
from sparkmim.diagnostics.vanishing import vanishing_figure
from sparkmim.exporters.export import export
from sparkmim.utils.logging import printing

PICKY = """
import timm
import torch


class Picky(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=0)

    def forward(self, x):
        if x.shape[-1] < 32:
            raise RuntimeError("images of 32 pixels at least")
        return self.net(x)


def make():
    return Picky()
"""


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("labeled"), 4)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of timm's smallest network, with nothing said about it."""
    torch.manual_seed(0)
    save_encoder(timm.create_model("test_resnet", num_classes=0), tmp_path / "weights.safetensors", {})
    return tmp_path / "weights.safetensors"


pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"workers": 0, "device": "cpu"}

USES: dict[str, Callable[..., Any]] = {
    "embed": lambda encoder, data, output, **more: sparkmim.embed(encoder, data, **SMALL, **more),
    "knn": lambda encoder, data, output, **more: sparkmim.knn(encoder, data, neighbours=(1,), **SMALL, **more),
    "probe": lambda encoder, data, output, **more: sparkmim.linear_probe(encoder, data, **SMALL, **more),
}


@pytest.mark.parametrize("command", ["embed", "knn", "probe", "finetune"])
@pytest.mark.parametrize("kind", ["array", "stack"])
def test_images_of_other_channels(command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No flag is advised that the encoder refuses; where the network is made, the flag that is named works."""
    data = tmp_path / "data"
    for number in range(4):
        pixels = np.random.default_rng(number).random((5, 40, 40), dtype=np.float32)
        path = data / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels) if kind == "array" else tifffile.imwrite(
            path.with_suffix(".tif"), pixels, photometric="minisblack"
        )
    known = {"sparkmim": json.dumps({"model": "test_resnet", "in_chans": 3, "image_size": [32, 32]})}
    save_encoder(timm.create_model("test_resnet", num_classes=0), tmp_path / "weights.safetensors", known)
    output = {"embed": ["--output", "x.npz"], "finetune": ["--output", "run", "--epochs", "1", "--batch-size", "2"]}
    output["finetune"] += ["--precision", "32"]
    place = [str(tmp_path / word) if word in ("x.npz", "run") else word for word in output.get(command, [])]
    line = [command, "--data", str(data), "--workers", "0", "--device", "cpu", *place]
    encoder = ["--encoder", str(tmp_path / "weights.safetensors")]
    with printing():
        assert run_command([*line, *encoder]) == 2
        told = "".join(capsys.readouterr())
        assert "(--in-chans where it is made)" in told
        assert "see --in-chans" not in told
        assert "use --in-chans" not in told
        assert run_command([*line, *encoder, "--in-chans", "5"]) == 2
        assert "leave it out, and give images of so many" in "".join(capsys.readouterr())
        made = ["--encoder", "none", "--model", "test_resnet", "--image-size", "32", "--in-chans", "5"]
        made += ["--neighbours", "1"] if command == "knn" else []
        assert run_command([*line, *made]) == 0, "".join(capsys.readouterr())


@pytest.mark.parametrize("use", USES)
def test_sizes_that_a_network_does_not_take(use: str, labeled: Path, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    model = f"{tmp_path}/picky.py:make"
    stages = ("net.layer2", "net.layer4")
    message = r"picky\.py:make does not take images of --image-size 8 8 \(images of 32 pixels at least\); use a larger"
    with pytest.raises(ValueError, match=message):
        USES[use]("none", labeled, tmp_path, model=model, stages=stages, image_size=8)
    USES[use]("none", labeled, tmp_path, model=model, stages=stages, image_size=32)


def test_sizes_that_a_classifier_does_not_take(labeled: Path, tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    chosen = {"model": f"{tmp_path}/picky.py:make", "stages": ("net.layer2", "net.layer4"), "epochs": 0.5}
    sparkmim.finetune(tmp_path / "run", chosen={**TINY_FINETUNE, "data": labeled, **chosen})
    with pytest.raises(ValueError, match=r"does not take images of --image-size 8 8 \(images of 32 pixels"):
        sparkmim.predict(tmp_path / "run", labeled, image_size=8, trust=True, **SMALL)


@pytest.mark.parametrize("use", USES)
def test_options_of_network_and_input(use: str, tmp_path: Path) -> None:
    """Images of one channel, stages and statistics of one's own."""
    data = make_split(tmp_path / "data", 3)
    for path in data.rglob("*.png"):
        with Image.open(path) as picture:
            grey = picture.convert("L")
        grey.save(path)
    more = {"model": "test_resnet", "in_chans": 1, "image_size": 32, "mean": (0.4,), "std": (0.2,)}
    USES[use]("none", data, tmp_path, **more, stages=("layer1", "layer2"), stage=1)
    with pytest.raises(ValueError, match="--stage 2 is not one of the network's 2 maps"):
        USES[use]("none", data, tmp_path, **more, stages=("layer1", "layer2"), stage=2)
    with pytest.raises(ValueError, match=r"--mean 0\.4 0\.4 0\.4 has 3 values for 1 channels"):
        USES[use]("none", data, tmp_path, **{**more, "mean": (0.4,) * 3})
    with pytest.raises(ValueError, match="--mean and --std are given together"):
        USES[use]("none", data, tmp_path, **{**more, "std": None})


@pytest.mark.parametrize("command", ["embed", "knn", "probe", "export", "figure vanishing"])
def test_flags_of_network_and_input(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    for flag in ("--model", "--stages", "--in-chans", "--mean", "--std", "--image-size", "--trust"):
        assert flag in told, flag


def test_statistics_are_measured_where_nothing_is_known(tmp_path: Path) -> None:
    import tifffile

    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for index in range(6):
        values = generator.normal(1000, 22, (64, 64, 2)).astype(np.float32)
        tifffile.imwrite(tmp_path / "data" / f"{index}.tif", values, planarconfig="contig")
    said: list[str] = []
    more = {"model": "test_resnet", "in_chans": 2, "image_size": 64, **SMALL}
    found = record(said, sparkmim.embed, "none", tmp_path / "data", **more)
    (line,) = (line for line in said if line.startswith("measured on 6 images: --mean 1000"))
    numbers = list(map(float, line.partition("--mean ")[2].replace("--std ", "").split()))
    told = {"mean": numbers[:2], "std": numbers[2:]}
    quiet: list[str] = []
    again = record(quiet, sparkmim.embed, "none", tmp_path / "data", **more, **told)
    assert not any("measured" in line for line in quiet), "what the line says is taken"
    np.testing.assert_allclose(found.features, again.features, rtol=1e-5)


def test_what_timm_knows_of_a_network_is_used(weights: Path) -> None:
    known = timm.create_model("test_resnet").pretrained_cfg
    loaded = load_trained_encoder(weights, "test_resnet")
    assert loaded.data.mean == tuple(known["mean"])
    assert loaded.data.image_size == tuple(known["input_size"][1:])
    assert loaded.statistics_known


def test_channels_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=1)
    save_encoder(network, tmp_path / "w.safetensors", {})
    loaded = load_trained_encoder(tmp_path / "w.safetensors", "test_resnet")
    assert loaded.backbone.in_chans == 1
    said: list[str] = []
    adapted = record(said, load_trained_encoder, tmp_path / "w.safetensors", "test_resnet", in_chans=3)
    assert adapted.backbone.in_chans == 3
    assert said == ["weights of 1 channels adapted to 3, as timm does"]


def test_a_checkpoint_describes_its_network(labeled: Path, tmp_path: Path) -> None:
    chosen = {**FOUR_STEPS, "data": labeled, "epochs": 0.5, "mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.2)}
    sparkmim.pretrain(tmp_path / "run", chosen=chosen)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    one, other = (load_trained_encoder(path) for path in (checkpoint, tmp_path / "run"))
    assert (one.name, one.step, one.data) == (other.name, other.step, other.data)
    for name, tensor in other.backbone.module.state_dict().items():
        assert torch.equal(tensor, one.backbone.module.state_dict()[name])


def test_a_folder_of_timm_is_an_encoder(labeled: Path, weights: Path, tmp_path: Path) -> None:
    export(weights, tmp_path / "timm", model="test_resnet", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1), image_size=64)
    for encoder in (tmp_path / "timm", tmp_path / "timm" / "model.safetensors"):
        loaded = load_trained_encoder(encoder)
        assert loaded.name == "test_resnet"
        assert (loaded.data.mean, loaded.data.image_size) == ((0.1, 0.2, 0.3), (64, 64))
    sparkmim.finetune(
        tmp_path / "run",
        chosen={k: v for k, v in TINY_FINETUNE.items() if k not in ("model", "image_size")}
        | {"data": labeled, "encoder": tmp_path / "timm", "epochs": 0.5},
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["mean"] == [0.1, 0.2, 0.3]
    described = json.loads((tmp_path / "timm" / "config.json").read_text())
    described["model_args"] = {"stem_width": 32, **(described.get("model_args") or {})}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"give it as --model local-dir:(\S+) with --encoder (\S+)") as error:
        load_trained_encoder(tmp_path / "timm")
    model, file = (part.split()[0] for part in str(error.value).partition("--model ")[2].split(" with --encoder "))
    described["model_args"].pop("stem_width")
    (tmp_path / "timm" / "config.json").write_text(json.dumps(described))
    assert load_trained_encoder(file, model).backbone.in_chans == 3, "the remedy of the message"


def test_folders_of_timm_are_recorded_absolute(
    labeled: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(weights, tmp_path / "timm", model="test_resnet")
    monkeypatch.chdir(tmp_path)
    chosen = {**TINY_FINETUNE, "data": labeled, "model": "local-dir:timm", "epochs": 0.5}
    sparkmim.finetune("run", chosen=chosen)
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"]["model"] == f"local-dir:{tmp_path}/timm"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(sparkmim.predict(tmp_path / "run", labeled, trust=True, **SMALL)) == 12
    shutil.rmtree(tmp_path / "timm")
    with pytest.raises(ValueError, match=r"there is no timm network in the folder \S+timm: it has no config\.json"):
        sparkmim.predict(tmp_path / "run", labeled, trust=True, **SMALL)


def test_padded_networks_are_told_of_when_they_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sparkmim.Backbone, "aligned", ["conv1"])  # as of inception_v3, which takes long
    record(said, export, "none", tmp_path / "timm", model="test_resnet")
    assert any("test_resnet was pretrained with" in line and "differ near the edges" in line for line in said)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("check test_resnet --in-chans 0", "--in-chans is a number of channels, at least 1, not 0"),
        ("predict --run x --data y --output .", "--output . is a folder; name a file in it that ends in .csv"),
        ("embed --encoder x --output .", "--output . is a folder; name a file in it that ends in .npz"),
        ("reconstruct --run x --output .", "--output . is a folder; name a file in it that ends in .png"),
        ("models resnet18 --output .", "--output . is a folder; name a file in it that ends in .md"),
        ("benchmark --output ..", "--output .. is a folder; name a file in it that ends in .md"),
        ("benchmark --model test_resnet --data JUNK --image-size 64 --device cpu", "can be read"),
    ],
)
def test_refused_in_words(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk").mkdir()
    for index in range(3):
        (tmp_path / "junk" / f"{index}.png").write_bytes(b"junk")
    assert run_command(line.replace("JUNK", str(tmp_path / "junk")).split()) == 2
    assert message in capsys.readouterr().err


def test_the_figure_takes_the_same_options(labeled: Path) -> None:
    image = next(labeled.rglob("*.png"))
    made = vanishing_figure(image, model="test_resnet", image_size=64, in_chans=1, mean=(0.4,), std=(0.2,))
    assert made.network == "test_resnet"
