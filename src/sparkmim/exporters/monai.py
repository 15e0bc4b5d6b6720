"""Export to networks of MONAI: a state dict without the layers whose size depends on the number of outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder
from ..models.backbone import Backbone
from ..models.named.base import find_named
from ..models.named.monai import Monai
from .equivalence import Mismatch
from .nnunet import compare_backbones


class MonaiWeights(NamedTuple):
    """A network's weights under MONAI's names, and the call that builds it for another number of outputs."""

    weights: dict[str, Tensor]
    call: str


def to_monai(encoder: TrainedEncoder) -> MonaiWeights:
    """Return the weights of a network that was named as `monai:NAME(...)`.

    Raises:
        Mismatch: for any other network, or if MONAI builds a different one from the same name.
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
    return MonaiWeights(weights, call)
