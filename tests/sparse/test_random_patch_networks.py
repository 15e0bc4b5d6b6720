"""Networks drawn at random are right or refused: see `random_patch_networks.py`, which tries more of them."""

from __future__ import annotations

import pytest

from random_patch_networks import Network, faults


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_patch_networks(first: int) -> None:
    """Packed is masked-dense, nothing hidden is the ordinary network, and what is hidden has no influence."""
    found = {seed: faults(seed, thorough=False) for seed in range(first, first + 20)}
    wrong = {seed: (Network(seed).names, what) for seed, what in found.items() if what and not isinstance(what, str)}
    assert not wrong
    assert sum(isinstance(what, str) for what in found.values()) <= 8, "too many are refused"
