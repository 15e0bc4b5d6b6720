"""Detectors find as programs what they find here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detection_data import DETECT
from sparkmim import export_model
from sparkmim.data.config import ViewConfig
from sparkmim.exporters.detector import DetectorProgram, unmatched
from sparkmim.exporters.equivalence import Mismatch
from sparkmim.transfer.config import DetectionSettings, NetworkConfig
from sparkmim.transfer.model_file import load_model, save_model
from sparkmim.transfer.tasks.detection import Detection
from sparkmim.transfer.tasks.instance import InstanceSegmentation

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
TARGETS = {"categories": [{"id": 3, "name": "dark"}, {"id": 7, "name": "light"}]}

LEAST = np.array(0.05, np.float32)

HEADS = ("faster-rcnn", "retinanet", "fcos", "mask-rcnn")


class Recorded:
    """What a file records of the configuration of a run."""

    def __init__(self, model: NetworkConfig, data: ViewConfig) -> None:
        self.model, self.data = model, data


def detector(path: Path, head: str, size: tuple[int, int] = (52, 66)) -> Path:
    """Write a detector with random heads, on views whose sides the stride does not divide."""
    masks = head == "mask-rcnn"
    settings = DetectionSettings(head=head, fpn_width=64, detections=20)  # type: ignore[arg-type]
    task = InstanceSegmentation(settings) if masks else Detection(settings)
    name = "instance" if masks else "detection"
    torch.manual_seed(0)
    model = NetworkConfig(task=name, model=DETECT["model"], in_chans=3)
    module: Any = task.build(model, TARGETS).module
    for parameter in module.parameters():
        if parameter.ndim > 1:  # as torchvision begins, scores are almost equal; above, those of retinanet are all 1
            nn.init.normal_(parameter, std=0.03 if head == "retinanet" else 0.1)
    if head == "retinanet":  # begins with scores of 0.01
        nn.init.zeros_(module.head.classification_head.cls_logits.bias)
    data = ViewConfig(image_size=size, mean=MEAN, std=STD)
    recorded: Any = Recorded(model, data)
    given = {"head": head, "fpn_width": 64, "detections": 20}
    save_model(module.state_dict(), path, recorded, given, TARGETS, 3)
    return path


def rows(path: Path, image: Tensor) -> Tensor:
    """Return what the detector finds in an image from 0 to 1."""
    saved = load_model(path, trust=True)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (saved.view.mean, saved.view.std))
    with torch.no_grad():
        out: Tensor = saved.module((image - mean) / std)[0]
    return out[out[:, 5] > 0]


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_onnx_finds_the_same(head: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    path = detector(tmp_path / "model.safetensors", head)
    done = export_model(path, tmp_path / "m.onnx", trust=True)
    assert "images (1, 3, 52, 66)" in done.usage
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images", "min_score"]
    image = torch.rand(1, 3, 52, 66, generator=torch.Generator().manual_seed(9))
    found = [torch.from_numpy(part) for part in session.run(None, {"images": image.numpy(), "min_score": LEAST})]
    wanted = rows(path, image)
    assert len(wanted), "random heads find something"
    same = [wanted[:, :4], wanted[:, 5].long(), wanted[:, 4]]
    assert unmatched(same, found[:3], 66) == 0
    none = session.run(None, {"images": image.numpy(), "min_score": np.array(1.0, np.float32)})
    assert len(none[0]) == 0
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(entries["sparkmim"])["categories"] == TARGETS["categories"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("head", ["fcos", "mask-rcnn"])
def test_torchscript_finds_the_same(head: str, tmp_path: Path) -> None:
    path = detector(tmp_path / "model.safetensors", head)
    export_model(path, tmp_path / "m.pt", format="torchscript", trust=True)
    program = torch.jit.load(tmp_path / "m.pt")
    image = torch.rand(1, 3, 52, 66, generator=torch.Generator().manual_seed(9))
    found, wanted = program(image, torch.tensor(0.05)), rows(path, image)
    assert unmatched([wanted[:, :4], wanted[:, 5].long(), wanted[:, 4]], found[:3], 66) == 0


REFUSED = {"torch-export": "whose number depends on the image; use --format onnx", "torchvision": "torchvision's names"}


@pytest.mark.parametrize("format", sorted(REFUSED))
def test_other_formats_are_refused(format: Any, tmp_path: Path) -> None:
    path = detector(tmp_path / "model.safetensors", "fcos")
    suffix = {"torch-export": "pt2", "torchvision": "pth"}[format]
    with pytest.raises(Mismatch, match=REFUSED[format]):
        export_model(path, tmp_path / f"m.{suffix}", format=format, trust=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrong", ["boxes", "labels", "scores", "fewer"])
def test_a_program_that_finds_something_else_is_not_written(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = detector(tmp_path / "model.safetensors", "fcos")
    real = torch.jit.load

    def load(*args: Any, **kwargs: Any) -> Any:
        program = real(*args, **kwargs)

        def run(image: Tensor, least: Tensor) -> Any:
            boxes, labels, scores = program(image, least)
            change = {
                "boxes": (boxes + 0.1, labels, scores),
                "labels": (boxes, 3 - labels, scores),
                "scores": (boxes, labels, scores * 0.99),
                "fewer": (boxes[1:], labels[1:], scores[1:]),
            }
            return change[wrong]

        return run

    monkeypatch.setattr(torch.jit, "load", load)
    with pytest.raises(Mismatch, match="TorchScript finds something else"):
        export_model(path, tmp_path / "m.pt", format="torchscript", trust=True)
    assert not (tmp_path / "m.pt").exists()


def test_program_leaves_the_detector_as_it_was(tmp_path: Path) -> None:
    saved = load_model(detector(tmp_path / "model.safetensors", "fcos"), trust=True)
    before = saved.module.score_thresh
    with torch.no_grad():
        DetectorProgram(saved.module, saved.view)(torch.rand(1, 3, 52, 66), torch.tensor(0.5))
    assert saved.module.score_thresh == before
