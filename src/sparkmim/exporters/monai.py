"""Export to networks of MONAI: a state dict without the layers whose size depends on the number of outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder
from ..checkpoints.weights import adapt_channels
from ..models.backbone import Backbone
from ..models.named.base import find_named
from ..models.named.monai import Monai
from .equivalence import Mismatch
from .nnunet import compare_backbones


class MonaiWeights(NamedTuple):
    """A network's weights under MONAI's names, and the call that builds it for another number of outputs."""

    weights: dict[str, Tensor]
    call: str


def to_monai(encoder: TrainedEncoder, in_chans: int | None = None) -> MonaiWeights:
    """Return the weights of a network that was named as `monai:NAME(...)`.

    Args:
        encoder: the network.
        in_chans: channels of the images that will be trained on, to which convolutions of the images are adapted as
            timm adapts a first one; by default the encoder's own.

    Raises:
        Mismatch: for any other network, if MONAI builds a different one from the same name, or a tensor whose size
            depends on the channels is not a convolution's of the images.
    """
    named = find_named(encoder.name)
    if not isinstance(named, Monai):
        raise Mismatch(
            f"--format monai takes networks that are named as monai:NAME(...), not {encoder.name}; of another one the "
            "weights load into the code that made it, as they are"
        )
    own = encoder.backbone
    call, settings = named.call(own.in_chans)
    with torch.random.fork_rng(devices=()):
        network = named.make(settings)
    wanted, state = network.state_dict(), own.module.state_dict()
    weights = {name: t.cpu().clone() for name, t in state.items() if name in wanted and t.shape == wanted[name].shape}
    if state.keys() != wanted.keys():
        raise Mismatch(f"MONAI builds another network for {named} now: its tensors have other names")
    network.load_state_dict(weights, strict=False)
    other = Backbone(network.eval(), own.stages or None, in_chans=own.in_chans, levels=len(own.levels), dims=own.dims)
    compare_backbones(own, other)
    if in_chans in (None, own.in_chans):
        return MonaiWeights(weights, call)
    call, settings = named.call(own.in_chans, wanted=in_chans)
    with torch.random.fork_rng(devices=()):
        shapes = {name: tensor.shape for name, tensor in named.make(settings).state_dict().items()}
    return MonaiWeights({name: _adapted(t, shapes[name], name, own.in_chans) for name, t in weights.items()}, call)


def _adapted(tensor: Tensor, shape: torch.Size, name: str, came: int) -> Tensor:
    """Return a weight of a convolution of the images for another number of channels; any other tensor as it is.

    Raises:
        Mismatch: if the tensor has another size for another reason.
    """
    if tensor.shape == shape:
        return tensor
    alike = tensor.ndim > 2 and (len(tensor), came, *tensor.shape[2:]) == (shape[0], tensor.shape[1], *shape[2:])
    if not alike:
        raise Mismatch(
            f"{name} is {tuple(tensor.shape)} and for images of other channels {tuple(shape)}, which is not a "
            "convolution of the images; leave --in-chans out"
        )
    return adapt_channels(tensor, shape[1])
