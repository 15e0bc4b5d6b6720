"""The configuration as data: documented, written, read, compared."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from sparkmim.data.config import DataConfig
from sparkmim.models.config import ModelConfig
from sparkmim.pretraining.config import PretrainConfig, RunConfig
from sparkmim.training.config import Configuration, OptimizerConfig, ScheduleConfig, differences
from sparkmim.transfer.config import FinetuneConfig

CONFIG = PretrainConfig(
    model=ModelConfig(model="resnet50", stages=("a", "b"), patch_size=(32, 32)),
    data=DataConfig(image_size=(224, 192), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), crop_scale=(0.3, 0.9)),
    optimizer=OptimizerConfig(lr=0.1 + 0.2, betas=(0.9, 0.95)),
    schedule=ScheduleConfig(epochs=1.1, warmup_epochs=0.1),
    run=RunConfig(batch_size=8),
)


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_every_field_is_documented_and_has_a_name_of_its_own(kind: type[Configuration]) -> None:
    described = list(kind.describe())
    there = [(group, f.name) for group, cls in kind.group_types({}).items() for f in fields(cls)]
    assert sorted((field.group, field.name) for field in described) == sorted(there)
    assert len({field.flat for field in described}) == len(described)
    for field in described:
        assert field.help.endswith("."), field.name
        assert "\n" not in field.help, field.name
        assert len(field.help) > 10, field.name


def test_what_a_field_says_of_itself() -> None:
    """The tables of 0.1.0, which stood apart from the fields."""
    settings = FinetuneConfig.settings() | PretrainConfig.settings()
    assert {name for name, field in settings.items() if field.resumable} == {
        *("workers", "log_every", "val_every", "checkpoint_minutes", "keep_checkpoints", "pictures", "compile"),
        *("device", "grad_checkpointing", "monitor", "monitor_data", "monitor_every", "data", "val_data", "test_data"),
        *("cudnn_benchmark", "memory_efficient"),
        *("accumulate", "max_broken", "max_pixels", "store", "cache_gb", "teacher_store", "time_limit", "log"),
    }
    assert {name for name, field in PretrainConfig.settings().items() if field.shapes_model} == {
        *(
            "model",
            "stages",
            "levels",
            "in_chans",
            "decoder",
            "decoder_width",
            "decoder_block",
            "densify_norm",
            "hierarchy",
        ),
        *("shared_mask_token", "optimizer", "objective"),
    }
    assert {name for name, field in settings.items() if field.valid} == {
        *(
            "levels",
            "mask_ratio",
            "drop_path",
            "decoder_width",
            "std",
            "mean",
            "max_broken",
            "workers",
            "lr",
            "betas",
            "eps",
        ),
        *("weight_decay", "weight_decay_end", "clip", "epochs", "warmup_epochs", "lr_start", "lr_end", "batch_size"),
        *("accumulate", "compile", "seed", "log_every", "val_every", "monitor_every", "checkpoint_minutes"),
        *("keep_checkpoints", "pictures", "label_share", "folds", "fold", "erasing", "mixup", "cutmix", "repeats"),
        *("smoothing", "layer_decay", "ema", "in_chans", "nodata", "max_pixels", "spacing", "val_share"),
        *("cache_gb", "time_limit"),
        *("rate", "frames", "frame_stride", "masks_per_image", "jitter", "teacher_size", "orientation"),
    }
    paths = {"data", "val_data", "test_data", "monitor_data", "init", "encoder", "model", "objective", "task"}
    assert {name for name, field in settings.items() if field.kind != "value"} == paths | {
        "store",
        "teacher",
        "teacher_store",
    }


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
    assert differences(CONFIG.flat(), asked, PretrainConfig.settings()) == [
        "batch_size: 8 there, 16 asked for",
        "image_size: 224 192 there, 224 224 asked for",
        "densify_norm: none there, batch asked for",
    ]


def test_resumable_fields_do_not_differ() -> None:
    settings = PretrainConfig.settings()
    others = {name: object() for name, field in settings.items() if field.resumable}
    assert differences(CONFIG.flat(), others, settings) == []
    assert differences(CONFIG.flat(), {"seed": 1}, settings) == ["seed: 0 there, 1 asked for"]


def test_replace_finds_the_group() -> None:
    made = CONFIG.replace({"epochs": 5.0, "lr": 1.0, "batch_size": 2, "mask_ratio": 0.5, "workers": 7})
    assert (made.schedule.epochs, made.optimizer.lr, made.run.batch_size) == (5.0, 1.0, 2)
    assert (made.model.mask_ratio, made.data.workers) == (0.5, 7)
    changed = {name for name, value in made.flat().items() if CONFIG.flat()[name] != value}
    assert changed == {"epochs", "lr", "batch_size", "mask_ratio", "workers"}
    with pytest.raises(ValueError, match="has no field 'epoch'; did you mean epochs"):
        CONFIG.replace({"epoch": 5.0})
    assert CONFIG.replace({}) == CONFIG
