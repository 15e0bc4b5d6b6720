from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkmim.data.sampler import InOrder, Positions, epoch_order
from sparkmim.data.seeding import keyed_seed


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(4, 40),
    micro=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 3),
    epochs=st.integers(1, 4),
    start=st.integers(0, 3),
)
def test_positions(images: int, micro: int, accumulate: int, processes: int, epochs: int, start: int) -> None:
    batch = micro * accumulate * processes
    steps = epochs * images // batch + 1
    one = list(Positions(images, batch, steps, 0, accumulate=accumulate * processes))
    # Every epoch shows every image once, whether or not the batch size divides.
    seen = [key for part in one for key in part]
    for epoch in range(seen[-1][0]):
        assert Counter(index for e, index in seen if e == epoch) == Counter(range(images))
    # N processes see what one process sees that accumulates N micro-batches.
    many = [
        list(Positions(images, batch, steps, 0, accumulate=accumulate, process=p, processes=processes))
        for p in range(processes)
    ]
    assert [part for parts in zip(*many, strict=True) for part in parts] == one
    # A later start gives the rest.
    late = Positions(images, batch, steps, 0, accumulate=accumulate * processes, start=start)
    assert list(late) == one[start * accumulate * processes :]
    assert len(late) == len(list(late))


def test_orders_differ_between_epochs_and_seeds() -> None:
    def order(seed: int) -> list[int]:
        return [index for part in Positions(50, 10, 10, seed) for _, index in part]

    assert order(0) == order(0)
    assert order(0)[:50] != order(0)[50:]
    assert order(0) != order(1)


@pytest.mark.parametrize("images", [1, 2, 1000, 100_003])
def test_orders_are_those_of_earlier_versions(images: int) -> None:
    wanted = torch.randperm(images, generator=torch.Generator().manual_seed(keyed_seed(7, 2, 3)))
    order = epoch_order(images, seed=7, epoch=3)
    assert order.tolist() == wanted.tolist()
    assert order.nbytes == 4 * images


@settings(deadline=None, max_examples=40)
@given(images=st.integers(0, 40), batch=st.integers(1, 9), processes=st.integers(1, 4))
def test_in_order(images: int, batch: int, processes: int) -> None:
    keys = [(0, index) for index in range(images)]
    batches = [keys[first : first + batch] for first in range(0, images, batch)]
    for process in range(processes):
        order = InOrder(images, batch, process=process, processes=processes)
        assert list(order) == batches[process::processes]
        assert len(order) == len(list(order))


def test_batches_must_divide() -> None:
    with pytest.raises(ValueError, match="use a multiple of 6"):
        Positions(50, 10, 1, 0, accumulate=2, processes=3)
