"""Every ablation is an option of the command, is recorded, and can be continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, numbers
from sparkmim.cli import main
from sparkmim.pretraining.model import build_model, load_run
from sparkmim.pretraining.run import pretrain

pytestmark = pytest.mark.slow

ABLATIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "zero-out": (["--execution", "zero-out"], {"execution": "zero-out"}),
    "single scale": (["--hierarchy", "off"], {"hierarchy": False}),
    "loss on all patches": (["--loss-on", "all"], {"loss_on": "all"}),
    "mask ratio": (["--mask-ratio", "0.75"], {"mask_ratio": 0.75}),
    "decoder width": (["--decoder-width", "64"], {"decoder_width": 64}),
    "shared mask token": (["--shared-mask-token", "on"], {"shared_mask_token": True}),
}


def flags(settings: dict[str, Any]) -> list[str]:
    return [
        part
        for name, value in settings.items()
        for part in (
            f"--{name.replace('_', '-')}",
            *(map(str, value) if isinstance(value, tuple) else [str(value)]),
        )
    ]


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_from_the_command_line(
    name: str, tmp_path: Path, images: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, fields = ABLATIONS[name]
    run = tmp_path / "run"
    short = {
        key: value
        for key, value in (TINY_PRETRAIN | {"epochs": 0.8, "warmup_epochs": 0.0}).items()
        if key not in fields
    }
    arguments = ["pretrain", "--data", str(images), "--output", str(run), *flags(short), *options]
    monkeypatch.setattr("sys.argv", ["sparkmim", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    recorded = json.loads((run / "config.json").read_text())["model"]
    assert {key: recorded[key] for key in fields} == fields
    assert load_run(run).step == 2, "the model of the ablation takes the checkpoint"
    plain = numbers(uninterrupted(epochs=0.8, warmup_epochs=0.0))
    assert numbers(run)[0][2] != plain[0][2], "it is another training from the first step on"


def test_a_shared_mask_token_is_continued(tmp_path: Path, images: Path, uninterrupted: Callable[..., Path]) -> None:
    settings = {"shared_mask_token": True, "loss_on": "all"}
    whole = uninterrupted(**settings)
    for stop in (2, None):
        pretrain(
            tmp_path / "run",
            chosen=TINY_PRETRAIN | {"data": images} | settings,
            after_step=interrupt_at(stop) if stop else None,
        )
    assert_same_training(tmp_path / "run", whole)
    tokens = [densify.mask_token for densify in build_model(load_run(whole).config.model).densify]
    assert all(token is tokens[0] for token in tokens)


def test_a_run_recorded_before_there_were_these_options(tmp_path: Path, images: Path) -> None:
    settings = TINY_PRETRAIN | {"data": images}
    pretrain(tmp_path / "run", chosen=settings, after_step=interrupt_at(1))
    path = tmp_path / "run" / "config.json"
    recorded = json.loads(path.read_text())
    for name in ("loss_on", "shared_mask_token"):
        del recorded["model"][name]
    path.write_text(json.dumps(recorded))
    outcome = pretrain(tmp_path / "run", after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.step == 2
