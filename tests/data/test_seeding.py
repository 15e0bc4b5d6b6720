from __future__ import annotations

from sparkmim.data.seeding import Stream, keyed_generator, keyed_seed


def test_seeds_are_those_of_earlier_versions() -> None:
    assert [keyed_seed(0, stream) for stream in Stream] == [keyed_seed(0, number) for number in range(1, 12)]
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
    }
