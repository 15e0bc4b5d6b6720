"""Bodies and pyramids of detectors under the names of MMDetection and Detectron2 compute what they compute here."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim import export_model
from sparkmim.exporters.equivalence import Mismatch
from sparkmim.exporters.pyramid import to_detectron2_pyramid, to_mmdet_pyramid
from sparkmim.models.factory import load_backbone
from sparkmim.transfer.config import DetectionSettings
from sparkmim.transfer.detection.network import build_detector

HEADS = [("faster-rcnn", "none"), ("faster-rcnn", "batch"), ("retinanet", "none"), ("fcos", "none")]


def detector(head: str, norm: str = "none") -> Any:
    torch.manual_seed(0)
    settings = DetectionSettings(head=head, fpn_width=64, head_norm=norm)  # type: ignore[arg-type]
    return build_detector(load_backbone("resnet18"), settings, 2).eval()


def maps(module: Any, image: Tensor) -> list[Tensor]:
    backbone = module.backbone
    return [backbone._backbone(image)[level] for level in backbone._levels]


class MMDetectionFPN(nn.Module):
    """What MMDetection's FPN computes, under its names: `mmdet/models/necks/fpn.py`."""

    def __init__(self, in_channels: list[int], out_channels: int, num_outs: int, **settings: Any) -> None:
        super().__init__()
        start, norm = settings.get("start_level", 0), "norm_cfg" in settings
        self.extra = settings.get("add_extra_convs")
        self.num_outs = num_outs

        def conv(channels: int, size: int, stride: int = 1, norm: bool = norm) -> nn.Module:
            own = nn.Module()
            own.conv = nn.Conv2d(channels, out_channels, size, stride, size // 2, bias=not norm)
            if norm:
                own.bn = nn.BatchNorm2d(out_channels)
            return own

        used = in_channels[start:]
        self.lateral_convs = nn.ModuleList(conv(channels, 1) for channels in used)
        self.fpn_convs = nn.ModuleList(conv(out_channels, 3) for _ in used)
        if self.extra:
            self.fpn_convs.extend(conv(out_channels, 3, 2, False) for _ in range(num_outs - len(used)))

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        def apply(own: Any, x: Tensor) -> Tensor:
            out = own.conv(x)
            return own.bn(out) if hasattr(own, "bn") else out

        laterals = [apply(own, x) for own, x in zip(self.lateral_convs, given, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[2:])
        outs = [apply(own, x) for own, x in zip(self.fpn_convs, laterals, strict=False)]
        if not self.extra:
            return [*outs, F.max_pool2d(outs[-1], 1, stride=2)]
        for place in range(len(outs), self.num_outs):
            source = outs[-1] if place == len(laterals) else outs[-1].relu()
            outs.append(apply(self.fpn_convs[place], source))
        return outs


@pytest.mark.parametrize(("head", "norm"), HEADS)
def test_mmdetection_computes_the_same(head: str, norm: str) -> None:
    module = detector(head, norm)
    found = to_mmdet_pyramid(module)
    settings = dict(found.settings["neck"])
    assert settings.pop("type") == "FPN"
    neck = MMDetectionFPN(**settings).eval()
    own = {name.removeprefix("neck."): v for name, v in found.weights.items() if name.startswith("neck.")}
    neck.load_state_dict(own)
    image = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        wanted, other = list(module.backbone(image).values()), neck(maps(module, image))
    assert len(wanted) == len(other) == settings["num_outs"]
    for one, two in zip(wanted, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    body = module.backbone.body.state_dict()
    assert len(found.weights) == len(body) + len(own), "nothing is left out"


@pytest.mark.parametrize(("head", "norm"), HEADS)
def test_detectron2_names(head: str, norm: str) -> None:
    found = to_detectron2_pyramid(detector(head, norm))
    names = {name for name in found.weights if "fpn_" in name}
    first = 2 if head == "faster-rcnn" else 3
    parts = [
        "weight",
        *(["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"] if norm == "batch" else ["bias"]),
    ]
    levels = range(first, 6)
    assert names == {f"backbone.fpn_{k}{n}.{part}" for k in ("lateral", "output") for n in levels for part in parts}
    assert "backbone.bottom_up.stem.conv1.weight" in found.weights
    assert ("P6 and P7" in found.anew) == (head != "faster-rcnn")


def test_a_body_of_other_levels_is_refused() -> None:
    module: Any = build_detector(load_backbone("resnet18", levels=2), DetectionSettings(fpn_width=32), 2)
    with pytest.raises(Mismatch, match="maps of strides 16, 32 of 16, 32"):
        to_mmdet_pyramid(module)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mmdet", "detectron2"])
def test_files(format: Any, tmp_path: Path) -> None:
    from sparkmim.data.config import ViewConfig
    from sparkmim.transfer.config import NetworkConfig
    from sparkmim.transfer.model_file import save_model

    module = detector("faster-rcnn")
    model = NetworkConfig(task="detection", model="resnet18", in_chans=3)
    data = ViewConfig(image_size=(64, 96), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    recorded: Any = SimpleNamespace(model=model, data=data)
    targets = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    path = tmp_path / "model.safetensors"
    save_model(module.state_dict(), path, recorded, {"head": "faster-rcnn", "fpn_width": 64}, targets, 3)
    output = tmp_path / ("m.pth" if format == "mmdet" else "m.pkl")
    done = export_model(path, output, format=format)
    assert "127.5" in done.usage
    if format == "mmdet":
        content = torch.load(output)["state_dict"]
        assert "neck.fpn_convs.3.conv.weight" in content
        assert "'in_channels': [64, 128, 256, 512]" in done.usage
    else:
        content = pickle.loads(output.read_bytes())["model"]
        assert "backbone.fpn_output5.weight" in content
        assert "MODEL.FPN.OUT_CHANNELS 64" in done.usage
