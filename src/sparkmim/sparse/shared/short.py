"""Windows of stride 1 that are padded by less than they need, and followed by one that is padded by more.

As YOLOv9 goes down: an average pooling of 2 x 2 makes n - 1 of n positions, and a convolution of stride 2, padded by 1,
n / 2 of these. The result of the first has a position less than its map wherever the map ends, and on patches so it has
where what is visible ends; it waits for the second, which sees there what it sees beyond the edge of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import running_module_ids, unsupported
from ..execution import Execution
from ..functions import functions_named
from ..layout import Layout, Unfinished
from ..registry import register_waiting
from .calls import call
from .overhang import overhanging
from .pointwise import IN_PLACE, METADATA, POINTWISE, SAME_VALUES
from .pooling import AVG_POOL, MAX_POOL, VALUES


class Short(NamedTuple):
    """A map that lacks its last positions.

    Attributes:
        values: a map of all positions.
        complete: `(batch, 1, *size)`, True at those that there are.
        missing: how many are missing along each spatial axis.
    """

    values: Tensor
    complete: Tensor
    missing: tuple[int, ...]


def falling_short(
    execution: Execution,
    func: Any,
    x: Tensor,
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    aligned: Callable[[Tensor], Tensor],
    fill: float = 0.0,
) -> Tensor | None:
    """Return the result of a window that is padded by less than it needs, unfinished; None for any other.

    Args:
        kernel, stride, padding, dilation: of the window.
        aligned: calls `func` without padding, on the map padded by as much as it needs.
        fill: what `func` pads with.
    """
    layout = execution.layout(x)
    if isinstance(padding, str) or layout is None or layout.padding is not None or not layout.is_channels_first(x.ndim):
        return None
    dims = len(layout.space)
    steps, pads, spread = (per_axis(value, dims) for value in (stride, padding, dilation))
    if len(kernel) != dims or set(steps) != {1}:
        return None
    missing = tuple((k - 1) * d - 2 * p for k, d, p in zip(kernel, spread, pads, strict=True))
    if min(missing) < 0 or max(missing) == 0:
        return None
    why = (
        f"with kernel extent {(kernel[0] - 1) * spread[0] + 1}, stride 1 and padding {pads[0]} + {pads[0]} a map of n "
        f"positions does not become one of n / 1, so the result is not aligned with the patches, but for a convolution "
        f"or pooling right behind it that is padded by {max(missing)} more than it needs; pad it"
    )
    size = execution.ordinary_shape(x, layout)
    patches = zip(execution.grid_shape[1:], layout.space, missing, strict=True)
    if any(size[axis] <= count * m for count, axis, m in patches):
        raise unsupported(
            func, f"a patch has at most {max(missing)} positions at this depth, and its windows leave so many out"
        )
    sides = [amount for p, m in zip(reversed(pads), reversed(missing), strict=True) for amount in (p, p + m)]
    values = aligned(call(execution, F.pad, x, sides, "constant", fill))
    one = call(execution, torch.ones_like, call(execution, torch.narrow, x, 1, 0, 1), dtype=torch.float32)
    beyond = [amount for m in reversed(missing) for amount in (0, m)]
    extents = tuple(m + 1 for m in missing)
    pool = next(function for function, axes in AVG_POOL.items() if axes == dims)
    seen = call(execution, pool, call(execution, F.pad, one, beyond), extents if dims > 1 else extents[0], 1)
    complete = call(execution, torch.gt, seen, 1 - 0.5 / math.prod(extents))
    # What a window makes of a part of its positions must not reach functions that have no gradient there, as sqrt.
    values = call(execution, torch.where, complete, values, 0.5)
    return _standing_for(execution, Unfinished(func, why, Short(values, complete, missing), running_module_ids()))


def unaligned_convolution(
    execution: Execution, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any
) -> Tensor | None:
    """Return the result of a convolution that is padded by more or by less than it needs, unfinished; None for others.

    Args:
        settings: stride, padding, dilation and groups.
    """
    waiting = overhanging(execution, func, x, weight, bias, *settings)
    if waiting is not None:
        return waiting
    stride, padding, dilation, groups = settings

    def aligned(padded: Tensor) -> Tensor:
        return call(execution, func, padded, weight, bias, stride, 0, dilation, groups)  # type: ignore[no-any-return]

    return falling_short(execution, func, x, weight.shape[2:], stride, padding, dilation, aligned)


def short_max_pool(
    execution: Execution, func: Any, x: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor | None:
    """Return the result of a max pooling that is padded by less than it needs, unfinished; None for any other."""

    def aligned(padded: Tensor) -> Tensor:
        return call(execution, VALUES[len(kernel)], padded, kernel, stride, 0, dilation)  # type: ignore[no-any-return]

    return falling_short(execution, func, x, kernel, stride, padding, dilation, aligned, -math.inf)


def short_avg_pool(
    execution: Execution, func: Any, x: Tensor, kernel: Sequence[int], stride: Any, padding: Any, divisor: int | None
) -> Tensor | None:
    """Return the result of an average pooling without padding, unfinished; None for any other."""
    if any(per_axis(padding, len(kernel))):
        return None
    further = (False, True, divisor) if len(kernel) > 1 else ()

    def aligned(padded: Tensor) -> Tensor:
        return call(execution, func, padded, kernel, stride, 0, *further)  # type: ignore[no-any-return]

    return falling_short(execution, func, x, kernel, stride, padding, 1, aligned)


def _standing_for(execution: Execution, unfinished: Unfinished) -> Tensor:
    waits: Short = unfinished.waits
    owner = execution.owner([waits.values]) or execution
    owner.has_waiting = execution.has_waiting = True
    layout = owner.layout(waits.values)
    assert layout is not None
    standing = waits.values.new_zeros(()).expand(waits.values.shape)
    return owner.mark(standing, Layout(layout.origin, layout.batch, layout.space, unfinished=unfinished))


_CONV = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_PARTS = functions_named("chunk split tensor_split split_with_sizes narrow")
_EACH = set(POINTWISE) - set(IN_PLACE) | set(SAME_VALUES) | set(functions_named("dropout"))


@register_waiting(Short)
def answer_short(execution: Execution, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a function of a map that lacks positions: of each alone, of channels, or a window that ends the wait."""
    x = args[0] if args else kwargs.get("input")
    unfinished = execution.unfinished(x)
    if not isinstance(x, Tensor) or unfinished is None or not isinstance(unfinished.waits, Short):
        raise unsupported(func, "one of its arguments, not the first, lacks the last positions of its map")
    waits: Short = unfinished.waits
    rest = args[1:] if args else ()
    named = {name: value for name, value in kwargs.items() if name != "input"}
    if func in METADATA:
        return call(execution, func, waits.values, *rest, **named)
    others = [value for value in (*rest, *named.values()) if isinstance(value, Tensor)]
    if func in _CONV or func in MAX_POOL or func in AVG_POOL:
        return _finished(execution, func, unfinished, rest, named)
    of_channels = (
        func in _PARTS and execution.layout(waits.values) is not None and _axis(func, rest, named) % x.ndim == 1
    )
    if not of_channels and (func not in _EACH or any(execution.any_layout([value]) for value in others)):
        raise unfinished.error()
    out = call(execution, func, waits.values, *rest, **named)

    def standing(part: Tensor) -> Tensor:
        return _standing_for(execution, unfinished._replace(waits=waits._replace(values=part)))

    return type(out)(map(standing, out)) if isinstance(out, (tuple, list)) else standing(out)


