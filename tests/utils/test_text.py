"""Numbers of things in words, and that messages and plans use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY_FINETUNE, TINY_PRETRAIN, make_images, make_split, record
from sparkmim.cli import run_command
from sparkmim.pretraining.run import pretrain
from sparkmim.transfer.run import finetune
from sparkmim.utils.text import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (1.0, ("epoch",), "1 epoch"),
        (0.5, ("epoch",), "0.5 epochs"),
        (1600.0, ("epoch",), "1600 epochs"),
        (1600, ("step",), "1,600 steps"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_counted(number: float, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


NOUNS = "images|steps|epochs|layers|files|classes|patches|processes|workers|channels"

PLURAL = rf"(?<![\d.,x#] )(?<![\d.,/-])1 (?:[a-z]+ )?({NOUNS})\b"
"""Of one thing, in the plural; `4 of 1 images` is right."""


def test_one_thing_is_not_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of an epoch, a process, a worker, a class of an image."""
    images = make_images(tmp_path / "images", 3)
    one: dict[str, Any] = {"batch_size": 2, "epochs": 1.0, "warmup_epochs": 1.0, "workers": 1, "pictures": 1}
    said: list[str] = []
    more = {"val_share": 0.3, "val_every": 1.0, "monitor": "knn", "monitor_every": 1.0, "data": images}
    labeled = make_split(tmp_path / "labeled", 4)
    run = tmp_path / "run"
    for chosen in (TINY_PRETRAIN | one | more | {"monitor_data": labeled},) * 2:
        record(said, pretrain, run, chosen={**chosen, "warmup_epochs": 0.5})
    record(said, pretrain, run, chosen={"epochs": 2.0})
    (labeled / "red" / "1.png").write_bytes(b"junk")
    one.pop("pictures")
    tuned = TINY_FINETUNE | one | {"data": labeled, "batch_size": 1, "max_broken": 0.5, "warmup_epochs": 0.5}
    record(said, finetune, tmp_path / "tuned", chosen=tuned)
    alone = make_images(tmp_path / "alone", 1)
    for line in (
        f"predict --run {tmp_path / 'tuned'} --data {alone} --output {tmp_path / 'x.csv'} --workers 0",
        f"embed --encoder {run} --data {alone} --output {tmp_path / 'x.npz'} --workers 0",
        f"knn --encoder {run} --data {labeled} --neighbours 1 --workers 0",
        f"stats --data {alone}",
        f"pretrain --output {tmp_path / 'other'} --data {images} --plan --model test_resnet --image-size 64 --epochs 1",
    ):
        assert run_command(line.split()) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    texts = [*said, *printed.out.splitlines(), *printed.err.splitlines()]
    texts += [re.sub("<[^>]*>", " ", path.read_text()) for path in tmp_path.glob("*/report.html")]
    wrong = {found[0] for text in texts for found in re.finditer(f".{{0,30}}{PLURAL}", text)}
    assert not wrong, wrong
    assert any("1 epoch" in text for text in texts)


def test_a_network_that_is_padded_is_told_of_once(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    widths = (3, 8, 8, 8)\n"
        "    layers = [nn.Sequential(nn.Conv2d(i, o, 3, stride=2), nn.ReLU()) for i, o in zip(widths, widths[1:])]\n"
        "    return nn.Sequential(*layers)\n"
    )
    said: list[str] = []
    chosen = TINY_FINETUNE | {"data": make_split(tmp_path / "labeled", 2), "model": f"{file}:net", "epochs": 0.5}
    record(said, finetune, tmp_path / "run", chosen={**chosen, "warmup_epochs": 0.0})
    assert sum("padding is added to" in line for line in said) == 1
