"""Padding. Along free axes it is ordinary; along space it waits for the convolution or pooling that follows.

A negative padding crops the map: windows begin so much later, or end so much earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..layout import Padding
from ..versions import counts_versions, version_of
from .overhang import cropped_by_pad, is_overhang


@Execution.register(F.pad, torch._C._nn.pad)
def pad(
    execution: Execution,
    func: Any,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    if is_overhang(execution, input):
        return cropped_by_pad(execution, input, pad, mode)
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
    nothing_along_space = all(amounts == (0, 0) for amounts in spatial)
    if any(amounts != (0, 0) for amounts in sides.values()):
        own = [0] * (2 * input.ndim)
        for axis, amounts in sides.items():
            place = 2 * (input.ndim - 1 - axis)
            own[place : place + 2] = amounts
        out = F.pad(input, own, mode, value)
        _require_alike_around(func, layout.padding, max(own), mode, value)
    elif nothing_along_space:
        out = input.clone()
    if out is not input and layout.padding is not None:
        require_unchanged(func, input, layout.padding)
        layout = layout.padded(layout.padding._replace(version=version_of(out)))
    if nothing_along_space:
        return execution.mark(out, layout)
    if layout.flattened:
        raise unsupported(func, "space is one flattened axis here, which has no edges")
    if mode not in ("constant", "reflect", "replicate"):
        raise unsupported(func, f"{mode} padding of a map has no rule")
    if mode != "constant" and any(amount < 0 for amounts in spatial for amount in amounts):
        raise unsupported(func, f"it crops the map and pads it by its {mode} values at once")
    # The result shares its input's memory until it is consumed, and must not change with it in between. Where torch
    # counts no versions to compare, it is a copy (what is being compiled pays nothing for it).
    out = out.view_as(out) if counts_versions(out) else out.clone()
    before = tuple(b for b, _ in spatial)
    after = tuple(a for _, a in spatial)
    if layout.padding is not None:
        require_unchanged(func, out, layout.padding)
        if max(*before, *after) <= 0 and mode == "constant":  # a crop of what was padded
            value, mode = layout.padding.value, layout.padding.mode
        elif (layout.padding.value, layout.padding.mode) != (value, "constant") or mode != "constant":
            raise unsupported(func, "the map is padded twice, in different ways")
        require_no_crop(func, layout.padding, before, after)
        before = tuple(a + b for a, b in zip(layout.padding.before, before, strict=True))
        after = tuple(a + b for a, b in zip(layout.padding.after, after, strict=True))
        if mode != "constant" and min(*before, *after) < 0:
            raise unsupported(func, f"it crops the map and pads it by its {mode} values at once")
    return execution.mark(out, layout.padded(Padding(before, after, value, mode, version_of(out))))


def _require_alike_around(func: Any, padding: Padding | None, added: int, mode: str, value: float) -> None:
    """Raise if channels are added to a padded map that hold something else around it than what it was padded with."""
    if padding is None or added <= 0:
        return
    if padding.mode == mode == "constant" and padding.value != value:
        raise unsupported(
            func,
            f"the channels it adds hold {value}, and the map was padded with {padding.value} before; add them first",
        )


def require_no_crop(func: Any, padding: Padding, before: Sequence[int], after: Sequence[int]) -> None:
    """Raise if a side of the map is padded that was cropped: the crop's values would come back in place of padding."""
    sides = zip((*padding.before, *padding.after), (*before, *after), strict=True)
    if any(cropped < 0 < added for cropped, added in sides):
        raise unsupported(func, "it pads where the map was cropped")


def require_unchanged(func: Any, padded: Tensor, padding: Padding) -> None:
    """Raise if a map was written to between its padding and the operation that consumes it."""
    if version_of(padded) != padding.version:
        raise unsupported(func, "its argument was padded, and what was padded has been written to since")
