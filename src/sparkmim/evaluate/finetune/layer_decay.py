"""Layers grouped by depth, for learning rates that fall from the classifier down to the stem.

The authors count the depth of ResNets and ConvNeXts by the names of their parameters. This finds the same groups (for
ResNet-50 and 101 and all ConvNeXts; ResNet-152 and 200 get finer ones) in the structure of any network: the stem; each
stage of the feature pyramid, divided where it has more than three blocks; the classifier.
Source: the official `downstream_imagenet/models/__init__.py`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ...backbone import Backbone
from ...train.optimizer import decayed_and_spared
from .classifier import Classifier

SEQUENCES = (nn.Sequential, nn.ModuleList)

BLOCKS = 3
"""Blocks of a group, at most."""


def layer_groups(classifier: Classifier) -> dict[str, int]:
    """The group of each of the network's parameters by name: 0 is the stem, the highest number the classifier."""
    encoder = classifier.encoder
    stages = _stages(classifier.backbone)
    blocks = _blocks(encoder, stages)
    first = 1
    place: dict[int, int] = {}
    starts: list[int] = []
    for stage in range(1 + max(stages.values())):
        own = sorted({block for name, block in blocks.items() if stages[name] == stage})
        groups = max(1, math.ceil(len(own) / BLOCKS))
        size = max(1, math.ceil(len(own) / groups))
        if not own and stage == 0:
            groups = 0  # the first map is made by the stem alone
        place |= {block: first + index // size for index, block in enumerate(own)}
        starts.append(first if stage else 0)
        first += groups
    found = {name: place[blocks[name]] if name in blocks else starts[stage] for name, stage in stages.items()}
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    return {
        name: found.get(names.get(id(parameter), ""), first) for name, parameter in classifier.module.named_parameters()
    }


def decayed_groups(classifier: Classifier, layer_decay: float) -> list[dict[str, object]]:
    """The trainable parameters in groups for the optimiser, each with a `lr_scale` and a `weight_decay_scale`."""
    layers = layer_groups(classifier)
    last = max(layers.values())
    groups: list[dict[str, object]] = []
    for layer in range(last + 1):
        own = [named for named in classifier.module.named_parameters() if layers[named[0]] == layer]
        groups += [{**group, "lr_scale": layer_decay ** (last - layer)} for group in decayed_and_spared(own)]
    return groups


def _stages(backbone: Backbone) -> dict[str, int]:
    """Of each parameter that a map depends on, the first such map."""
    module = backbone.module
    modes = {m: m.training for m in module.modules()}
    module.eval()
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    maps = backbone(backbone.blank_image([2 * stride for stride in backbone.strides[-1]]))
    found: dict[str, int] = {}
    for stage, features in enumerate(maps):
        gradients = torch.autograd.grad(features.sum(), list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                found.setdefault(name, stage)
    for m, mode in modes.items():
        m.training = mode
    return found


def _blocks(module: nn.Module, stages: dict[str, int]) -> dict[str, int]:
    """Of each parameter within a repeated block, the block's number; blocks are numbered as they are registered.

    A repeated block is a member of a sequence (`Sequential`, `ModuleList`) that lies within one stage, is made of other
    modules, and is not the only one of its class in the sequence and the stage; of nested ones, the outermost.
    """
    found: dict[str, int] = {}
    count = 0

    def stages_of(prefix: str) -> frozenset[int]:
        return frozenset(stage for name, stage in stages.items() if name.startswith(prefix))

    def visit(part: nn.Module, prefix: str) -> None:
        nonlocal count
        children = [(child, f"{prefix}{name}.") for name, child in part.named_children()]
        kinds = [(type(child), stages_of(inner)) for child, inner in children]
        for (child, inner), kind in zip(children, kinds, strict=True):
            composed = any(child.children()) and not isinstance(child, SEQUENCES)
            if isinstance(part, SEQUENCES) and composed and len(kind[1]) == 1 and kinds.count(kind) > 1:
                found.update({key: count for key in stages if key.startswith(inner)})
                count += 1
            else:
                visit(child, inner)

    visit(module, "")
    return found
