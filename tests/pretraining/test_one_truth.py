"""What the plan says, what config.json records and what is trained on are one: the configuration that results."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from helpers import TINY_PRETRAIN, make_images
from sparkmim.data.seeding import Stream, keyed_generator
from sparkmim.data.sources.base import ImageSource
from sparkmim.pretraining import images
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.training.prepare import prepare

RECIPE = """
from sparkmim.recipes import auto

def own(situation):
    return auto(situation).replace({fields!r})
"""

TRIALS = 6


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for seed, (name, count) in enumerate({"a": 10, "b": 13, "c": 4, "d": 5}.items()):
        make_images(folder / name, count, seed)
        for path in (folder / name).iterdir():
            path.rename(path.with_name(f"{name}{path.name}"))
    return folder


def some_fields(chance: random.Random, here: Path) -> dict[str, Any]:
    """A random part of what decides on images."""
    everything = {
        "data": str(here / chance.choice("ab")),
        "val_data": str(here / chance.choice("cd")),
        "val_share": chance.choice([0.0, 0.2, 0.4]),
        "seed": chance.randrange(5),
    }
    return {name: value for name, value in everything.items() if chance.random() < 0.4}


def expected(config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the images to train on and held out, by the configuration alone."""
    names = sorted(path.name for path in Path(config["data"]).iterdir())
    if config["val_data"] is not None:
        return names, sorted(path.name for path in Path(config["val_data"]).iterdir())
    if not config["val_share"]:
        return names, []
    order = torch.randperm(len(names), generator=keyed_generator(config["seed"], Stream.HELD_OUT)).tolist()
    count = max(1, round(config["val_share"] * len(names)))
    return sorted(names[i] for i in order[count:]), sorted(names[i] for i in order[:count])


def names(source: ImageSource | None) -> list[str]:
    return [] if source is None else sorted(source.name(index) for index in range(len(source)))


@pytest.mark.parametrize("trial", range(TRIALS))
def test_plan_record_and_images_agree(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: int) -> None:
    chance = random.Random(trial)
    in_recipe, by_flag = some_fields(chance, here), some_fields(chance, here)
    wanted = {"data": str(here / "a"), "val_data": None, "val_share": 0.0, "seed": 0, **in_recipe, **by_flag}
    (tmp_path / "recipe.py").write_text(RECIPE.format(fields=in_recipe))
    base = {name: value for name, value in TINY_PRETRAIN.items() if name != "seed"}
    if not (in_recipe | by_flag).get("data"):
        by_flag["data"] = wanted["data"]
    opened: list[Any] = []
    original = images.open_images

    def noted(*where: Any, stores: Any) -> Any:
        opened.append(where)
        return original(*where, stores=stores)

    monkeypatch.setattr("sparkmim.pretraining.prepare.open_images", noted)
    kind = Pretraining()

    def resolve() -> Any:
        return prepare(kind, tmp_path / "run", f"{tmp_path}/recipe.py:own", "auto", base | by_flag, 1)

    if wanted["val_data"] is not None and wanted["val_share"]:
        with pytest.raises(ValueError, match="--val-data and --val-share both say what is held out; use one of them"):
            resolve()
        return
    ready = resolve()
    task = kind.build(ready, Fabric(accelerator="cpu", devices=1))
    recorded = ready.config.flat()
    assert {name: recorded[name] for name in wanted} == wanted
    train, held_out = expected(recorded)
    assert names(task.views.source) == names(task.source) == names(ready.data.source) == train
    assert names(ready.data.held_out) == held_out
    assert names(task.evaluated.source) == (held_out or train)
    plan = kind.describe(ready, task)["images"]
    assert plan.startswith(f"{len(train)} ({Path(wanted['data']).name})")
    assert plan.endswith(f"; {len(held_out)} held out") == bool(held_out)
    assert f" = {max(1, round(2.4 * len(train) / 4))} steps" in kind.describe(ready, task)["length"]
    assert len(opened) == len(set(map(str, opened))) <= 2  # the flags' and, where the recipe names others, its own
