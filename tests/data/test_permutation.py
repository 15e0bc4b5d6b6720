from __future__ import annotations

import numpy as np
import pytest

from sparkmim.data.permutation import BLOCK, KeyedOrder
from sparkmim.data.sampler import Positions


@pytest.mark.parametrize("images", [*range(1, 70), 255, 256, 257, 1023, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_every_image_has_one_place(images: int) -> None:
    orders = [KeyedOrder(images, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    found = [order.at(np.arange(images)) for order in orders]
    for order, shown in zip(orders, found, strict=True):
        assert np.array_equal(np.sort(shown), np.arange(images))
        for place in {0, images - 1, images // 2}:
            assert order[place] == shown[place]
    if images > 20:
        assert all(not np.array_equal(one, other) for one, other in ((found[0], found[1]), (found[0], found[2])))


def test_numbers_stay_the_same() -> None:
    """Recorded runs are resumed with them."""
    assert KeyedOrder(1000, 5, 7).at(np.arange(8)).tolist() == [994, 179, 709, 606, 399, 259, 417, 19]
    assert KeyedOrder(10**9, 5, 7).at(np.array([0, 1, 10**9 - 1])).tolist() == [400766392, 646937033, 163453710]


def test_the_order_is_random() -> None:
    """Places and images are not correlated, neighbors are not neighbors, and all images are as likely at any place."""
    images = 20_000
    shown = KeyedOrder(images, 0, 0).at(np.arange(images))
    assert abs(np.corrcoef(np.arange(images), shown)[0, 1]) < 4 / np.sqrt(images)
    assert abs(np.corrcoef(shown[:-1], shown[1:])[0, 1]) < 4 / np.sqrt(images)
    assert (np.abs(np.diff(shown)) < 10).mean() < 0.002
    small = np.array([KeyedOrder(10, 0, epoch).at(np.arange(10)) for epoch in range(2000)])
    for place in range(10):
        counts = np.bincount(small[:, place], minlength=10)
        assert ((counts - 200) ** 2 / 200).sum() < 40  # chi-square of 9 degrees: above 33.7 once in 10,000


def test_a_hundred_million_take_no_memory() -> None:
    order = KeyedOrder(10**8, 0, 0)
    assert len({order[place] for place in range(0, 10**8, 10**7)}) == 10
    keys = next(iter(Positions(10**8, 512, 10**6, 0, start=300_000, order="keyed")))
    assert len(set(keys)) == 512
    assert {epoch for epoch, _ in keys} == {1}


def test_a_later_start_shows_the_same() -> None:
    whole = list(Positions(10, 4, 9, 3, order="keyed"))
    assert list(Positions(10, 4, 9, 3, start=4, order="keyed")) == whole[4:]
    assert sorted(index for batch in whole[:5] for _, index in batch) == sorted([*range(10)] * 2)
    assert whole != list(Positions(10, 4, 9, 3))
