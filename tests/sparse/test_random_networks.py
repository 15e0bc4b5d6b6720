"""Networks generated at random are equal to the ordinary network and to the reference, or refused: never wrong."""

from __future__ import annotations

import warnings

import pytest

from network_generator import EQUAL, REFUSED, Verdict, generate, source, verdict_of

SEEDS, EACH = 100, 10


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_equal_or_refused(first: int) -> None:
    """At an image size and a batch size that the check does not use, with whatever sizes the networks read."""
    wrong, equal = [], 0
    for seed in range(first, first + EACH):
        verdict = tried(seed)
        equal += verdict.outcome == EQUAL
        if not verdict.right:
            code = source(generate(seed))
            wrong.append(f"seed {seed} (python benchmarks/random_networks.py --show {seed}): {verdict}\n{code}")
    assert not wrong, "\n".join(wrong)
    assert equal, "all of them are refused"


def tried(seed: int) -> Verdict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of odd arguments, of which a network may have any
        return verdict_of(generate(seed))


def test_networks_are_made_of_their_seeds() -> None:
    assert source(generate(7)) == source(generate(7))
    assert len({source(generate(seed)) for seed in range(50)}) == 50


def test_outcomes_are_told_apart() -> None:
    assert Verdict(EQUAL).right
    assert Verdict(REFUSED, "has no rule").right
    assert not Verdict("wrong on a mask; the check passes").right
