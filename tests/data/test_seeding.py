from __future__ import annotations

import numpy as np
import pytest

from sparkmim.data.seeding import Stream, keyed_generator, keyed_seed


def test_seeds_are_those_of_earlier_versions() -> None:
    assert [keyed_seed(0, stream) for stream in Stream] == [keyed_seed(0, number) for number in range(1, 13)]
    assert keyed_seed(0, Stream.VIEW, 2, 5) == 6493054163883110846
    assert keyed_generator(0, Stream.VIEW, 2, 5).initial_seed() == 6493054163883110846
    assert {stream.name: int(stream) for stream in Stream} == {
        "HELD_OUT": 1,
        "ORDER": 2,
        "VIEW": 3,
        "STEP": 4,
        "PRETRAIN_WEIGHTS": 5,
        "LABEL_SHARE": 6,
        "FOLDS": 7,
        "FINETUNE_WEIGHTS": 8,
        "REFINE_WEIGHTS": 9,
        "FEW_SHOT": 10,
        "CLUSTERS": 11,
        "PROBE": 12,
    }


def test_seeds_are_numpys_for_numbers_of_any_size() -> None:
    for key in [(0,), (2**32 - 1, 0), (2**32, 7), (3, 2**63, 1), (0, 0, 0, 0, 2**31)]:
        wanted = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
        assert keyed_seed(*key) == wanted
    with pytest.raises(ValueError, match="non-negative"):
        keyed_seed(0, -1)
