"""Backbones of Ultralytics' YOLO by name, and the file that its models load.

The package is not part of this project's environments: a stand-in with its interface takes its place. Where
`SPARKMIM_ULTRALYTICS=installed` is set, it is the package itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from sparkmim import SparK, export, load_encoder
from sparkmim.checkpoints.encoder import load_trained_encoder, save_encoder
from sparkmim.cli import run_command
from sparkmim.exporters.equivalence import Mismatch
from sparkmim.models.factory import is_registered, load_backbone
from sparkmim.models.named.ultralytics import without_scale
from sparkmim.utils.specs import absolute_spec
from sparkmim.utils.trust import Untrusted

INSTALLED = os.environ.get("SPARKMIM_ULTRALYTICS") == "installed"
NAME = "ultralytics:yolo11n.yaml"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not INSTALLED:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fixtures" / "stand_ins"))
    yield import_module("ultralytics.nn.tasks")
    if not INSTALLED:
        for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
            del sys.modules[name]


def pretrained(path: Path, name: str = NAME) -> Path:
    """Write an encoder whose weights and running statistics differ from those of a new one."""
    module = load_backbone(name).module
    generator = torch.Generator().manual_seed(0)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if "var" in key else tensor + 0.1 * (noise - 0.5))
    known = {"model": name, "in_chans": 3, "image_size": [64, 64], "mean": MEAN, "std": STD, "step": 5}
    save_encoder(module, path, {"sparkmim": json.dumps(known)})
    return path


def test_the_backbone_is_what_visible_patches_carry_out(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(NAME)
    strides = [level.stride[0] for level in backbone.levels]
    assert strides == ([4, 8, 16, 32] if INSTALLED else [2, 4, 8, 16])
    last = 9 if INSTALLED else 3
    assert backbone.stages[-1] == f"model.{last}", "the attention behind it is left out"
    assert all(key.startswith("model.") for key in backbone.module.state_dict())
    assert is_registered(NAME)
    assert load_backbone(NAME, in_chans=1).in_chans == 1
    model = SparK(backbone, decoder_width=32).train()
    model(torch.rand(2, 3, 64, 64)).loss.backward()
    assert backbone.module.get_parameter("model.0.conv.weight").grad is not None


def test_a_model_takes_the_file(package: Any, tmp_path: Path) -> None:
    path = pretrained(tmp_path / "encoder.safetensors")
    done = export(path, tmp_path / "yolo.pt", format="ultralytics")
    source, _ = package.load_checkpoint(tmp_path / "yolo.pt")
    torch.manual_seed(1)
    model = package.DetectionModel("yolo11n.yaml", ch=3, verbose=False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load(source)
    own = load_trained_encoder(path).backbone.module.state_dict()
    assert f"transfers {len(own)} of {len(before)} items" in done.usage
    first = {"model.0.conv.weight", "model.0.bn.running_mean"}
    for key, tensor in model.state_dict().items():
        if key in own and key not in first:
            assert torch.equal(tensor, own[key]), key
        elif key not in own:
            assert torch.equal(tensor, before[key]), f"{key} is the model's own"


def test_the_normalization_goes_into_the_first_layer(package: Any, tmp_path: Path) -> None:
    path = pretrained(tmp_path / "encoder.safetensors")
    export(path, tmp_path / "yolo.pt", format="ultralytics")
    export(path, tmp_path / "plain.pt", format="ultralytics", mean=(0.0,) * 3, std=(1.0,) * 3)
    models = [package.load_checkpoint(tmp_path / name)[0].double().eval() for name in ("yolo.pt", "plain.pt")]
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        found, wanted = models[0].model[0](image), models[1].model[0]((image - mean) / std)
    torch.testing.assert_close(found[..., 1:, 1:], wanted[..., 1:, 1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, wanted), "zeros are padded to other colors"


def test_a_first_layer_that_cannot_take_the_normalization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pretrained(tmp_path / "encoder.safetensors")
    monkeypatch.setattr("sparkmim.exporters.ultralytics._keeps_statistics", lambda norm: False)
    with pytest.raises(Mismatch, match=r"pretrain with --mean 0 0 0 --std 1 1 1"):
        export(path, tmp_path / "yolo.pt", format="ultralytics")
    assert not (tmp_path / "yolo.pt").exists()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match=r"pretrain one with --model ultralytics:yolo11n\.yaml"):
        export("none", tmp_path / "yolo.pt", format="ultralytics", model="test_resnet")


def test_errors_of_names(package: Any) -> None:
    with pytest.raises(ValueError, match=r"for YOLO11 nano write ultralytics:yolo11n.yaml"):
        load_backbone("ultralytics:yolo11n")
    with pytest.raises(ValueError, match=r"has no network 'yolo99n.yaml'; .*a letter gives the scale"):
        load_backbone("ultralytics:yolo99n.yaml")
    with pytest.raises(ValueError, match=r"ultralytics has no network .https://host/yolo11n\.yaml"):
        load_backbone("ultralytics:https://host/yolo11n.yaml")
    with pytest.raises(ValueError, match="takes no stochastic depth"):
        load_backbone(NAME, drop_path=0.1)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ValueError, match=r"needs the package ultralytics.*pip install ultralytics.*AGPL"):
        load_backbone(NAME)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("yolo11n.yaml", "yolo11.yaml"),
        ("yolov8x-seg.yaml", "yolov8-seg.yaml"),
        ("yolo11.yaml", "yolo11.yaml"),
        ("yolov5s6.yaml", "yolov56.yaml"),
    ],
)
def test_scales_share_a_file(name: str, plain: str) -> None:
    assert without_scale(name) == plain


@pytest.mark.skipif(INSTALLED, reason="of the stand-in's description")
def test_a_file_of_the_users_needs_trust(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = package.yaml_model_load("yolo11n.yaml")
    described["backbone"] = described["backbone"][:3]
    described["head"] = [[2, "Detect", [4]]]
    (tmp_path / "yolo11.yaml").write_text(json.dumps(described))
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("ultralytics:yolo11.yaml") == f"ultralytics:{tmp_path}/yolo11.yaml"
    assert absolute_spec(NAME) == NAME
    assert not is_registered(NAME), "the file in this folder is taken, not Ultralytics' own"
    assert len(load_backbone("ultralytics:yolo11.yaml").levels) == 3
    path = pretrained(tmp_path / "encoder.safetensors", f"ultralytics:{tmp_path}/yolo11.yaml")
    with pytest.raises(Untrusted, match="ultralytics would build it"):
        load_encoder(path)
    load_encoder(path, trust=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pretrained(tmp_path / "encoder.safetensors")
    arguments = ["export", "--encoder", path, "--format", "ultralytics", "--output", tmp_path / "yolo.pt"]
    assert run_command([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr().out
    assert f'model = YOLO("yolo11n.yaml").load("{tmp_path}/yolo.pt")' in told
    assert "model.train(data=" in told
