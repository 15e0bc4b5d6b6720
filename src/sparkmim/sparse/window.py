"""What a sliding window (of a convolution or a pooling) needs to see around a packed patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.axes import per_axis
from .errors import unsupported
from .execution import Execution
from .layout import Layout, Padding
from .shared.pad import require_no_crop, require_unchanged


class Window(NamedTuple):
    """A sliding window on patches, all per spatial axis.

    Attributes:
        block: pixels of a patch.
        kernel, stride, dilation: of the window.
        before, after: pixels it reaches beyond the patch; where negative, a patch's first or last pixels are not read.
        fill: what it sees in hidden patches and outside the image.
        edge: "constant" if that is `fill`, else the padding mode by which it follows from the map.
        span: pixels of a patch with its halo.
        out: pixels of a patch in the result.
        needs_halo: whether it reaches beyond a patch at all, or begins within it.
    """

    block: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    fill: float
    edge: str
    span: tuple[int, ...]
    out: tuple[int, ...]
    needs_halo: bool


WINDOWS: dict[Any, Window] = {}
"""Windows of convolutions that were found to be aligned with the patches, by what they follow from."""

MOST_WINDOWS = 4096


def window_key(
    layout: Layout, x: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...] | None:
    """Return what a convolution's window follows from, its kernel in :data:`WINDOWS`; None where it may not be kept.

    It may be kept for maps laid out as (batch, channel, *space) without a padding that waits, whose window is given by
    ordinary numbers, and not by a compiler.
    """
    plain = layout.padding is None and not layout.flattened and layout.batch == 0 and layout.space[0] == 2
    if not plain or type(stride) not in _PLAIN or type(padding) not in _PLAIN or type(dilation) not in _PLAIN:
        return None
    if torch.compiler.is_compiling():
        return None
    return layout.space, x.shape[2:], kernel, stride, padding, dilation


_PLAIN = (int, tuple, str)


def keep_window(key: tuple[Any, ...], window: Window) -> None:
    """Keep the window of an aligned convolution."""
    if len(WINDOWS) >= MOST_WINDOWS:  # images of ever other sizes
        WINDOWS.clear()
    WINDOWS[key] = window


def sees_one_position(layout: Layout, kernel: Sequence[int], stride: Any, padding: Any) -> bool:
    """Return whether a convolution of positions that are one axis acts on each of them alone."""
    ordered = layout.batch == 0 and 1 not in layout.space
    alone = [set(per_axis(value, len(kernel))) for value in (kernel, stride)] == [{1}, {1}]
    return bool(layout.flattened) and ordered and alone and padding in ("same", "valid", 0, (0,) * len(kernel))


def window_over(
    execution: Execution,
    func: Any,
    x: Tensor,
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    *,
    fill: float = 0.0,
    ceil_mode: bool = False,
) -> Window:
    """Return the window of a call; raise where the result would not be aligned with the patches.

    Args:
        padding: an int or ints, "same" or "valid".
        fill: what the function pads with.
    """
    layout = execution.require_map(func, x)
    dims = len(layout.space)
    if len(kernel) != dims:
        raise unsupported(func, f"its window has {len(kernel)} axes and the map {dims}")
    kernel, stride, dilation = tuple(kernel), per_axis(stride, dims), per_axis(dilation, dims)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        totals = [e - 1 if padding == "same" else 0 for e in extents]
        before = [t // 2 for t in totals]
        behind = [t - b for t, b in zip(totals, before, strict=True)]
    else:
        before = list(per_axis(padding, dims))
        behind = list(before)
    pending, own_fill = layout.padding, fill
    if pending is not None:
        require_unchanged(func, x, pending)
        require_no_crop(func, pending, before, behind)
        if any(before) and (pending.value != fill or pending.mode != "constant"):
            raise unsupported(func, f"it pads with {fill} what was padded with {_padded_with(pending)} before")
        fill = pending.value
        before = [a + b for a, b in zip(before, pending.before, strict=True)]
        behind = [a + b for a, b in zip(behind, pending.after, strict=True)]
    block = tuple(x.shape[2:])
    for b, s, e, lo, hi in zip(block, stride, extents, before, behind, strict=True):
        if b % s:
            raise unsupported(
                func, f"its stride {s} does not divide a patch of {b} pixels at this depth; use a larger patch size"
            )
        surplus = lo + hi - e
        steps = -((-surplus) // s) if ceil_mode else surplus // s
        if steps != -1:
            raise unsupported(
                func,
                f"with kernel extent {e}, stride {s} and padding {lo} + {hi} a map of n positions does not become "
                f"one of n / {s}, so the result is not aligned with the patches",
            )
    reach = zip(extents, stride, before, behind, strict=True)
    overhang = [ceil_mode and e - lo - s > hi for e, s, lo, hi in reach]
    if any(overhang) and pending is not None:
        if pending.value != own_fill or pending.mode != "constant":
            padded = _padded_with(pending)
            raise unsupported(
                func, f"with ceil_mode it pads with {own_fill} beyond what was padded with {padded} before"
            )
        require_no_crop(func, pending, (0,) * dims, overhang)
    after = tuple(e - 1 - lo - (s - 1) for e, s, lo in zip(extents, stride, before, strict=True))
    span = tuple(lo + b + hi for lo, b, hi in zip(before, block, after, strict=True))
    out = tuple(b // s for b, s in zip(block, stride, strict=True))
    needs_halo = any(lo != 0 for lo in before) or any(hi > 0 for hi in after)
    edge = "constant" if pending is None else pending.mode
    window = Window(block, kernel, stride, dilation, tuple(before), after, fill, edge, span, out, needs_halo)
    require_near_edges(func, window)
    return window


def require_near_edges(func: Any, window: Window) -> None:
    """Raise if a padding that mirrors the map would mirror more than one patch of it."""
    nearest = {"reflect": 1, "replicate": 0}.get(window.edge)
    if nearest is None:
        return
    for extent, *sides in zip(window.block, window.before, window.after, strict=True):
        if max(sides) > extent - nearest:
            raise unsupported(
                func,
                f"{window.edge} padding of {max(sides)} reaches beyond a patch of {extent} pixels at this depth; use a "
                "larger patch size",
            )


def of_one_position(func: Any, window: Window, size: Sequence[int]) -> Window:
    """Return a window of a whole map as one around each of its positions, where these hold several patches.

    Args:
        window: whose edge mirrors the map.
        size: of the map.

    Raises:
        UnsupportedOperation: if it passes over positions, or mirrors more than one.
    """
    ones = (1,) * len(size)
    if any(o % s for o, s in zip(window.out, size, strict=True)):
        raise unsupported(
            func,
            f"positions of the map hold several patches, and where some of them are hidden {window.edge} padding has "
            "no meaning within what becomes one position; pad with zeros, or use a larger patch size",
        )
    span = tuple(b + 1 + a for b, a in zip(window.before, window.after, strict=True))
    out = tuple(o // s for o, s in zip(window.out, size, strict=True))
    own = window._replace(block=ones, span=span, out=out)
    require_near_edges(func, own)
    return own


def _padded_with(padding: Padding) -> str:
    return str(padding.value) if padding.mode == "constant" else padding.mode
