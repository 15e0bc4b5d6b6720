"""Export to the bodies of Hugging Face's detectors: ResNet of DETR and its kin, and the ResNet-D of RT-DETR.

DETR, Conditional DETR, Deformable DETR and Table Transformer build timm's ResNet, whose names are torchvision's.
RT-DETR has a network of its own, `modeling_rt_detr_resnet.py` of transformers: timm's `resnet50d` etc., renamed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from .equivalence import Mismatch, counterpart_weights
from .torchvision import to_torchvision

RESNET_D = {"resnet50d": (3, 4, 6, 3), "resnet101d": (3, 4, 23, 3), "resnet152d": (3, 8, 36, 3)}
"""timm's networks that RT-DETR has, and their blocks. Its shallower ones have a convolution beside the first block,
which timm's have not."""

NAMES = (
    (r"^conv1\.0\.", "embedder.embedder.0.convolution."),
    (r"^conv1\.1\.", "embedder.embedder.0.normalization."),
    (r"^conv1\.3\.", "embedder.embedder.1.convolution."),
    (r"^conv1\.4\.", "embedder.embedder.1.normalization."),
    (r"^conv1\.6\.", "embedder.embedder.2.convolution."),
    (r"^bn1\.", "embedder.embedder.2.normalization."),
    (r"^layer1\.(\d+)\.downsample\.1\.", r"encoder.stages.0.layers.\1.shortcut.convolution."),
    (r"^layer1\.(\d+)\.downsample\.2\.", r"encoder.stages.0.layers.\1.shortcut.normalization."),
    (r"\.downsample\.1\.", ".shortcut.1.convolution."),
    (r"\.downsample\.2\.", ".shortcut.1.normalization."),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."),
)
"""Patterns of timm's names and their replacements in RT-DETR."""


class Body(NamedTuple):
    """The state dict of a detector's body, timm's name of the network, and the blocks of its stages."""

    weights: dict[str, Tensor]
    name: str
    blocks: tuple[int, ...]


def to_detr(encoder: nn.Module) -> Body:
    """Return the weights of a ResNet under the names of DETR's body.

    Raises:
        Mismatch: for any other network.
    """
    found = to_torchvision(encoder)
    if not isinstance(found.network, ResNet):
        raise Mismatch(f"DETR is exported with ResNet as its body; this is torchvision's {found.builder}")
    stages = (found.network.layer1, found.network.layer2, found.network.layer3, found.network.layer4)
    return Body(found.weights, found.builder, tuple(len(stage) for stage in stages))


def to_rt_detr(encoder: nn.Module) -> Body:
    """Return the weights of timm's ResNet-D under the names of RT-DETR's body.

    Raises:
        Mismatch: for any other network.
    """
    own = sum(parameter.numel() for parameter in encoder.parameters())
    for name, blocks in RESNET_D.items():
        with torch.random.fork_rng(devices=()):
            other = timm.create_model(name, num_classes=0).eval()
        if sum(parameter.numel() for parameter in other.parameters()) == own:
            weights = counterpart_weights(encoder, other)
            return Body({rt_detr_name(key): tensor for key, tensor in weights.items()}, name, blocks)
    raise Mismatch(
        f"RT-DETR has timm's {', '.join(RESNET_D)} as its body, and this {type(encoder).__name__} is another network; "
        "pretrain one of them (--model), or export to DETR (--format detr)"
    )


def rt_detr_name(name: str) -> str:
    """Convert a name of timm's ResNet-D to RT-DETR's."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name
