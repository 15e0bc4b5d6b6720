"""What `sparkmim predict` refuses before it reads anything, and what its function returns; see test_finetune.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import sparkmim
from helpers import TINY_FINETUNE
from sparkmim.commands.predict import command as predict
from sparkmim.transfer.predictor import Prediction, write_csv


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "--image-size 0 is not a number of pixels"),
        ({"batch_size": 0}, "--batch-size is a number of images, at least 1, not 0"),
        ({"workers": -1}, "--workers is a number of processes, at least 0, not -1"),
        ({"output": Path("file/out.csv")}, r"--output file/out.csv cannot be written \(.*\); name another file"),
        ({"output": Path("folder.csv")}, r"--output folder.csv cannot be written \(it is a folder\)"),
        ({"output": Path(".")}, "--output . is a folder; name a file in it that ends in .csv"),
        ({"output": Path("out.txt")}, "--output out.txt must end in .csv; write out.csv"),
        ({}, "there is no model run"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.csv").mkdir()
    with pytest.raises(ValueError, match=message):
        predict(**{"run": Path("run"), "data": Path("images"), "output": Path("out.csv"), **settings})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_predictions_of_readable_and_unreadable_images(data: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    sparkmim.finetune(tmp_path / "run", chosen=TINY_FINETUNE | {"data": data, "epochs": 0.25, "warmup_epochs": 0.0})
    images = tmp_path / "images"
    shutil.copytree(data / "test" / "red", images)
    (images / "0.png").write_bytes(b"no image")
    capsys.readouterr()
    found = sparkmim.predict(tmp_path / "run", images, top_k=3, workers=0, device="cpu")
    assert capsys.readouterr() == ("", "")
    assert "skipped 0.png: " in caplog.text
    assert [prediction.image for prediction in found] == ["0.png", "1.png", "2.png", "3.png"]
    broken, *others = found
    assert (broken.classes, broken.probabilities) == ((), ())
    assert broken.error
    for prediction in others:
        assert prediction.error == ""
        assert set(prediction.classes) == {"blue", "green", "red"}
        assert sorted(prediction.probabilities, reverse=True) == list(prediction.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1)
    with pytest.raises(ValueError, match="--top-k 4 must be 1 to 3, the number of classes"):
        sparkmim.predict(tmp_path / "run", images, top_k=4)


def test_table(tmp_path: Path) -> None:
    rows = [Prediction("a.png", ("x", "y"), (0.75, 0.25)), Prediction("b.png", error="cut\noff")]
    write_csv(rows, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "image,class,probability,class_2,probability_2,error",
        "a.png,x,0.750000,y,0.250000,",
        "b.png,,,,,cut off",
    ]
