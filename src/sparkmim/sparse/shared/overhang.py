"""Convolutions padded by more than they need, whose results are cropped at once.

As causal convolutions are written (`conv(x)[..., :-2]`). With the crop they are convolutions with other padding; the
result of the convolution alone is larger than its map and has no meaning on patches, so it waits for the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import running_module_ids, unsupported
from ..execution import Execution
from ..extent import of_whole_map
from ..layout import Layout, Unfinished
from ..versions import version_of
from .calls import call


class Overhang(NamedTuple):
    """A convolution of stride 1 that makes more positions than it is given.

    Attributes:
        source: the map.
        arguments: of the convolution after the map and before the padding: weight, bias, stride.
        further: those behind the padding: dilation, groups.
        padding: of the convolution, on both sides of each spatial axis.
        extra: positions that it makes too many, along each spatial axis.
        version: of the map: it must not change before the crop.
    """

    source: Tensor
    arguments: tuple[Any, ...]
    further: tuple[Any, ...]
    padding: tuple[int, ...]
    extra: tuple[int, ...]
    version: int


def overhanging(
    execution: Execution,
    func: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor | None:
    """Return the result of a convolution that is padded by more than it needs, unfinished; None for any other."""
    layout = execution.layout(x)
    dims = weight.ndim - 2
    if isinstance(padding, str) or layout is None or layout.padding is not None or len(layout.space) != dims:
        return None
    steps, pads, spread = (per_axis(value, dims) for value in (stride, padding, dilation))
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], spread, strict=True)]
    extra = tuple(2 * p - r for p, r in zip(pads, reach, strict=True))
    if set(steps) != {1} or min(extra) < 0 or max(extra) == 0 or not layout.is_channels_first(x.ndim):
        return None
    why = (
        f"with kernel extent {reach[0] + 1}, stride 1 and padding {pads[0]} a map of n positions becomes one of n + "
        f"{extra[0]}, which is not aligned with the patches; crop it right behind the convolution, as in "
        f"y[..., :-{max(extra)}], or pad less"
    )
    source = execution.mark(x.clone(), layout) if torch.compiler.is_compiling() or x.is_inference() else x
    waits = Overhang(source, (weight, bias, stride), (dilation, groups), pads, extra, version_of(source))
    shape = [x.shape[0], weight.shape[0], *[e + o for e, o in zip(x.shape[2:], extra, strict=True)]]
    out = x.new_zeros(()).expand(shape)
    return execution.mark(
        out, Layout(layout.origin, 0, layout.space, unfinished=Unfinished(func, why, waits, running_module_ids()))
    )


def is_overhang(execution: Execution, x: Any) -> bool:
    """Return whether a tensor is a map that is too large, which a crop may finish."""
    unfinished = execution.unfinished(x)
    return unfinished is not None and isinstance(unfinished.waits, Overhang)


def cropped_by_index(execution: Execution, x: Tensor, index: Any) -> Tensor:
    """Crop a map that is too large by slices along its spatial axes."""
    layout = execution.layout_as_is(x)
    assert layout is not None
    unfinished: Any = layout.unfinished
    waits: Overhang = unfinished.waits
    slices = slices_of_space(layout, x.ndim, index)
    if slices is None:
        raise unfinished.error()
    crops = []
    for axis, entry, extra in zip(layout.space, slices, waits.extra, strict=True):
        size = execution.extent_of_whole(layout, axis, waits.source.shape[axis]) + extra
        start, stop, _ = entry.indices(size)
        crops.append((start, size - stop))
    return _finished(execution, unfinished, crops)


def slices_of_space(layout: Layout, ndim: int, index: Any) -> list[slice] | None:
    """Return the slices along each spatial axis of an index that does nothing but crop there; None for any other."""
    entries = list(of_whole_map(index)) if isinstance(index, tuple) else [of_whole_map(index)]
    if not all(entry is Ellipsis or (isinstance(entry, slice) and entry.step in (None, 1)) for entry in entries):
        return None
    if Ellipsis not in entries:
        entries.append(Ellipsis)
    place = entries.index(Ellipsis)
    entries[place : place + 1] = [slice(None)] * (ndim - len(entries) + 1)
    if any(entry != slice(None) for axis, entry in enumerate(entries) if axis not in layout.space):
        return None
    return [entries[axis] for axis in layout.space]


def cropped_by_pad(execution: Execution, x: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """Crop a map that is too large by negative padding."""
    unfinished: Any = execution.unfinished(x)
    dims = len(unfinished.waits.extra)
    sides = [*pad, *[0] * (2 * dims)][: 2 * dims]
    if mode != "constant" or any(amount > 0 for amount in sides) or len(pad) > 2 * dims:
        raise unfinished.error()
    crops = [(-sides[2 * i], -sides[2 * i + 1]) for i in range(dims)][::-1]
    return _finished(execution, unfinished, crops)


def _finished(execution: Execution, unfinished: Unfinished, crops: Sequence[tuple[int, int]]) -> Tensor:
    """Convolve with so much less padding as is cropped, before and behind along each spatial axis."""
    waits: Overhang = unfinished.waits
    if [sum(crop) for crop in crops] != list(waits.extra):
        raise unfinished.error()
    if version_of(waits.source) != waits.version:
        raise unsupported(unfinished.function, "the map was written to between the convolution and the crop behind it")
    sides = [p - amount for p, crop in zip(waits.padding, crops, strict=True) for amount in reversed(crop)]
    padded = call(execution, F.pad, waits.source, sides[::-1])
    out: Tensor = call(execution, unfinished.function, padded, *waits.arguments, 0, *waits.further)
    return out
