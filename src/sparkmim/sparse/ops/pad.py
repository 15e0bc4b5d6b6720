"""Padding. Along free axes it is ordinary; along space it waits for the convolution or pooling that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import Execution, unsupported
from ..layout import Padding


@Execution.register(F.pad, torch._C._nn.pad)
def pad(
    execution: Execution,
    func: Any,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    layout = execution.layout(input)
    if layout is None:
        raise unsupported(func, "its padding descends from the input, but not what is padded")
    value = 0.0 if value is None else value
    sides = {input.ndim - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)}
    if sides.get(layout.batch, (0, 0)) != (0, 0):
        raise unsupported(func, "it adds samples")
    spatial = [sides.pop(axis, (0, 0)) for axis in layout.space]
    sides.pop(layout.batch, None)
    out = input
    if any(amounts != (0, 0) for amounts in sides.values()):
        own = [0] * (2 * input.ndim)
        for axis, (before, after) in sides.items():
            own[2 * (input.ndim - 1 - axis)] = before
            own[2 * (input.ndim - 1 - axis) + 1] = after
        out = F.pad(input, own, mode, value)
    if all(amounts == (0, 0) for amounts in spatial):
        return execution.mark(out, layout) if out is not input else input
    if mode != "constant":
        raise unsupported(func, f"{mode} padding of a map has no rule")
    if any(before < 0 or after < 0 for before, after in spatial):
        raise unsupported(func, "it crops the map")
    if layout.padding is not None and layout.padding.value != value:
        raise unsupported(func, "the map is padded twice, with different values")
    pending = layout.padding or Padding((0,) * len(spatial), (0,) * len(spatial), value)
    padding = Padding(
        tuple(a + before for a, (before, _) in zip(pending.before, spatial, strict=True)),
        tuple(a + after for a, (_, after) in zip(pending.after, spatial, strict=True)),
        value,
    )
    return execution.mark(out.view_as(out), layout.padded(padding))
