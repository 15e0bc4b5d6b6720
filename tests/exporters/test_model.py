"""Whole fine-tuned models compute as programs, and in torchvision, what they compute here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from segmentation_networks import SmallUNet
from sparkmim import export_model
from sparkmim.cli import run_command
from sparkmim.data.config import ViewConfig
from sparkmim.exporters.equivalence import Mismatch
from sparkmim.exporters.model import to_classifier
from sparkmim.exporters.program import Program
from sparkmim.models.backbone import Backbone
from sparkmim.transfer.config import NetworkConfig, SegmentationSettings
from sparkmim.transfer.model_file import load_model, save_model
from sparkmim.transfer.network import pooled_network
from sparkmim.transfer.tasks.segmentation import Segmentation

HERE = Path(__file__).parents[1] / "segmentation_networks.py"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
TABLE = {
    "classes": ["ground", "box"],
    "values": [0, 7],
    "colors": [[0, 0, 0], [255, 0, 0]],
    "ignore_index": 255,
    "background": None,
    "class_weights": None,
    "volumes": None,
}


class Recorded:
    """What a file records of the configuration of a run."""

    def __init__(self, model: NetworkConfig, data: ViewConfig) -> None:
        self.model, self.data = model, data


def segmenter(path: Path, function: str = "network", head: str = "unet", size: tuple[int, ...] = (20, 28)) -> Path:
    """Write a model of a segmentation, on images whose sides the stride does not divide."""
    channels = 1 if len(size) == 3 else 3
    task = Segmentation(SegmentationSettings(head=head, decoder_width=8))  # type: ignore[arg-type]
    model = NetworkConfig(task="segmentation", model=f"{HERE}:{function}", in_chans=channels)
    data = ViewConfig(image_size=size, mean=MEAN[:channels], std=STD[:channels])
    torch.manual_seed(0)
    module = task.build(model, TABLE).module
    settings = {"head": head, "decoder_width": 8}
    recorded: Any = Recorded(model, data)
    save_model(module.state_dict(), path, recorded, settings, TABLE, 3)
    return path


def classifier(path: Path, name: str = "test_resnet", classes: int = 3) -> Path:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes)
    recorded: Any = Recorded(NetworkConfig(model=name), ViewConfig(image_size=(32, 32), mean=MEAN, std=STD))
    save_model(module.state_dict(), path, recorded, {}, {"classes": [str(k) for k in range(classes)]}, 3)
    return path


def images(count: int, *size: int, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(count))


def logits(path: Path, given: Tensor) -> Tensor:
    """Return what the model computes of normalized images."""
    saved = load_model(path, trust=True)
    mean, std = (torch.tensor(v).view(1, -1, *(1 for _ in given.shape[2:])) for v in (saved.view.mean, saved.view.std))
    with torch.no_grad():
        out: Tensor = saved.module((given - mean) / std)
    return out


def assert_near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_the_segmenter(tmp_path: Path) -> None:
    path = segmenter(tmp_path / "model.safetensors")
    done = export_model(path, tmp_path / "m.pt", format="torchscript", trust=True)
    extra = {"sparkmim": ""}
    program = torch.jit.load(tmp_path / "m.pt", _extra_files=extra)
    for count in (1, 2, 5):
        given = images(count, 20, 28)
        assert program(given).shape == (count, 2, 20, 28)
        assert_near(program(given), logits(path, given))
    known = json.loads(extra["sparkmim"])
    assert known["classes"] == ["ground", "box"]
    assert known["values"] == [0, 7]
    assert known["image_size"] == [20, 28]
    assert "images (N, 3, 20, 28), float32, values from 0 to 1" in done.usage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "head", "size"),
    [("unet", "own", (16, 20)), ("volume_network", "unet", (8, 16, 16))],
)
def test_torch_export_is_the_segmenter(tmp_path: Path, function: str, head: str, size: tuple[int, ...]) -> None:
    path = segmenter(tmp_path / "model.safetensors", function, head, size)
    export_model(path, tmp_path / "m.pt2", format="torch-export", trust=True)
    program = torch.export.load(tmp_path / "m.pt2").module()
    given = images(3, *size, channels=1 if len(size) == 3 else 3)
    assert_near(program(given), logits(path, given))


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = segmenter(tmp_path / "model.safetensors", head="fpn")
    export_model(path, tmp_path / "m.onnx", trust=True)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "images"
    for count in (1, 4):
        given = images(count, 20, 28)
        found = session.run(["logits"], {"images": given.numpy()})[0]
        assert isinstance(found, np.ndarray)
        assert_near(torch.from_numpy(found), logits(path, given))
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(entries["sparkmim"])["task"] == "segmentation"


def test_onnx_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = segmenter(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"onnx needs the packages .*pip install 'sparkmim\[onnx\]'"):
        export_model(path, tmp_path / "m.onnx", trust=True)
    assert not (tmp_path / "m.onnx").exists()


def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = segmenter(tmp_path / "model.safetensors")
    real = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda program, *a, **k: real(Wrong(program), *a, **k))
    with pytest.raises(Mismatch, match="TorchScript computes something else"):
        export_model(path, tmp_path / "m.pt", format="torchscript", trust=True)
    assert not (tmp_path / "m.pt").exists()


class Wrong(nn.Module):
    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.program(given)
        return out + 0.1


def test_a_program_normalizes_its_images() -> None:
    program = Program(nn.Identity(), ViewConfig(image_size=(2, 2), mean=MEAN, std=STD))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(program(mean.expand(1, 3, 2, 2) + std), torch.ones(1, 3, 2, 2))


# --- torchvision


@pytest.mark.slow
def test_a_classifier_loads_into_torchvision(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.safetensors", "resnet18", 4)
    done = export_model(path, tmp_path / "tv.pth", format="torchvision")
    network = torchvision.models.resnet18(num_classes=4).eval()
    network.load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True), strict=True)
    given = images(2, 64, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        assert_near(network((given - mean) / std), logits(path, given))
    assert "torchvision.models.resnet18(num_classes=4)" in done.usage


@pytest.mark.slow
def test_a_network_of_torchvision_with_a_head_on_its_last_map() -> None:
    backbone = Backbone(torchvision.models.resnet18())
    module = pooled_network(backbone, nn.Linear(512, 4)).module.eval()
    builder, weights = to_classifier(module, 4)
    network = torchvision.models.get_model(builder, num_classes=4).eval()
    network.load_state_dict(weights, strict=True)
    given = images(2, 64, 64)
    with torch.no_grad():
        assert_near(network(given), module(given))


@pytest.mark.slow
def test_models_that_torchvision_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match=r"no network with the head of a segmentation; export the program .*--encoder"):
        export_model(segmenter(tmp_path / "s.safetensors"), tmp_path / "x.pth", format="torchvision", trust=True)
    with pytest.raises(Mismatch, match="torchvision has no network with the structure of this ResNet"):
        export_model(classifier(tmp_path / "c.safetensors"), tmp_path / "x.pth", format="torchvision")
    with pytest.raises(Mismatch, match="is not a network of timm's or torchvision's"):
        to_classifier(SmallUNet(2), 3)


# --- the command


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_command(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = segmenter(tmp_path / "run" / "model.safetensors")
    out = tmp_path / "m.pt"
    run = ("--run", path, "--output")
    assert run_command(["export", *map(str, run), str(out), "--format", "torchscript", "--trust"]) == 0
    assert f'torch.jit.load("{out}")' in capsys.readouterr().out
    assert "give one of --encoder" in complaint(capsys, "--output", out)
    assert "give one of --encoder" in complaint(capsys, *run, out, "--encoder", path)
    assert "must end in .onnx for --format onnx" in complaint(capsys, *run, out)
    assert "--format smp does not take --run" in complaint(capsys, *run, out, "--format", "smp")
    assert "--in-chans is for --encoder" in complaint(capsys, *run, out, "--in-chans", 3)
    assert "names the network" in complaint(capsys, *run, out, "--format", "torchscript")
    assert "is for a whole fine-tuned model: name it by --run" in complaint(
        capsys, "--encoder", path, "--output", out, "--format", "onnx"
    )
    assert "there is no model" in complaint(capsys, "--run", tmp_path / "none", "--output", tmp_path / "x.onnx")


def test_a_segmenters_network_goes_without_its_head_and_steps(tmp_path: Path) -> None:
    from sparkmim.checkpoints.encoder import load_trained_encoder

    path = segmenter(tmp_path / "model.safetensors")
    encoder = load_trained_encoder(path, trust=True)
    assert encoder.step is None, "these are not steps of a pretraining"
    assert not any("head" in key for key in encoder.backbone.module.state_dict())
