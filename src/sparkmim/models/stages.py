"""Find the stages of a network that does not name them: the last map of each resolution, at the end of a block."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..utils.hooks import Call, record_calls

Size = tuple[int, ...]


class Step(NamedTuple):
    """One call of a submodule that returns a map: its name, and the spatial sizes of its input and output."""

    name: str
    before: Size | None
    after: Size


def find_stages(
    module: nn.Module, image: Float[Tensor, "1 channel *size"], larger: Float[Tensor, "1 channel *larger"]
) -> list[str]:
    """Return the names of the submodules that give the last map of each resolution, highest resolution first.

    The network runs on two images; outputs that grow with the image are maps. Submodules inside one that leads from one
    resolution to the next are skipped, because they belong to the downsampling (the expansion of a strided bottleneck,
    for example), and so are those that run more than once.

    Args:
        module: the network.
        image: of a size that can be halved several times.
        larger: of another size along each axis.

    Raises:
        ValueError: if no submodule gives a map.
    """
    size, other_size = image.shape[2:], larger.shape[2:]
    steps = [
        step
        for step, other in zip(_record_steps(module, image), _record_steps(module, larger), strict=True)
        if all(a * o == b * s for a, b, s, o in zip(step.after, other.after, size, other_size, strict=True))
    ]
    counts = Counter(step.name for step in steps)
    sizes = sorted({step.after for step in steps}, reverse=True)
    next_size = dict(pairwise(sizes))
    downsampling = {(step.name, step.before) for step in steps if next_size.get(step.before or ()) == step.after}
    last: dict[Size, str] = {}
    for step in steps:
        parts = step.name.split(".")
        ancestors = (".".join(parts[:n]) for n in range(1, len(parts)))
        if counts[step.name] == 1 and not any((ancestor, step.after) in downsampling for ancestor in ancestors):
            last[step.after] = step.name
    stages = [last[s] for s in sizes if s in last and s != tuple(size)]
    if not stages:
        raise ValueError(f"no submodule of {type(module).__name__} gives a feature map (1, C, *size) of an image")
    return stages


def _record_steps(module: nn.Module, image: Tensor) -> list[Step]:
    """Return all calls of submodules that return maps, in the order in which they return."""

    def read(call: Call) -> Step | None:
        if not isinstance(call.output, Tensor) or call.output.ndim != image.ndim:
            return None
        first = next((a for a in call.args if isinstance(a, Tensor) and a.ndim == image.ndim), None)
        return Step(call.name, None if first is None else tuple(first.shape[2:]), tuple(call.output.shape[2:]))

    submodules = ((name, submodule) for name, submodule in module.named_modules() if name)
    with record_calls(submodules, read) as steps, torch.no_grad():
        module(image)
    return [step for step in steps if step is not None]
