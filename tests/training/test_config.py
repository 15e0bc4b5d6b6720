"""The configuration as data: documented, written, read, compared."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from sparkmim.data.config import DataConfig
from sparkmim.models.config import ModelConfig
from sparkmim.pretraining.config import PretrainConfig, RunConfig
from sparkmim.training.config import FREE, differences, documented_fields
from sparkmim.training.optim import OptimizerConfig
from sparkmim.training.ranges import RANGES
from sparkmim.training.schedule import ScheduleConfig
from sparkmim.transfer.config import FinetuneConfig

CONFIG = PretrainConfig(
    model=ModelConfig(model="resnet50", stages=("a", "b"), patch_size=(32, 32)),
    data=DataConfig(image_size=(224, 192), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), crop_scale=(0.3, 0.9)),
    optimizer=OptimizerConfig(lr=0.1 + 0.2, betas=(0.9, 0.95)),
    schedule=ScheduleConfig(epochs=1.1, warmup_epochs=0.1),
    run=RunConfig(batch_size=8),
)


def test_every_field_is_documented_and_has_a_name_of_its_own() -> None:
    documented = [(group, name) for group, name, _, _ in documented_fields()]
    there = [(g.name, f.name) for g in fields(PretrainConfig) for f in fields(PretrainConfig.group_of(g.name))]
    assert sorted(documented) == sorted(there)
    assert len({name for _, name in documented}) == len(documented)
    for _, name, _, text in documented_fields():
        assert text.endswith("."), name
        assert "\n" not in text, name
        assert len(text) > 10, name


def test_free_fields_and_ranges_are_fields() -> None:
    names = {name for _, name, _, _ in documented_fields()}
    assert names | {name for _, name, _, _ in documented_fields(FinetuneConfig)} >= FREE
    assert names >= RANGES.keys()


def test_round_trip_through_json() -> None:
    again = PretrainConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert again == CONFIG
    assert again.flat() == CONFIG.flat()
    assert isinstance(again.model.stages, tuple)


def test_what_another_version_wrote_is_refused() -> None:
    more = CONFIG.to_dict()
    more["run"]["turbo"] = 3
    with pytest.raises(ValueError, match=r"does not fit this version of sparkmim.*turbo"):
        PretrainConfig.from_dict(more)
    fewer = CONFIG.to_dict()
    del fewer["run"]["batch_size"]
    with pytest.raises(ValueError, match="batch_size"):
        PretrainConfig.from_dict(fewer)
    with pytest.raises(ValueError, match="schedule"):
        PretrainConfig.from_dict({k: v for k, v in CONFIG.to_dict().items() if k != "schedule"})


def test_differences_name_the_field_and_both_values() -> None:
    asked = {"batch_size": 16, "image_size": (224, 224), "densify_norm": "batch", "lr": CONFIG.optimizer.lr}
    assert differences(CONFIG.flat(), asked) == [
        "batch_size: 8 there, 16 asked for",
        "image_size: 224 192 there, 224 224 asked for",
        "densify_norm: none there, batch asked for",
    ]


def test_free_fields_do_not_differ() -> None:
    others = {name: object() for name in FREE}
    assert differences(CONFIG.flat(), others) == []
    assert {"workers", "checkpoint_minutes", "device"} <= FREE
    assert not FREE & {"seed", "batch_size", "lr", "epochs", "precision", "accumulate", "model", "mask_ratio"}


def test_replace_finds_the_group() -> None:
    made = CONFIG.replace({"epochs": 5.0, "lr": 1.0, "batch_size": 2, "mask_ratio": 0.5, "workers": 7})
    assert (made.schedule.epochs, made.optimizer.lr, made.run.batch_size) == (5.0, 1.0, 2)
    assert (made.model.mask_ratio, made.data.workers) == (0.5, 7)
    changed = {name for name, value in made.flat().items() if CONFIG.flat()[name] != value}
    assert changed == {"epochs", "lr", "batch_size", "mask_ratio", "workers"}
    with pytest.raises(ValueError, match="has no field 'epoch'; did you mean epochs"):
        CONFIG.replace({"epoch": 5.0})
    assert CONFIG.replace({}) == CONFIG
