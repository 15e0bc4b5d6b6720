"""Convert weights between two implementations of a network, and verify that both compute the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.copies import copied
from ..utils.hooks import Call, record_calls

IMAGE_SIZE = 224
"""Side of the image on which networks are compared; classifiers with a fixed size (VGG) have this one."""

TOLERANCE = 1e-6
"""Largest deviation relative to the largest value; rounding in double precision is a thousand times smaller."""


class Mismatch(ValueError):
    """Two networks differ."""


class Use(NamedTuple):
    """A call of a submodule that owns tensors: its name, the names of the tensors, and its input."""

    module: str
    tensors: list[str]
    given: Tensor


def counterpart_weights(own: nn.Module, other: nn.Module, aside: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the weights of a network under the names that another implementation has for them.

    Tensors are paired in the order in which the forward passes use them. A classifier at the end of the other network
    is left out.

    Args:
        own: the network, in evaluation mode; not modified.
        other: the other implementation, in evaluation mode; receives the weights, in double precision.
        aside: names of the network's tensors that it does not use, and need no counterpart.

    Raises:
        Mismatch: if tensors differ in number or size, or the networks differ in what they compute with equal weights.
    """
    images = torch.randn(1, _in_chans(own), IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    own_state, other_state = own.state_dict(), other.state_dict()
    own_uses, own_result = _uses(copied(own).double(), images.double())
    other_uses, _ = _uses(other, images)
    if len(own_uses) > len(other_uses):
        raise Mismatch(f"it has {len(other_uses)} layers with weights and not {len(own_uses)}")
    names: dict[str, str] = {}
    for mine, theirs in zip(own_uses, other_uses, strict=False):
        sizes = [own_state[name].numel() for name in mine.tensors]
        wanted = [other_state[name].numel() for name in theirs.tensors]
        if sizes != wanted:
            raise Mismatch(f"its {theirs.module} has {wanted} values and not {sizes}, as {mine.module}")
        names |= dict(zip(theirs.tensors, mine.tensors, strict=True))
    if unused := sorted(own_state.keys() - set(names.values()) - set(aside)):
        raise Mismatch(f"{unused[0]} has no counterpart")
    with torch.no_grad():
        for name, own_name in names.items():
            other_state[name].copy_(own_state[own_name].reshape(other_state[name].shape))
    for name in other_state.keys() - names.keys():
        del other_state[name]
    other_uses, other_result = _uses(other.double(), images.double())
    if len(other_uses) > len(own_uses):  # the next layer is a classifier
        other_result = other_uses[len(own_uses)].given
    for mine, theirs in zip(own_uses, other_uses, strict=False):
        compare_maps(mine.given, theirs.given, mine.module)
    compare_maps(own_result, other_result, "its end")
    return other_state


def compare_maps(mine: Tensor, theirs: Tensor, where: str, tolerance: float = TOLERANCE) -> None:
    """Verify that two networks have computed the same up to rounding.

    Args:
        mine: what the one has computed.
        theirs: what the other has.
        where: the place, for messages.
        tolerance: largest deviation, of the largest value.

    Raises:
        Mismatch: if not, with the place.
    """
    if mine.numel() != theirs.numel():
        raise Mismatch(f"the maps before {where} are of {tuple(theirs.shape)} and not {tuple(mine.shape)}")
    deviation = float((mine.flatten() - theirs.flatten()).abs().max() / mine.abs().max().clamp_min(1e-30))
    if not deviation <= tolerance:
        raise Mismatch(f"it computes something else before {where} (by {deviation:.1e} of the largest value)")


def _uses(network: nn.Module, images: Tensor) -> tuple[list[Use], Tensor]:
    """Return all calls of submodules that own tensors, in the order in which they end, and the result."""
    owners = {
        name: [f"{name}.{tensor}" for tensor in {**module._parameters, **module._buffers} if _saved(module, tensor)]
        for name, module in network.named_modules()
        if name
    }
    modules = ((name, module) for name, module in network.named_modules() if owners.get(name))

    def read(call: Call) -> Use:
        return Use(call.name, owners[call.name], call.args[0].clone())  # what follows may write in place

    with record_calls(modules, read) as uses, torch.no_grad():
        result: Tensor = network(images)
    often = Counter(use.module for use in uses).most_common(1)
    if often and often[0][1] > 1:
        raise Mismatch(f"{often[0][0]} is used more than once")
    return uses, result


def _saved(module: nn.Module, name: str) -> bool:
    tensor = getattr(module, name)
    return tensor is not None and name not in module._non_persistent_buffers_set


def _in_chans(network: nn.Module) -> int:
    return next(m.in_channels for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd))
