"""Export to Detectron2's ResNet.

Names follow its `tools/convert-torchvision-to-d2.py` and `modeling/backbone/resnet.py`. With `matching_heuristics` in
the file, Detectron2 finds `res2.0.conv1.weight` behind any prefix that a model has for its backbone.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from torch import Tensor, nn
from torchvision.models import ResNet

from .equivalence import Mismatch
from .torchvision import to_torchvision

NAMES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)
"""Patterns of torchvision's names and their replacements in Detectron2."""


def to_detectron2(encoder: nn.Module) -> tuple[dict[str, Tensor], ResNet]:
    """Convert a ResNet: return its weights under Detectron2's names, and torchvision's network of the same structure.

    Raises:
        Mismatch: for any other network.
    """
    found = to_torchvision(encoder)
    if not isinstance(found.network, ResNet):
        raise Mismatch(f"Detectron2 has ResNet and ResNeXt; this is torchvision's {found.builder}")
    weights = {
        detectron2_name(name): tensor
        for name, tensor in found.weights.items()
        if not name.endswith(".num_batches_tracked")
    }
    return weights, found.network


def detectron2_name(name: str) -> str:
    """Convert a name of torchvision's ResNet to Detectron2's."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def write_pickle(weights: Mapping[str, Tensor], file: BinaryIO) -> None:
    """Write a file for `MODEL.WEIGHTS`."""
    arrays = {name: tensor.cpu().float().numpy() for name, tensor in weights.items()}
    pickle.dump({"model": arrays, "__author__": "sparkmim", "matching_heuristics": True}, file)


def detectron2_config(network: ResNet, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return the settings with which Detectron2 builds this ResNet and prepares its input (RGB, 0 to 255)."""
    blocks = [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)]
    basic = not hasattr(network.layer1[0], "conv3")
    resnets = {
        "DEPTH": sum(blocks) * (2 if basic else 3) + 2,
        "NUM_GROUPS": network.groups,
        "WIDTH_PER_GROUP": network.base_width,
        "STRIDE_IN_1X1": False,
        **({"RES2_OUT_CHANNELS": 64} if basic else {}),
    }
    return {
        "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in mean],
        "MODEL.PIXEL_STD": [round(255 * value, 3) for value in std],
        **{f"MODEL.RESNETS.{key}": value for key, value in resnets.items()},
        "INPUT.FORMAT": "RGB",
    }
