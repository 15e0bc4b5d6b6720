"""Finding the stages of a network that does not name them: the last map of each resolution, at a block's end."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Size = tuple[int, ...]


class Call(NamedTuple):
    """One call of a submodule: spatial sizes of what it got and gave."""

    name: str
    before: Size | None
    after: Size


def find_stages(module: nn.Module, image: Tensor, larger: Tensor) -> list[str]:
    """Names of the submodules that give the last map of each resolution, finest first.

    The network runs as it is, on two images; maps are what grows with the image. Submodules within one that leads from
    a resolution to the next are passed over, for they belong to the way down (the expansion of a strided bottleneck,
    say), and so are those that run more than once.

    Args:
        module: the network.
        image: `(1, C, *size)`, of a size that is halved often.
        larger: likewise, of another size along each axis.

    Raises:
        ValueError: if no submodule gives a map.
    """
    whole, other = image.shape[2:], larger.shape[2:]
    calls = [
        call
        for call, again in zip(_record(module, image), _record(module, larger), strict=True)
        if all(a * o == b * w for a, b, w, o in zip(call.after, again.after, whole, other, strict=True))
    ]
    often = Counter(call.name for call in calls)
    sizes = sorted({call.after for call in calls}, reverse=True)
    following = dict(pairwise(sizes))
    downward = {(call.name, call.before) for call in calls if following.get(call.before or ()) == call.after}
    last: dict[Size, str] = {}
    for call in calls:
        parts = call.name.split(".")
        within = (".".join(parts[:n]) for n in range(1, len(parts)))
        if often[call.name] == 1 and not any((ancestor, call.after) in downward for ancestor in within):
            last[call.after] = call.name
    stages = [last[size] for size in sizes if size in last and size != tuple(whole)]
    if not stages:
        raise ValueError(f"no submodule of {type(module).__name__} gives a feature map (1, C, *size) of an image")
    return stages


def _record(module: nn.Module, image: Tensor) -> list[Call]:
    """All calls of submodules that give maps, in the order in which they end."""
    calls: list[Call] = []

    def note(name: str, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == image.ndim:
            first = next((a for a in arguments if isinstance(a, Tensor) and a.ndim == image.ndim), None)
            calls.append(Call(name, None if first is None else tuple(first.shape[2:]), tuple(output.shape[2:])))

    hooks = [
        submodule.register_forward_hook(lambda _, arguments, output, name=name: note(name, arguments, output))
        for name, submodule in module.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
