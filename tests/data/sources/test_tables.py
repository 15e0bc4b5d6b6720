"""Images in Parquet files and in the data sets of Hugging Face's library."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from archives import names_below, serving, write_parquet
from helpers import make_images
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.labels import read_labeled
from sparkmim.data.sources import columns
from sparkmim.data.sources.address import open_source
from sparkmim.data.sources.base import ImageSource
from sparkmim.data.sources.folder import find_images

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for place, name in enumerate(("a", "b")):
        make_images(root / name, 4, seed=place)
    return root


def assert_same(source: ImageSource, folder: Path) -> None:
    plain = find_images(folder)
    assert len(source) == len(plain)
    for index in range(len(plain)):
        assert torch.equal(source.open(index).decode(3), plain.open(index).decode(3))


def write(path: Path, **values: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table(values), path)
    return f"parquet://{path}"


def test_row_groups_are_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_parquet(folder, tmp_path / "x.parquet", 3))
    opened: list[str] = []
    open_table = columns.open_table

    def counted(name: str) -> Any:
        opened.append(name)
        return open_table(name)

    monkeypatch.setattr(columns, "open_table", counted)
    for _ in range(2):
        assert_same(source, folder)
    assert len(opened) == 3
    monkeypatch.setattr(columns, "CACHED", 1)  # one group at a time
    again = pickle.loads(pickle.dumps(source))
    for _ in range(2):
        assert_same(again, folder)
    assert len(opened) == 9


def test_several_files_and_plain_bytes(folder: Path, tmp_path: Path) -> None:
    contents = [(folder / name).read_bytes() for name in names_below(folder)]
    for number in range(2):
        write(tmp_path / f"part-{number}.parquet", picture=contents[number * 4 : number * 4 + 4], label=[0, 1, 1, 0])
    for address in (f"parquet://{tmp_path}", f"parquet://{tmp_path}/part-{{0..1}}.parquet#picture"):
        source = open_source(address)
        assert_same(source, folder)
        assert source.name(4) == "part-1.parquet#0"
        assert source.class_names() == ["0", "1", "1", "0"] * 2
    with serving(tmp_path) as (url, _):
        assert_same(open_source(f"parquet://{url}/part-{{0..1}}.parquet".replace("{0..1}", "0")), folder / "a")


def test_equal_paths_are_told_apart_and_rows_without_images_are_broken(folder: Path, tmp_path: Path) -> None:
    content = (folder / "a" / "0.png").read_bytes()
    rows = [{"bytes": content, "path": "x.png"}, {"bytes": None, "path": None}, {"bytes": content, "path": "x.png"}]
    source = open_source(write(tmp_path / "x.parquet", image=rows))
    assert [source.name(index) for index in range(3)] == ["0/x.png", "1/x.parquet#1", "2/x.png"]
    source.open(0).decode(3)
    with pytest.raises(UnreadableImage, match="the row holds no image"):
        source.open(1).decode(3)


def test_classes_by_the_names_that_are_recorded(folder: Path, tmp_path: Path) -> None:
    content = (folder / "a" / "0.png").read_bytes()
    table = pyarrow.table({"image": [content] * 3, "label": [1, 0, 1], "other": [content] * 3})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    import json

    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(described, tmp_path / "x.parquet")
    labeled = read_labeled(f"parquet://{tmp_path}/x.parquet")  # of two columns of bytes one is declared
    assert labeled.classes == ("cat", "dog")
    assert labeled.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        ({"image": [b"x"], "other": [b"x"]}, "", r"expected one column of images, got image, other .* \(#COLUMN\)"),
        ({"text": ["x"]}, "", "expected one column of images, got none among text"),
        ({"image": [b"x"]}, "#picture", "there is no column 'picture'; there are image"),
        ({"image": pyarrow.array([], pyarrow.binary())}, "", "the Parquet files have no rows"),
        ({"image": [b"x"], "label": [None]}, "", "rows without a class in the column 'label'"),
    ],
)
def test_tables_that_are_refused(values: dict[str, Any], column: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write(tmp_path / "x.parquet", **values) + column)


def test_damaged_tables_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(folder, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as a Parquet file of images"):
        open_source(f"parquet://{path}")
    with pytest.raises(ValueError, match=r"there is no \.parquet file in the folder"):
        open_source(f"parquet://{folder}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library and dill warn of their own insides
def test_data_sets_of_hugging_face(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    names = names_below(folder)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 4 + [1] * 4}, features=features)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "other": rows.select([0])}).save_to_disk(tmp_path / "several")
    rows.to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for address in (f"hf://{tmp_path}/one", f"hf://{tmp_path}/several:train#image", f"hf://{folder}"):
        source = open_source(address)
        assert_same(source, folder)
        assert_same(pickle.loads(pickle.dumps(source)), folder)
        labeled = read_labeled(address)
        assert labeled.classes == ("a", "b")
        assert labeled.labels.tolist() == [0] * 4 + [1] * 4
    assert open_source(f"hf://{tmp_path}/one").name(0) == "0/0.png"  # the library keeps the last part of a path
    assert read_labeled(f"parquet://{tmp_path}/x.parquet").classes == ("a", "b")
    assert len(open_source(f"hf://{tmp_path}/several:other")) == 1
    for address, message in (
        (f"hf://{tmp_path}/several:nothing", "it has the splits train, other"),
        (f"hf://{tmp_path}/one#text", "expected one column of images, got text among image, label"),
        ("hf://nobody/nothing-such", "the data set nobody/nothing-such cannot be opened"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(address)
