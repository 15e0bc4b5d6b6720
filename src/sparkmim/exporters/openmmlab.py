"""Export to ResNet and ConvNeXt of MMPretrain, which MMDetection and MMSegmentation use as well.

Names follow MMPretrain's `models/backbones/resnet.py` (those of torchvision) and `convnext.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from timm.models import ConvNeXt
from torch import Tensor, nn
from torchvision.models import ResNet

from .equivalence import Mismatch, counterpart_weights
from .torchvision import to_torchvision

Library = Literal["mmpretrain", "mmdet", "mmseg"]

CONVNEXT_NAMES = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"^head\.norm\.", "norm3."),
)
"""Patterns of timm's names and their replacements in MMPretrain."""

STEM = "stem.0.weight"
EXPANSION = "stages.0.blocks.0.mlp.fc1.weight"
GRN = "stages.0.blocks.0.mlp.grn.weight"
"""Tensors of timm's ConvNeXt: the first convolution, a linear or 1x1 convolutional layer, and one of version 2."""


class OpenMMLabWeights(NamedTuple):
    """A network's weights under the names of a backbone, and the settings that build it."""

    weights: dict[str, Tensor]
    backbone: dict[str, Any]


def to_openmmlab(encoder: nn.Module, library: Library) -> OpenMMLabWeights:
    """Convert a ResNet or ConvNeXt for MMPretrain, MMDetection or MMSegmentation.

    Raises:
        Mismatch: for any other network.
    """
    if plain := _plain_convnext(encoder):
        return _convnext(encoder, plain, library)
    try:
        found = to_torchvision(encoder)
    except Mismatch as error:
        raise Mismatch(
            f"MMPretrain's ResNet, ResNeXt and ConvNeXt have another structure than this {type(encoder).__name__}: "
            f"{error}"
        ) from error
    if not isinstance(found.network, ResNet):
        raise Mismatch(
            f"MMPretrain's ResNet, ResNeXt and ConvNeXt are supported; this is torchvision's {found.builder}"
        )
    return OpenMMLabWeights(found.weights, _resnet_settings(found.network, library))


def _resnet_settings(network: ResNet, library: Library) -> dict[str, Any]:
    blocks = [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)]
    depth = sum(blocks) * (3 if hasattr(network.layer1[0], "conv3") else 2) + 2
    if network.groups > 1:
        width = "width_per_group" if library == "mmpretrain" else "base_width"
        return {"type": "ResNeXt", "depth": depth, "groups": network.groups, width: network.base_width}
    if network.base_width != 64:
        raise Mismatch("MMPretrain has no wide ResNet")
    return {"type": "ResNet", "depth": depth}


def _plain_convnext(encoder: nn.Module) -> ConvNeXt | None:
    """Build the ConvNeXt (V1 or V2) with the same blocks and channels; None if the encoder is not a ConvNeXt."""
    state = encoder.state_dict()
    depthwise = _depthwise(state)
    if not depthwise or EXPANSION not in state or STEM not in state:
        return None
    with torch.random.fork_rng(devices=()):
        return ConvNeXt(
            in_chans=state[STEM].shape[1],
            num_classes=0,
            depths=tuple(len(blocks) for blocks in depthwise),
            dims=tuple(len(blocks[0]) for blocks in depthwise),
            conv_mlp=state[EXPANSION].ndim == 4,
            use_grn=GRN in state,
            ls_init_value=None if GRN in state else 1e-6,
        ).eval()


def _convnext(encoder: nn.Module, plain: ConvNeXt, library: Library) -> OpenMMLabWeights:
    try:
        weights = counterpart_weights(encoder, plain)
    except Mismatch as error:
        raise Mismatch(
            f"this {type(encoder).__name__} is not the ConvNeXt of the paper, which MMPretrain has; against that one, "
            f"{error}"
        ) from error
    depthwise = _depthwise(weights)
    maps = {} if library == "mmpretrain" else {"out_indices": [*range(len(depthwise))], "gap_before_final_norm": False}
    settings = {
        "type": "ConvNeXt" if library == "mmpretrain" else "mmpretrain.ConvNeXt",
        "arch": {
            "depths": [len(blocks) for blocks in depthwise],
            "channels": [len(blocks[0]) for blocks in depthwise],
        },
        **maps,
        **({"use_grn": True, "layer_scale_init_value": 0.0} if GRN in weights else {}),
        **({"linear_pw_conv": False} if weights[EXPANSION].ndim == 4 else {}),
    }
    return OpenMMLabWeights({openmmlab_name(name): tensor for name, tensor in weights.items()}, settings)


def _depthwise(state: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return the weights of all depthwise convolutions of timm's ConvNeXt, by stage."""
    stages: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        if found := re.fullmatch(r"stages\.(\d+)\.blocks\.\d+\.conv_dw\.weight", name):
            stages.setdefault(found[1], []).append(tensor)
    return list(stages.values())


def openmmlab_name(name: str) -> str:
    """Convert a name of timm's ConvNeXt to MMPretrain's."""
    for theirs, ours in CONVNEXT_NAMES:
        name = re.sub(theirs, ours, name)
    return name
