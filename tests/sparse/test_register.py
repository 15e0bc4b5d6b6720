"""Rules that users register."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine_helpers import (
    SIZES,
    Apply,
    Host,
    all_visible,
    images_of,
    random_grid,
    refusal,
    right_or_refused,
)
from sparkmim import sparse
from sparkmim.sparse import Execution, MaskedDenseExecution, SparseExecution, UnsupportedOperation, run
from sparkmim.sparse.registry import RULES


@pytest.mark.usefixtures("kept_rules")
class TestRegister:
    part = Apply(lambda x: torch.i0(x))

    def test_makes_an_unknown_function_work(self) -> None:
        assert not right_or_refused(self.part, (4, 4))

        @sparse.register(torch.i0)
        def bessel(execution: Execution, function: Any, x: Tensor) -> Tensor:
            """Each value alone."""
            layout = execution.layout(x)
            assert layout is not None
            return execution.mark(function(x), layout)

        for block in SIZES.values():
            assert right_or_refused(self.part, block)
        grid, images = random_grid(), images_of((4, 4))
        (packed,) = run(SparseExecution(grid), Host(self.part), images)
        (dense,) = run(MaskedDenseExecution(grid), Host(self.part), images)
        torch.testing.assert_close(packed, grid.pack(dense))

    def test_for_one_execution(self) -> None:
        @SparseExecution.register(torch.erfinv, torch.Tensor.erfinv)
        def erfinv(execution: Execution, function: Any, x: Tensor) -> Tensor:
            layout = execution.layout(x)
            assert layout is not None
            return execution.mark(function(x), layout)

        part = Apply(lambda x: x.tanh().erfinv() + torch.erfinv(x.tanh()))
        assert right_or_refused(part, (4, 4))
        with pytest.raises(UnsupportedOperation, match="erfinv"):
            run(MaskedDenseExecution(random_grid()), Host(part), images_of((4, 4)))

    def test_replaces_a_rule(self) -> None:
        @sparse.register(torch.Tensor.relu)
        def relu(execution: Execution, function: Any, x: Tensor) -> Tensor:
            layout = execution.layout(x)
            assert layout is not None
            return execution.mark(function(x) + 1, layout)

        (out,) = run(SparseExecution(all_visible()), Apply(lambda x: x.relu()), images_of((4, 4)))
        torch.testing.assert_close(all_visible().unpack(out), images_of((4, 4)).relu() + 1)

    def test_rule_that_forgets_to_mark_is_refused(self) -> None:
        sparse.register(torch.Tensor.digamma)(lambda execution, function, x: function(x))
        assert "is not traced from the input" in refusal(lambda x: x.digamma(), (4, 4))


def test_rules_of_the_tests_are_forgotten() -> None:
    """Or what these tests register would hide a missing rule from the others."""
    for function in (torch.i0, torch.erfinv, torch.Tensor.erfinv, torch.Tensor.digamma):
        assert function not in RULES
    assert "relu" not in str(RULES[torch.Tensor.relu]["Execution"].__name__)
