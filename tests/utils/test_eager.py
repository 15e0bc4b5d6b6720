"""Compiled functions run eagerly within a context, whatever threads do, and compiled again after it."""

from __future__ import annotations

import threading

import pytest
import torch
import torch._dynamo
from torch import Tensor

from sparkmim.utils.eager import force_eager


@pytest.fixture
def compiled() -> list[int]:
    """Counts the compilations of :func:`double`."""
    torch._dynamo.reset()
    return []


def double(count: list[int]) -> Tensor:
    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        count.append(1)
        return graph

    function = torch.compile(lambda x: 2 * x, backend=backend)
    out: Tensor = function(torch.ones(2))
    return out


def test_within_and_after(compiled: list[int]) -> None:
    with force_eager():
        with force_eager():
            double(compiled)
        double(compiled)
        assert compiled == []
    double(compiled)
    assert compiled == [1]


def test_a_thread_that_leaves_last(compiled: list[int]) -> None:
    """It has entered while another was inside, and restores what was before both."""
    first_inside, both_inside, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with force_eager():
            first_inside.set()
            both_inside.wait(10)
        first_out.set()

    def last() -> None:
        first_inside.wait(10)
        with force_eager():
            both_inside.set()
            first_out.wait(10)
            double(compiled)

    threads = [threading.Thread(target=work) for work in (first, last)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == []
    double(compiled)
    assert compiled == [1]


def test_errors_leave_too(compiled: list[int]) -> None:
    with pytest.raises(ValueError, match="within"), force_eager():
        raise ValueError("within")
    double(compiled)
    assert compiled == [1]
