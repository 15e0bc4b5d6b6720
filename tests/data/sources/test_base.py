from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.data.sources.base import fingerprint, held_out
from sparkmim.data.sources.folder import find_images


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(path, format="PNG")


def test_held_out_images_are_a_share_of_their_own(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / f"{i:02}.png")
    source = find_images(tmp_path)
    rest, share = held_out(source, 0.25, seed=3)
    kept, out = ({s.name(i) for i in range(len(s))} for s in (rest, share))
    assert (len(kept), len(out)) == (15, 5)
    assert kept | out == {source.name(i) for i in range(20)}
    assert fingerprint(held_out(source, 0.25, seed=3)[1]) == fingerprint(share)
    assert fingerprint(held_out(source, 0.25, seed=4)[1]) != fingerprint(share)
    assert len(held_out(source, 0.001, seed=0)[1]) == 1


@pytest.mark.parametrize("share", [-0.1, 0.99, 1.0, 2.0])
def test_impossible_shares_are_refused(tmp_path: Path, share: float) -> None:
    for i in range(3):
        put(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="--val-share"):
        held_out(find_images(tmp_path), share, seed=0)


def test_fingerprint_tells_other_images(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    before = fingerprint(find_images(tmp_path))
    assert fingerprint(find_images(tmp_path)) == before
    put(tmp_path / "b.png")
    assert fingerprint(find_images(tmp_path)) != before
