"""Every function that has a rule, under many forms of arguments: whatever is answered is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine_helpers import BATCH, CHANNELS, GRID, constant
from sparkmim.sparse import (
    Layout,
    PatchGrid,
    SparseExecution,
)
from sparkmim.sparse.registry import RULES

# Random, or without a value that a comparison could check.
NOT_COMPARED: tuple[str, ...] = (
    "bernoulli",
    "uniform",
    "normal_",
    "exponential",
    "rand",
    "rrelu",
    "dropout",
    "gumbel",
    "empty",
    "cuda",
    "get_device",
)
# Takes sizes, and whether those are of the map or of a patch a rule cannot know: see test_right_or_refused.py.
NOT_COMPARED += ("interpolate",)

ARGUMENTS: list[Callable[[Tensor], tuple[Any, ...]]] = [
    lambda x: (),
    lambda x: (1,),
    lambda x: (0.5,),
    lambda x: (0.1, 0.9),
    lambda x: (-1,),
    lambda x: (0,),
    lambda x: (2,),
    lambda x: ((2, 3),),
    lambda x: ([2, 3], True),
    lambda x: ((-1, -2), False),
    lambda x: ((2, 3), True, True),
    lambda x: (1, True),
    lambda x: (1, False),
    lambda x: (1, True, True),
    lambda x: (2, (2, 3)),
    lambda x: (2, 1, True),
    lambda x: (2, 3),
    lambda x: (1, -1),
    lambda x: (1, (2, 4)),
    lambda x: (2, 1, 1),
    lambda x: ((1, 2, 5), 1),
    lambda x: (1, 0, 4),
    lambda x: (0, 2, 3, 1),
    lambda x: ((1, 0, 3, 2),),
    lambda x: (x * 2,),
    lambda x: (x > 0, x),
    lambda x: (x > 0, 0.5),
    lambda x: (x.mean((2, 3), keepdim=True),),
    lambda x: (constant(8, 1, 1),),
    lambda x: (constant(1, 8, 1, 1), 0.5),
    lambda x: (constant(8, 8),),
    lambda x: (constant(8, 8, 3, 3), None, 1, 1),
    lambda x: (constant(8, 1, 3, 3), None, 1, 1, 1, 8),
    lambda x: ((Ellipsis, None),),
    lambda x: ((slice(None), slice(1, 5)),),
    lambda x: ((slice(None), 3),),
    lambda x: ((slice(None), True),),
    lambda x: ((slice(None), None, 2),),
    lambda x: ((Ellipsis, slice(1, None, 2)),),
    lambda x: ((slice(None), slice(0, 4)), 1.0),
    lambda x: (None, 2, "nearest"),
    lambda x: (3, 1, 1),
    lambda x: ((0, 0, 0, 0, 2, 1),),
    lambda x: (2, None, None, None, None, True),
]
SHAPES: list[Callable[[Tensor], tuple[Any, ...]]] = [  # for functions that take a shape, which others read otherwise
    lambda x: (x.shape[0], 2, 4, *x.shape[2:]),
    lambda x: ([x.shape[0], -1, *x.shape[2:]],),
    lambda x: ((x.shape[0], 8, x.shape[2], 1, x.shape[3]),),
    lambda x: (x.shape[0], 8, -1),
    lambda x: ((x.shape[0], 1, 1, 1),),
    lambda x: (tuple(x.shape),),
]
TAKE_SHAPES = ("reshape", "view", "new_zeros", "new_ones")
KEYWORDS: list[dict[str, Any]] = [
    {},
    {"dim": 1},
    {"axis": 1},
    {"dim": -3, "keepdim": True},
    {"dim": (2, 3)},
    {"axis": (2, 3), "keepdim": True},
]


def as_whole(grid: PatchGrid | None, tensor: Tensor, layout: Layout) -> Tensor:
    """A tensor by what its layout says: `(images, free axes, *space)`, whole if it is packed in `grid`; the positions
    of space that is one axis are one axis again."""
    free = [axis for axis in range(tensor.ndim) if axis not in layout.tracked_axes]
    tensor = tensor.permute(layout.batch, *free, *layout.space)
    if grid is None:
        return tensor
    if not layout.is_map:
        rows = grid.by_image(tensor)
        assert torch.equal(rows.nan_to_num(), rows[:, :1].expand_as(rows).nan_to_num()), "one value an image"
        return rows[:, 0]
    tensor = tensor.unflatten(-1, layout.flattened) if layout.flattened else tensor
    flat = tensor.flatten(1, len(free)) if free else tensor.unsqueeze(1)
    whole = grid.unpack(flat).reshape(
        grid.batch, *[tensor.shape[1 + i] for i in range(len(free))], *_size(grid, tensor)
    )
    return whole.flatten(-len(layout.flattened)) if layout.flattened else whole


def _size(grid: PatchGrid, tensor: Tensor) -> list[int]:
    return [g * b for g, b in zip(grid.shape, tensor.shape[-len(grid.shape) :], strict=True)]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def functions_by_name() -> dict[str, list[Any]]:
    functions: dict[str, list[Any]] = {}
    for function in RULES:
        name = getattr(function, "__name__", "")
        if name not in ("", "__get__", "fn") and not any(word in name for word in NOT_COMPARED):
            functions.setdefault(name, []).append(function)
    return functions


FUNCTIONS = functions_by_name()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_whatever_is_answered_is_right(name: str) -> None:
    """With nothing hidden: what a rule answers, and what it leaves in its argument, is what its layout says it is."""
    images = torch.randn(BATCH, CHANNELS, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, *GRID, dtype=torch.bool), 6)
    joins = name in ("cat", "concat", "concatenate", "stack")
    answered = []
    for function in FUNCTIONS[name]:
        for number, arguments in enumerate(ARGUMENTS + (SHAPES if name in TAKE_SHAPES else [])):
            for keywords in KEYWORDS if number < 8 else KEYWORDS[:1]:

                def call(x: Tensor) -> tuple[Tensor, Any]:
                    y = x * 1.0
                    first = [y, y * 2] if joins else y
                    return y, function(first, *arguments(x), **keywords)  # noqa: B023

                try:
                    ordinary = tensors_in(call(images))
                except Exception:  # not a form of arguments that this function has
                    continue
                execution = SparseExecution(grid)
                with execution:
                    try:
                        mine = call(execution.prepare(images))
                    except Exception:  # an error, of whatever kind, is not a wrong number
                        continue
                what = f"{function}, arguments {number}, {keywords}"
                found = tensors_in(mine)
                assert len(found) == len(ordinary), what
                for got, wanted in zip(found, ordinary, strict=True):
                    if execution.unfinished(got) is not None:  # raises when it is used
                        continue
                    layout = execution.layout(got)
                    if layout is None:  # a constant, which combining with a map checks
                        assert got.shape != wanted.shape or torch.allclose(got, wanted, equal_nan=True), what
                    elif layout.padding is None and got.numel():
                        assert max(layout.tracked_axes) < got.ndim, f"{what}: {layout} of {got.ndim} axes"
                        torch.testing.assert_close(
                            as_whole(grid, got, layout),
                            as_whole(None, wanted, layout),
                            equal_nan=True,
                            msg=lambda m: f"{what}, {layout}: {m}",  # noqa: B023
                        )
                        answered.append(what)
    assert answered or name not in ("add", "mul", "relu", "softmax", "mean", "cat", "reshape", "permute", "conv2d")
