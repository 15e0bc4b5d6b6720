"""Export body and feature pyramid of a fine-tuned detector to MMDetection and Detectron2.

Names follow MMDetection's `models/necks/fpn.py` and Detectron2's `modeling/backbone/fpn.py`, which compute what
torchvision's pyramid does. Heads are left out: they differ between the libraries.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .detectron2 import to_detectron2
from .equivalence import Mismatch
from .openmmlab import to_openmmlab

STAGES = (4, 8, 16, 32)
"""Strides of a body's maps in both libraries."""


class Pyramid(NamedTuple):
    """The state dict of body and pyramid, and what builds them in the other library.

    Attributes:
        weights: by their names there.
        settings: of MMDetection backbone and neck, of Detectron2 torchvision's ResNet, from which settings are made.
        anew: what starts anew, in words.
    """

    weights: dict[str, Tensor]
    settings: Any
    anew: str = "the heads start anew"


def to_mmdet_pyramid(detector: Any) -> Pyramid:
    """Return body and pyramid under MMDetection's names.

    Raises:
        Mismatch: for a body that it does not have, or other levels.
    """
    start = _start(detector)
    body = to_openmmlab(detector.backbone.body, "mmdet")
    one_stage = isinstance(detector.backbone.fpn.extra_blocks, LastLevelP6P7)
    levels = len(STAGES) - start
    renamed = {}
    for name, tensor in detector.backbone.fpn.state_dict().items():
        new = re.sub(r"^inner_blocks\.(\d+)\.", r"neck.lateral_convs.\1.", name)
        new = re.sub(r"^layer_blocks\.(\d+)\.", r"neck.fpn_convs.\1.", new)
        new = re.sub(r"^(neck\.\w+\.\d+)\.0\.", r"\1.conv.", new)
        new = re.sub(r"^(neck\.\w+\.\d+)\.1\.", r"\1.bn.", new)
        new = re.sub(r"^extra_blocks\.p(\d)\.", lambda f: f"neck.fpn_convs.{levels + int(f[1]) - 6}.conv.", new)
        renamed[new] = tensor
    neck = {
        "type": "FPN",
        "in_channels": list(detector.backbone._backbone.channels[-len(STAGES) :]),
        "out_channels": detector.backbone.out_channels,
        "num_outs": levels + (2 if one_stage else 1),
        **({"start_level": start} if start else {}),
        **({"add_extra_convs": "on_output", "relu_before_extra_convs": True} if one_stage else {}),
        **({"norm_cfg": {"type": "BN"}} if any(".bn." in name for name in renamed) else {}),
    }
    weights = {**{f"backbone.{name}": tensor for name, tensor in body.weights.items()}, **renamed}
    return Pyramid(weights, {"backbone": body.backbone, "neck": neck})


def to_detectron2_pyramid(detector: Any) -> Pyramid:
    """Return body and pyramid under Detectron2's names.

    Raises:
        Mismatch: for a body that it does not have, or other levels.
    """
    start = _start(detector)
    body, network = to_detectron2(detector.backbone.body)
    weights = {f"backbone.bottom_up.{name}": tensor for name, tensor in body.items()}
    anew = "the heads start anew"
    for name, tensor in detector.backbone.fpn.state_dict().items():
        found = re.fullmatch(r"(inner|layer)_blocks\.(\d+)\.([01])\.(\w+)", name)
        if found is None:
            anew = "the heads, and P6 and P7, start anew: Detectron2 computes P6 from the body, torchvision from P5"
        elif found[4] != "num_batches_tracked":
            kind, number = {"inner": "lateral", "layer": "output"}[found[1]], int(found[2]) + start + 2
            part = "norm." if found[3] == "1" else ""
            weights[f"backbone.fpn_{kind}{number}.{part}{found[4]}"] = tensor
    return Pyramid(weights, network, anew)


def _start(detector: Any) -> int:
    """Return the number of the first of the body's maps that the pyramid takes.

    Raises:
        Mismatch: unless it takes the last ones of four maps of strides 4, 8, 16 and 32.
    """
    backbone, levels = detector.backbone._backbone, detector.backbone._levels
    strides = [stride[0] for stride in backbone.strides]
    used = [strides[level] for level in levels]
    if strides[-len(STAGES) :] != list(STAGES) or not used or used != list(STAGES[-len(used) :]):
        raise Mismatch(
            f"the pyramid takes maps of strides {', '.join(map(str, used))} of {', '.join(map(str, strides))}; "
            "the other library's takes the last ones of 4, 8, 16, 32"
        )
    return len(STAGES) - len(used)
