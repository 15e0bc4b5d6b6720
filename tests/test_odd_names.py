"""Commands on files and classes with odd names: nothing fails for a name, and results have it as it is."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from helpers import FOUR_STEPS, TINY_FINETUNE
from sparkmim import embed, export, finetune, knn, linear_probe, predict, pretrain, reconstruct
from sparkmim.transfer.predictor import write_csv
from sparkmim.utils.logging import printing

NAMES = {
    "plain": "roses",
    "UTF-8": "Bäume 木 🌲",
    "not UTF-8": os.fsdecode(b"caf\xe9"),
    "quotes": "a \"b\" 'c' `d` $(e)",
    "line ends": "two\nlines\rand\x1b[31m",
    "a formula": "=1+1",
    "an address": "@SUM(A1)",
    "parentheses": "photos (1)",
    "brackets": "roses [red]{2}",
    "percent": "100%s & <b>",
    "comma": "a,b;c\td",
    "a dash": "--data",
    "a glob": "*?",
    "a space": " leading and trailing ",
    "dots": "m.01.g317",
    "backslash": "a\\b",
}

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of each name, with images of that name."""
    root = tmp_path_factory.mktemp("odd") / NAMES["not UTF-8"]
    generator = np.random.default_rng(0)
    for name in NAMES.values():
        (root / name).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}{index}.png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / NAMES["parentheses"]
    pretrain(folder, chosen={**FOUR_STEPS, "data": data, "batch_size": 16, "image_size": 64, "epochs": 0.5})
    return folder


@pytest.fixture(scope="module")
def classifier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / NAMES["quotes"]
    finetune(folder, chosen={**TINY_FINETUNE, "data": data, "val_data": data, "epochs": 0.5})
    return folder


@pytest.fixture(autouse=True)
def terminal(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What is printed has no control characters."""
    with printing():
        yield
    told = "".join(capsys.readouterr())
    assert not set(told) & {"\x1b", "\r"}


def every_name(data: Path) -> set[str]:
    return {f"{name}/{name}{index}.png" for name in NAMES.values() for index in range(2)}


def test_embed(run: Path, data: Path, tmp_path: Path) -> None:
    found = embed(run, data, image_size=32, **SMALL)
    assert set(found.names) == every_name(data)
    for suffix in (".npz", ".parquet"):
        found.write(tmp_path / f"{NAMES['not UTF-8']}{suffix}")
    assert np.load(tmp_path / f"{NAMES['not UTF-8']}.npz")["names"].tolist() == found.names
    with open(tmp_path / f"{NAMES['not UTF-8']}.parquet", "rb") as file:
        written = pyarrow.parquet.read_table(file)["name"].to_pylist()
    assert len(set(written)) == len(found.names)
    assert sum(one == other for one, other in zip(written, found.names, strict=True)) == len(found.names) - 2
    assert r"caf\xe9/caf\xe90.png" in written


@pytest.mark.parametrize("measure", [knn, linear_probe])
def test_frozen_features(measure: Any, run: Path, data: Path) -> None:
    more = {"neighbours": (1,)} if measure is knn else {}
    found = measure(run, data, test_data=data, image_size=32, **more, **SMALL)
    assert set(found.classes) == set(NAMES.values())
    assert json.loads(json.dumps(found.to_dict()))["classes"] == list(found.classes)


def test_fine_tuning(classifier: Path, data: Path, tmp_path: Path) -> None:
    results = json.loads((classifier / "results.json").read_text())
    assert set(results["classes"]) == set(NAMES.values())
    report = (classifier / "report.html").read_text(errors="surrogateescape")
    assert "100%s &amp; &lt;b&gt;" in report
    assert "<b>\n" not in report
    assert not set(report) & {"\x1b"}
    finetune(classifier)
    found = predict(classifier, data, **SMALL)
    assert {prediction.image for prediction in found} == every_name(data)
    write_csv(found, tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [prediction.image for prediction in found]
    assert [row["class"] for row in rows] == [prediction.classes[0] for prediction in found]


def test_reconstructions(run: Path, data: Path) -> None:
    assert len(reconstruct(run, data, count=4).images) == 4


def test_exports(run: Path, tmp_path: Path) -> None:
    for name in NAMES.values():
        if name != NAMES["not UTF-8"]:
            export(run, tmp_path / name)
            assert (tmp_path / name / "model.safetensors").exists()


def test_paths_that_safetensors_does_not_open(run: Path, classifier: Path, data: Path, tmp_path: Path) -> None:
    """They are refused before any work, and the remedies that the message names work."""
    odd = tmp_path / NAMES["not UTF-8"]
    message = r"(/\S+)?caf\\udce9\S* is not UTF-8, as safetensors needs it; rename the folder or the file, or give"
    for act in (
        lambda: export(run, odd),
        lambda: pretrain(odd, chosen={**FOUR_STEPS, "data": data}),
        lambda: finetune(odd, chosen={**TINY_FINETUNE, "data": data}),
        lambda: embed(odd, data),
        lambda: predict(odd / "model.safetensors", data),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert not odd.exists()
    odd.mkdir()
    (odd / "model.safetensors").write_bytes((classifier / "model.safetensors").read_bytes())
    (tmp_path / "link").symlink_to(odd)
    assert len(predict(tmp_path / "link" / "model.safetensors", data, **SMALL)) == 2 * len(NAMES)


def test_tables(data: Path, run: Path, tmp_path: Path) -> None:
    """Classes as the Open Images set has them, and paths with every name."""
    rows = []
    for number, name in enumerate(NAMES.values()):
        for index in range(2):
            rows.append([f"{name}/{name}{index}.png", f"/m/01g31{number % 4}"])
    table = data / "table.csv"
    with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows[:4] + rows[6:])  # a table is UTF-8
    try:
        found = knn(run, table, image_size=32, neighbours=(1,), **SMALL)
    finally:
        table.unlink()
    assert found.classes == ("/m/01g310", "/m/01g311", "/m/01g312", "/m/01g313")
