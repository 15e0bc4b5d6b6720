"""Functions that act on each position alone, on all of space, or on windows: right in every execution, or refused.

Three executions answer each function: packed, masked-dense, and, for maps whose positions hold several patches, coarse.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    LARGE,
    RIGHT,
    SMALL,
    Answer,
    Apply,
    Function,
    answer,
    assert_same_answer,
    cases,
    outcome,
    refusal,
)
from engine_helpers import REFUSED as IS_REFUSED
from rule_cases import REFUSED, WORKING
from sparkmim.sparse import (
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    mask_at,
    run,
)

BLOCK_SIZES = {"patches_4x2": LARGE, "patches_1x1": SMALL}
BLOCKS = pytest.mark.parametrize("block", list(BLOCK_SIZES.values()), ids=list(BLOCK_SIZES))


@BLOCKS
@cases(WORKING)
def test_is_right(case: Function, block: tuple[int, int]) -> None:
    assert outcome(case, block) == RIGHT


@BLOCKS
@cases(REFUSED)
def test_is_refused_and_says_why(case: tuple[Function, str], block: tuple[int, int]) -> None:
    function, why = case
    if outcome(function, block) != IS_REFUSED:
        pytest.fail("it is answered")
    assert why in refusal_of(function, block)


def refusal_of(function: Function, block: tuple[int, int]) -> str:
    """Return the message of a function that is refused when it is called, or in backward."""
    try:
        return refusal(function, block)
    except pytest.fail.Exception:
        return "hook: samples or space"


# --- maps whose positions hold several patches ------------------------------------------------------------------------


class Coarse(nn.Module):
    """A convolution whose positions hold 2 x 2 patches of 2 x 2 pixels, the function, and one that looks around."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.stem.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
        self.block = Apply(function)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.block(self.stem(x)), 3, 1, 1)


@cases({name: (name, function) for name, function in WORKING.items()})
def test_is_right_where_positions_hold_several_patches(case: tuple[str, Function]) -> None:
    _, function = case
    network = Coarse(function)
    visible = torch.rand(2, 24, generator=torch.Generator().manual_seed(5)).argsort(1).lt(6).view(2, 4, 6)
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def of(execution: type, mask: Tensor) -> Answer:
        grid = PatchGrid(mask, int(mask[0].sum()))

        def visible_maps(images: Tensor) -> Tensor:
            (out,) = run(execution(grid), network, images)
            return torch.where(mask_at(mask, out.shape[2:]).unsqueeze(1), out, 0.0)

        return answer(network, visible_maps, images)

    packed = of(SparseExecution, visible)
    assert_same_answer(packed, of(MaskedDenseExecution, visible), "random mask")
    everything = of(SparseExecution, torch.ones_like(visible))
    assert_same_answer(everything, answer(network, network, images), "nothing hidden")
