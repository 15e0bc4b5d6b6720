"""A run is the same from a folder and from any other place of its images, and so are labels."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from archives import write_list, write_parquet, write_tars, write_zip
from helpers import FOUR_STEPS, interrupt_at, make_images, numbers
from sparkmim.data.labels import labeled_splits, read_labeled
from sparkmim.data.sources.address import absolute_address, is_fetched, open_source
from sparkmim.data.sources.base import fingerprint
from sparkmim.data.sources.folder import find_images
from sparkmim.pretraining.config import PretrainConfig
from sparkmim.pretraining.model import load_run
from sparkmim.pretraining.run import pretrain
from sparkmim.training.recorded import names_unknown_code
from sparkmim.utils.trust import Untrusted

CHOSEN = FOUR_STEPS | {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for place, name in enumerate(("b", "a", "ç d")):
        make_images(root / name, 8, seed=place)
    return root


@pytest.fixture(scope="module")
def places(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import fsspec

    root = tmp_path_factory.mktemp("places")
    memory = fsspec.filesystem("memory")
    found = {
        "tar": write_tars(folder, root / "tar"),
        "dealt": write_tars(folder, root / "dealt", turn=True),
        "one": write_tars(folder, root / "one", 1, format=0),
        "zip": write_zip(folder, root / "images.zip"),
        "list": write_list(folder, folder.parent / "list.txt"),
        "parquet": write_parquet(folder, root / "images.parquet"),
        "memory": "memory://images",
        "remote tar": "wds://memory://tar/shards-{0000..0002}.tar",
        "remote tars": "wds://memory://tar/",
        "remote zip": "zip://memory://images.zip",
        "remote parquet": "parquet://memory://images.parquet",
    }
    memory.put(str(folder) + "/", "/images", recursive=True)
    memory.put(str(root / "tar") + "/", "/tar", recursive=True)
    memory.rm("/tar/*.index") if memory.glob("/tar/*.index") else None
    memory.put(str(root / "images.zip"), "/images.zip")
    memory.put(str(root / "images.parquet"), "/images.parquet")
    return found


PLACES = (
    *("tar", "dealt", "one", "zip", "list", "parquet", "memory"),
    *("remote tar", "remote tars", "remote zip", "remote parquet"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARKMIM_CACHE", str(where))
    return where


@pytest.mark.parametrize("kind", PLACES)
def test_the_images_are_those_of_the_folder(kind: str, places: dict[str, str], folder: Path) -> None:
    plain, other = find_images(folder), open_source(places[kind])
    copied = pickle.loads(pickle.dumps(other))
    assert len(plain) == len(other) == len(copied)
    for index in range(len(plain)):
        assert other.name(index).endswith(plain.name(index))
        assert copied.name(index) == other.name(index)
        for source in (other, copied):
            assert torch.equal(source.open(index).decode(3), plain.open(index).decode(3))
    if kind != "list":
        assert fingerprint(other) == fingerprint(plain)


@pytest.mark.parametrize("kind", ["tar", "dealt", "zip", "parquet", "memory"])
def test_labels_are_the_folders(kind: str, places: dict[str, str], folder: Path) -> None:
    plain, other = read_labeled(folder), read_labeled(places[kind])
    assert plain.classes == other.classes
    assert np.array_equal(plain.labels, other.labels)
    splits = labeled_splits(places[kind], places["tar"], places["zip"])
    assert splits.val is not None
    assert len(splits.val) == len(splits.test[0]) == len(plain)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    pretrain(run, chosen=CHOSEN | {"data": folder})
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dealt", "parquet", "remote zip"])
def test_runs_are_equal_to_the_bit_and_resume(
    kind: str, places: dict[str, str], folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    outcome = pretrain(tmp_path / "other", chosen=CHOSEN | {"data": places[kind]}, after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.interrupted
    pretrain(tmp_path / "other", chosen=CHOSEN | {"data": places[kind]})
    assert numbers(tmp_path / "other") == numbers(undisturbed)
    if kind == "dealt":  # packed anew, a run goes on
        pretrain(tmp_path / "other", chosen={"data": folder})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("wds://a/s-{0..3}.tar", "wds://HERE/a/s-{0..3}.tar"),
        ("wds://a/s-{0..3}.tar#jpg", "wds://HERE/a/s-{0..3}.tar#jpg"),
        ("wds://https://host/s-{0..3}.tar#jpg", "wds://https://host/s-{0..3}.tar#jpg"),
        ("list://l.txt", "list://HERE/l.txt"),
        ("zip://s3://bucket/x.zip", "zip://s3://bucket/x.zip"),
        ("parquet://x#picture", "parquet://HERE/x#picture"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_addresses_hold_in_any_folder(given: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_address(given) == wanted.replace("HERE", str(tmp_path))
    assert absolute_address(absolute_address(given)) == absolute_address(given)


def test_addresses_that_are_fetched(places: dict[str, str], folder: Path) -> None:
    fetched = {kind for kind in PLACES if is_fetched(places[kind])}
    assert fetched == {"memory", "remote tar", "remote tars", "remote zip", "remote parquet"}
    (folder.parent / "urls.txt").write_text("https://host/a.png\n")
    for address in ("hf://owner/name", "https://host/x", f"list://{folder.parent}/urls.txt"):
        assert is_fetched(address)
    for address in (str(folder), "builtin://", f"hf://{folder}:train", "own.py:Own://x", "list://nowhere"):
        assert not is_fetched(address)


@pytest.mark.slow
def test_a_folder_of_a_run_alone_fetches_nothing(tmp_path: Path, undisturbed: Path, places: dict[str, str]) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    recorded = json.loads((run / "config.json").read_text())
    recorded["data"]["data"] = places["remote tar"]
    (run / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(
        Untrusted, match=r"names the images 'wds://memory.*on the file's word alone.*--data wds://memory"
    ):
        pretrain(run)
    assert load_run(run).model is not None  # nothing is read for its weights
    assert not names_unknown_code(PretrainConfig, run)
    assert names_unknown_code(PretrainConfig, run, resumed=True)
    assert pretrain(run, trust=True) is not None
    assert pretrain(run, chosen={"data": places["remote tar"]}) is not None
