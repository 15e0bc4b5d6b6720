from __future__ import annotations

from sparkmim.data.sources.builtin import builtin_photographs


def test_builtin_photographs_are_all_there() -> None:
    source = builtin_photographs()
    assert len(source) == 15
    for i in range(len(source)):
        image = source.open(i).decode(3)
        assert image.shape[0] == 3
        assert 200 <= min(image.shape[1:]) <= 384
        assert source.open(i).decode(3) is image  # decoded once
