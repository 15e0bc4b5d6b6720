"""Layers grouped by depth, for learning rates that fall from the classifier down to the stem.

The authors count the depth of ResNets and ConvNeXts by the names of their parameters. This finds the same groups (for
ResNet-50 and 101 and all ConvNeXts; ResNet-152 and 200 get finer ones) in the structure of any network: the stem; each
stage of the feature pyramid, divided where it has more than three blocks; the classifier.
Source: the official `downstream_imagenet/models/__init__.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..models.backbone import Backbone
from ..utils.hooks import Call, record_calls
from ..utils.modules import eval_mode
from .optim import param_groups_weight_decay

SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

BLOCKS = 3
"""Blocks of a group, at most."""


class Network(Protocol):
    """A network with a head on it."""

    @property
    def module(self) -> nn.Module:
        """Return all that is trained."""

    @property
    def backbone(self) -> Backbone:
        """Return its feature maps."""

    @property
    def encoder(self) -> nn.Module:
        """Return the part of it whose layers are grouped; what else there is belongs to the head."""


def layer_groups(network: Network) -> dict[str, int]:
    """Return the group of each of the network's parameters by name: 0 is the stem, the highest number the head.

    What is not part of a block goes with the block before it in its stage, or with the stage's first; what comes before
    the first block of all is the stem, with the first stage if that is a single block.
    """
    encoder = network.encoder
    structure = _structure(network.backbone)
    stages, blocks = structure.stages, _blocks(encoder, structure)
    first = 0
    found: dict[str, int] = {}
    for stage in range(1 + max(stages.values())):
        within = [name for name, _ in encoder.named_parameters() if stages.get(name) == stage]
        own = list(dict.fromkeys(blocks[name] for name in within if name in blocks))
        stem = stage == 0 and any(name not in blocks for name in within[:1])
        size = max(1, math.ceil(len(own) / max(1, math.ceil(len(own) / BLOCKS))))
        place = {block: first + stem + index // size for index, block in enumerate(own)}
        group = first
        for name in within:
            group = found[name] = place[blocks[name]] if name in blocks else group
        first = 1 + max((found[name] for name in within), default=first - 1)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    return {
        name: found.get(names.get(id(parameter), ""), first) for name, parameter in network.module.named_parameters()
    }


def decayed_groups(network: Network, layer_decay: float) -> list[dict[str, object]]:
    """Return the trainable parameters in groups for the optimizer, with `lr_scale` and `weight_decay_scale`."""
    layers = layer_groups(network)
    last = max(layers.values())
    groups: list[dict[str, object]] = []
    for layer in range(last + 1):
        own = [named for named in network.module.named_parameters() if layers[named[0]] == layer]
        groups += [{**group, "lr_scale": layer_decay ** (last - layer)} for group in param_groups_weight_decay(own)]
    return groups


class _Structure(NamedTuple):
    """The result of a forward pass.

    Attributes:
        stages: of each parameter that a map depends on, the first such map.
        chains: modules that pass their input from one child to the next, as `Sequential` does.
    """

    stages: dict[str, int]
    chains: set[nn.Module]


def _structure(backbone: Backbone) -> _Structure:
    module = backbone.module
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def read(call: Call) -> tuple[nn.Module, tuple[Any, Any]]:
        return call.module, (next(iter(call.args), None), call.output)

    with eval_mode(module), record_calls(module.named_modules(), read) as recorded:
        maps = backbone(backbone.blank_image([2 * stride for stride in backbone.strides[-1]]))
    calls = dict(recorded)  # of a module that is called more than once, the last
    stages: dict[str, int] = {}
    for stage, features in enumerate(maps):
        gradients = torch.autograd.grad(features.sum(), list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                stages.setdefault(name, stage)
    return _Structure(stages, {m for m in calls if _is_chain(m, calls)})


def _is_chain(module: nn.Module, calls: Mapping[nn.Module, tuple[Any, Any]]) -> bool:
    children = list(module.children())
    handed, result = calls[module]
    for child in children:
        if child not in calls or calls[child][0] is not handed:
            return False
        handed = calls[child][1]
    return bool(children) and handed is result


def _blocks(module: nn.Module, structure: _Structure) -> dict[str, int]:
    """Return the block's number of each parameter within a repeated block; blocks are numbered as registered.

    A repeated block is a member of a sequence, lies within one stage, is made of layers, and is not the only one of its
    class in the sequence and the stage; of nested ones, the outermost.
    """
    stages_of: dict[str, set[int]] = {}
    for name, stage in structure.stages.items():
        for dot in re.finditer(r"\.", name):
            stages_of.setdefault(name[: dot.end()], set()).add(stage)

    def blocks(part: nn.Module, prefix: str) -> Iterator[str]:
        children = [(child, f"{prefix}{name}.") for name, child in part.named_children()]
        kinds = Counter((type(child), *stages_of.get(inner, ())) for child, inner in children)
        sequence = isinstance(part, SEQUENCES) or part in structure.chains
        for child, inner in children:
            within = stages_of.get(inner, set())
            if sequence and len(within) == 1 and _composed(child) and kinds[type(child), *within] > 1:
                yield inner
            else:
                yield from blocks(child, inner)

    found = enumerate(blocks(module, ""))
    return {name: number for number, prefix in found for name in structure.stages if name.startswith(prefix)}


def _composed(module: nn.Module) -> bool:
    """Return whether a module is made of layers, and is more than a sequence of them."""
    layers = any(next(child.parameters(), None) is not None for child in module.children())
    return layers and not isinstance(module, SEQUENCES)
