"""Several sets of images as one source, by weights."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from archives import write_tars
from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, lines, make_images
from sparkmim.data.config import DEFAULT_FILES
from sparkmim.data.sources.address import absolute_address, is_fetched, open_source
from sparkmim.data.sources.base import Subset, fingerprint, held_out, open_image
from sparkmim.data.sources.mixed import Mixed
from sparkmim.data.sources.pages import Pages
from sparkmim.data.statistics import peculiarities
from sparkmim.data.survey import survey
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain


def mixture(folder: Path, *rows: str) -> str:
    (folder / "mix.txt").write_text("\n".join(["# weights and addresses", "", *rows]) + "\n")
    return f"mix://{folder / 'mix.txt'}"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    make_images(tmp_path / "a", 4, seed=0)
    make_images(tmp_path / "b", 6, seed=1)
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "times"),
    [((1, 1), (1, 1)), ((3, 1), (3, 1)), ((1, 3), (1, 3)), ((0.5, 0.25), (2, 1)), ((5, 2), (2.5, 1))],
)
def test_images_are_shown_as_often_as_their_weights_say(
    sets: Path, weights: tuple[float, float], times: tuple[float, float]
) -> None:
    source = open_source(mixture(sets, f"{weights[0]} a", f"{weights[1]} b"))
    assert isinstance(source, Mixed)
    shown = Counter(source._find(index)[:2] for index in range(len(source)))
    for number, (images, time) in enumerate(zip((4, 6), times, strict=True)):
        counts = [shown[number, index] for index in range(images)]
        assert sum(counts) == round(images * time)
        assert max(counts) - min(counts) <= 1
    names = [source.name(index) for index in range(len(source))]
    assert len(set(names)) == len(names)
    assert list(source.each_name()) == names


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 2.5), (5, 2)])
def test_an_image_shown_several_times_is_held_out_as_a_whole(sets: Path, weights: tuple[float, float]) -> None:
    source = open_source(mixture(sets, f"{weights[0]} a", f"{weights[1]} b"))
    shown = [source._find(index)[:2] for index in range(len(source))]  # type: ignore[attr-defined]
    first = source.first_indices()
    assert first is not None
    assert first.tolist() == [shown.index(one) for one in shown]
    for seed in range(5):
        rest, held = (part.indices.tolist() for part in held_out(source, 0.3, seed))  # type: ignore[attr-defined]
        assert len(held) == 3
        assert not {shown[index] for index in rest} & {shown[index] for index in held}
        assert {shown[index] for index in rest + held} == set(shown)
    with pytest.raises(ValueError, match="of 10 images"):
        held_out(source, 0.99, 0)


def test_images_shown_several_times_are_not_told_as_copies(sets: Path) -> None:
    source = open_source(mixture(sets, "3 a", "1 b"))
    assert not peculiarities(source, 3)
    assert not peculiarities(Subset(source, np.arange(3, len(source))), 3)
    pages = Pages(source, np.array([1 + source._find(index)[1] % 2 for index in range(len(source))]))  # type: ignore[attr-defined]
    names = [pages.name(index).replace(" (2)", "").replace(" (3)", "") for index in range(len(pages))]
    assert pages.first_indices().tolist() == [names.index(name) for name in names]  # type: ignore[union-attr]
    found = survey(source, 3, 100)
    assert found.tried == 10
    assert not found.exact


def test_images_are_those_of_the_sets(sets: Path) -> None:
    write_tars(sets / "b", sets / "tar")
    source = pickle.loads(pickle.dumps(open_source(mixture(sets, "2 a", f"1 wds://{sets / 'tar'}"))))
    alone = [open_source(sets / name) for name in "ab"]
    source.prefetch(range(len(source)))
    for index in range(len(source)):
        number, inner, _ = source._find(index)
        mine, other = (open_image(s, i, DEFAULT_FILES).decode(3) for s, i in ((source, index), (alone[number], inner)))
        assert torch.equal(mine, other)


def test_a_run_on_a_mixture_resumes_to_the_bit(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretraining, "check", lambda *_: None)
    chosen = TINY_PRETRAIN | {"data": mixture(sets, "2 a", "1 b"), "epochs": 1.2, "warmup_epochs": 0.3, "pictures": 0}
    pretrain(sets / "whole", chosen=chosen)
    pretrain(sets / "parts", chosen=chosen, after_step=interrupt_at(2))
    pretrain(sets / "parts")
    assert len(lines(sets / "whole")) == 4
    assert_same_training(sets / "parts", sets / "whole")


def test_other_weights_are_other_images(sets: Path) -> None:
    one, other = (fingerprint(open_source(mixture(sets, f"{weight} a", "1 b"))) for weight in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "lists no images"),
        (["a"], r"line 3 is 'a'; expected a weight above 0 and an address"),
        (["0 a"], "expected a weight above 0"),
        (["nan a"], "expected a weight above 0"),
        (["-1 a"], "expected a weight above 0"),
        (["1 a", "1 a"], "is listed twice"),
        (["1 a", "5000 b"], "more than 1000 times apart"),
        (["1 missing"], "missing"),
        (["1 net.py:Source://x"], "runs no code"),
        (["1 mix://mix.txt"], "a mixture cannot be part of another one"),
    ],
)
def test_what_is_no_mixture(sets: Path, rows: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_source(mixture(sets, *rows))


def test_a_mixture_is_fetched_if_one_of_its_sets_is(sets: Path) -> None:
    assert not is_fetched(mixture(sets, "1 a", "1 b"))
    assert is_fetched(mixture(sets, "1 a", "1 https://host/images/"))
    assert not is_fetched("mix:///nowhere.txt")


def test_its_address_holds_in_any_folder(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = mixture(sets, "1 a")
    monkeypatch.chdir(sets)
    assert absolute_address("mix://mix.txt") == address
