from __future__ import annotations

import pytest

from sparkmim.data.storage import names
from sparkmim.data.storage.names import Names


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_names_are_kept(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TOGETHER", together)
    wanted = ["a", "", "ç/d", "\udcff", "", "a b.png"]
    for given in (wanted, [], [""], wanted[:1]):
        kept = Names.of(given)
        assert list(kept) == [kept[index] for index in range(len(kept))] == given


@pytest.mark.parametrize("together", [1, 2, 10_000])
def test_a_digest_is_that_of_the_names_one_by_one(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TOGETHER", together)
    for given in (["a", "bc", "", "ü/d", "\udcff"], ["same", "size"], ["x" * 300]):
        whole = b"".join(name.encode(errors="surrogateescape") + b"\0" for name in given)
        assert b"".join(Names.of(given).ended_by_zeros()) == whole
