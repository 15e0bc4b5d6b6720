"""What `sparkmim predict` refuses, before it reads anything. What it writes: test_finetune.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparkmim.commands.predict import command as predict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "--image-size 0 is not a number of pixels"),
        ({"batch_size": 0}, "--batch-size is a number of images, at least 1, not 0"),
        ({"workers": -1}, "--workers is a number of processes, at least 0, not -1"),
        ({"output": Path("file/out.csv")}, r"--output file/out.csv cannot be written \(.*\); name another file"),
        ({"output": Path("folder.csv")}, r"--output folder.csv cannot be written \(it is a folder\)"),
        ({"output": Path("out.txt")}, "--output out.txt is a CSV file; write out.csv"),
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
