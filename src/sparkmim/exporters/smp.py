"""Export to encoders of segmentation-models-pytorch.

Its ResNets (`encoder_name="resnet50"`) have torchvision's names. Any other network of timm is `tu-NAME` there: timm's
network for feature maps, under the name `model`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..checkpoints.encoder import TrainedEncoder
from ..models.backbone import Backbone
from ..utils.copies import copied
from .equivalence import Mismatch, compare_maps
from .torchvision import to_torchvision

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
"""Encoders of smp that are torchvision's, by the same name."""


class SmpWeights(NamedTuple):
    """The name of an encoder of smp, and its state dict."""

    encoder_name: str
    weights: dict[str, Tensor]


def to_smp(encoder: TrainedEncoder) -> SmpWeights:
    """Return the weights of a network under the names of smp's encoder.

    Raises:
        Mismatch: for a network that is neither a ResNet of torchvision's nor one of timm's that offers feature maps.
    """
    if encoder.backbone.in_chans == 3:
        found = _resnet(encoder.backbone.module)
        if found is not None:
            return found
    module, name = encoder.backbone.module, encoder.name
    if not hasattr(module, "pretrained_cfg") or ":" in name:
        raise Mismatch(
            f"segmentation-models-pytorch has torchvision's ResNets and networks of timm, and {name} is neither; its "
            "weights load into the code that made it, as they are"
        )
    try:
        features = timm.create_model(name, features_only=True, in_chans=encoder.backbone.in_chans)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise Mismatch(f"timm's {name} offers no feature maps, which the encoders of smp are ({error})") from error
    weights = _renamed(module, features)
    _compare(encoder.backbone, features)
    return SmpWeights(f"tu-{name}", {f"model.{key}": tensor for key, tensor in weights.items()})


def _resnet(module: nn.Module) -> SmpWeights | None:
    try:
        found = to_torchvision(module)
    except Mismatch:
        return None
    return SmpWeights(found.builder, found.weights) if found.builder in RESNETS else None


def _renamed(module: nn.Module, features: nn.Module) -> dict[str, Tensor]:
    """Load the weights of timm's network into its network for feature maps, and return the state dict of that.

    Sequences are flattened there: `stages.0.` is `stages_0.`.
    """
    own = module.state_dict()
    flat = {re.sub(r"^(\w+?)\.(\d+)\.", r"\1_\2.", key): key for key in own}
    state = features.state_dict()
    for key, tensor in state.items():
        source = key if key in own else flat.get(key)
        if source is None or own[source].shape != tensor.shape:
            raise Mismatch(f"timm's network for feature maps has a tensor {key} that the encoder has not")
        tensor.copy_(own[source])
    return {key: tensor.clone() for key, tensor in state.items()}


def _compare(backbone: Backbone, features: Any) -> None:
    """Verify that each map of a backbone is one of the other network's."""
    other = features.eval().double()
    size = [4 * stride for stride in backbone.strides[-1]]
    image = torch.randn(1, backbone.in_chans, *size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with torch.no_grad():
        theirs = other(image)
        mine = backbone.maps(copied(backbone.module).eval().double(), image)
    for number, one in enumerate(mine):
        alike = [each for each in theirs if each.shape == one.shape]
        if not alike:
            raise Mismatch(f"timm's network for feature maps offers none of {tuple(one.shape)}")
        compare_maps(one, alike[-1], f"map {number}")
