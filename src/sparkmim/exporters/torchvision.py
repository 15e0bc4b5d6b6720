"""Export to networks of torchvision."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from .equivalence import Mismatch, counterpart_weights


class TorchvisionWeights(NamedTuple):
    """A network of torchvision, and the encoder's weights under its names (without a classifier)."""

    builder: str
    network: nn.Module
    weights: dict[str, Tensor]


def to_torchvision(encoder: nn.Module) -> TorchvisionWeights:
    """Find the network of torchvision that an encoder is.

    Raises:
        Mismatch: if there is none.
    """
    reasons = []
    for builder in _candidates(encoder):
        network = _build(builder).eval()
        try:
            return TorchvisionWeights(builder, network, counterpart_weights(encoder, network))
        except Mismatch as error:
            reasons.append(f"{builder} has tensors of the same sizes, but {error}")
    raise Mismatch(
        f"torchvision has no network with the structure of this {type(encoder).__name__}"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        + "; those it shares with timm are ResNet, ResNeXt and wide ResNet, ConvNeXt, DenseNet, VGG, EfficientNet, "
        "MobileNetV2 and MNASNet, in the sizes that torchvision has"
    )


def _candidates(encoder: nn.Module) -> Iterator[str]:
    """Yield builders of networks that have tensors of the encoder's sizes, those with the fewest others first."""
    own = _sizes(encoder)
    others = ((sum((theirs - own).values()), builder) for builder, theirs in _published().items() if not own - theirs)
    return (builder for _, builder in sorted(others))


@cache
def _published() -> dict[str, Counter[int]]:
    """Return the sizes of the tensors of every classifier of torchvision."""
    sizes = {}
    for builder in torchvision.models.list_models(module=torchvision.models):
        # RegNet's constructor computes with tensors, which have no values here; its layers run in another order too.
        with suppress(NotImplementedError), torch.device("meta"):
            sizes[builder] = _sizes(_build(builder))
    return sizes


def _sizes(network: nn.Module) -> Counter[int]:
    return Counter(tensor.numel() for tensor in network.state_dict().values())


def _build(builder: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the initialization of GoogLeNet and Inception
        network: nn.Module = torchvision.models.get_model(builder, weights=None)
    return network