def _axis(func: Any, rest: Sequence[Any], named: dict[str, Any]) -> int:
    place = 0 if _PARTS[func] == "narrow" else 1
    return int(named["dim"] if "dim" in named else rest[place] if len(rest) > place else 0)


def _finished(
    execution: Execution, func: Any, unfinished: Unfinished, rest: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Call a window on the map, with what it pads with at the positions that are missing."""
    waits: Short = unfinished.waits
    names = _ARGUMENTS["conv" if func in _CONV else "max" if func in MAX_POOL else "avg"]
    given = dict(zip(names, rest, strict=False)) | named
    dims = len(waits.missing)
    pads = given.get("padding", 0)
    pads = pads if isinstance(pads, str) else per_axis(pads, dims)
    counts = func in AVG_POOL and (given.get("count_include_pad") is False or given.get("ceil_mode"))
    if isinstance(pads, str) or any(p < m for p, m in zip(pads, waits.missing, strict=True)) or counts:
        raise unfinished.error()
    fill = -math.inf if func in MAX_POOL else 0.0
    filled = call(execution, torch.where, waits.complete, waits.values, fill)
    sides = [a for p, m in zip(reversed(pads), reversed(waits.missing), strict=True) for a in (p, p - m)]
    padded = call(execution, F.pad, filled, sides, "constant", fill)
    return call(execution, func, padded, **{**given, "padding": 0})


_ARGUMENTS = {
    "conv": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
"""Names of arguments after the map."""
