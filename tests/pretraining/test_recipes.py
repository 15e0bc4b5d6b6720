from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TINY_PRETRAIN, interrupt_at
from sparkmim import Backbone, pretrain
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.models.config import ModelConfig
from sparkmim.pretraining.config import PretrainConfig
from sparkmim.pretraining.model import ModelBuilder
from sparkmim.pretraining.recipes import FAST_DECODER_WIDTH, RECIPES, Situation, auto, demo, fast, paper
from sparkmim.training.recipes import find_recipe
from sparkmim.utils.fields import NoSettings

OF_IMAGES = {name: recipe for name, recipe in RECIPES.items() if name != "s3d"}


class Images:
    """So many images, which are never opened unless asked for."""

    def __init__(self, count: int, dtype: torch.dtype = torch.uint8) -> None:
        self.count, self.dtype = count, dtype

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def open(self, index: int) -> Images:
        return self

    def decode(self, channels: int, reduction: int = 1) -> torch.Tensor:
        return torch.full((channels, 8, 8), 51, dtype=self.dtype)


def situation(
    images: int = 1000, model: str = "test_resnet", source: Images | None = None, **settings: Any
) -> Situation:
    chosen = {"model": model} | settings.pop("chosen", {})
    usual: dict[str, Any] = {
        "source": source or Images(images),
        "backbone": Backbone.create(model, in_chans=chosen.get("in_chans", 3)),
        "device": torch.device("cpu"),
        "memory_bytes": 2**36,
        "cores": 8,
        "processes": 1,
        "chosen": chosen,
    }
    return Situation(**(usual | settings))


def test_paper_is_the_papers() -> None:
    config = paper(situation(1_281_167, "test_resnet"))
    assert (config.run.batch_size, config.schedule.epochs, config.schedule.warmup_epochs) == (4096, 1600, 40)
    assert math.isclose(config.optimizer.lr, 2e-4 * 4096 / 256)
    assert (config.optimizer.optimizer, config.optimizer.eps, config.optimizer.clip) == ("lamb", 1e-6, 5.0)
    assert (config.optimizer.weight_decay, config.optimizer.weight_decay_end) == (0.04, 0.2)
    assert (config.schedule.lr_start, config.schedule.lr_end) == (0.005, 0.001)
    assert (config.data.image_size, config.data.crop_scale, config.data.flip) == ((224, 224), (0.67, 1.0), True)
    assert (config.model.mask_ratio, config.model.decoder_width) == (0.6, 768)
    assert config.data.mean == (0.485, 0.456, 0.406)


def test_a_short_run_of_the_paper_warms_up_for_less() -> None:
    assert paper(situation(model="test_resnet", chosen={"epochs": 10.0})).schedule.warmup_epochs == 0.5
    assert paper(situation(model="test_resnet", chosen={"epochs": 800.0})).schedule.warmup_epochs == 40


@pytest.mark.parametrize(("model", "betas"), [("test_resnet", (0.9, 0.95)), ("test_convnext", (0.9, 0.999))])
def test_betas_follow_the_kind_of_norm(model: str, betas: tuple[float, float]) -> None:
    assert paper(situation(model=model)).optimizer.betas == betas


@pytest.mark.parametrize(
    ("model", "rate"),
    [("resnet50", 0.05), ("resnet101", 0.08), ("convnext_small", 0.2), ("convnext_base", 0.3), ("vgg11_bn", 0.0)],
)
def test_stochastic_depth_follows_norm_and_size(model: str, rate: float) -> None:
    config = paper(situation(model=model, chosen={"batch_size": 2, "accumulate": 1}))
    assert config.model.drop_path == rate


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(5, 5, 800), (100, 8, 800), (3068, 32, 800), (100_000, 1024, 400), (1_281_167, 4096, 100)],
)
def test_auto_fits_the_number_of_images(images: int, batch: int, epochs: float) -> None:
    config = auto(situation(images))
    assert (config.run.batch_size, config.schedule.epochs) == (batch, epochs)
    assert config.schedule.warmup_epochs == min(40, epochs / 20)
    assert 3.2e-3 <= config.optimizer.lr <= 1e-2


def test_auto_learns_faster_in_shorter_runs() -> None:
    rates = [auto(situation(3068, chosen={"epochs": epochs})).optimizer.lr for epochs in (1, 15, 800, 100_000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-2
    assert rates[1] == 8.5e-3
    assert rates[-1] == 3.2e-3


def test_auto_accumulates_what_does_not_fit() -> None:
    wide, narrow = (auto(situation(100_000, memory_bytes=memory)) for memory in (2**40, 2**28))
    assert wide.run.batch_size == narrow.run.batch_size == 1024
    assert wide.run.accumulate == 1
    assert narrow.run.accumulate > 1
    assert 1024 % narrow.run.accumulate == 0
    assert auto(situation(100_000, memory_bytes=2**28, chosen={"accumulate": 2})).run.accumulate == 2


@pytest.mark.parametrize("recipe", OF_IMAGES.values(), ids=OF_IMAGES)
def test_the_user_goes_first(recipe: Any) -> None:
    chosen = {
        "image_size": (96, 128),
        "batch_size": 10,
        "epochs": 3.0,
        "warmup_epochs": 1.0,
        "lr": 0.5,
        "drop_path": 0.0,
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 2.0, 3.0),
        "workers": 5,
        "precision": "32",
        "log_every": 7,
    }
    flat = recipe(situation(chosen=chosen)).flat()
    assert {name: flat[name] for name in chosen} == chosen


def test_fast_is_auto_with_a_narrower_decoder() -> None:
    one, other = auto(situation()).flat(), fast(situation()).flat()
    assert {name for name in one if one[name] != other[name]} == {"decoder_width"}
    assert other["decoder_width"] == FAST_DECODER_WIDTH < one["decoder_width"]
    assert fast(situation(chosen={"decoder_width": 64})).model.decoder_width == 64


def test_long_runs_on_cuda_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkmim.pretraining.recipes.native_precision", lambda device: "bf16-mixed")
    monkeypatch.setattr("sparkmim.pretraining.recipes.compilation", lambda *asked: asked)
    cuda = torch.device("cuda")
    long: Any = auto(situation(device=cuda, processes=2, chosen={"batch_size": 10, "epochs": 800.0}))
    assert long.run.compile == (cuda, 80_000, 2)
    assert auto(situation(chosen={"compile": "on"})).run.compile == "on"


@pytest.mark.parametrize(
    ("settings", "efficient"),
    [
        ({"memory_bytes": 2**40}, False),
        ({"memory_bytes": 2**20, "chosen": {"batch_size": 8, "accumulate": 1}}, True),
        ({"memory_bytes": 2**40, "chosen": {"memory_efficient": True}}, True),
        ({"memory_bytes": 2**40, "device": torch.device("cpu")}, True),
        ({"memory_bytes": 2**20, "device": torch.device("cpu"), "chosen": {"memory_efficient": False}}, False),
    ],
)
def test_a_gpu_that_has_the_memory_keeps_the_decoders_maps(
    settings: dict[str, Any], efficient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkmim.pretraining.recipes.native_precision", lambda device: "bf16-mixed")
    config = auto(situation(**({"device": torch.device("cuda")} | settings)))
    assert config.run.memory_efficient is efficient


def test_views_are_multiples_of_the_patch() -> None:
    assert auto(situation(chosen={"patch_size": (96, 96)})).data.image_size == (192, 192)
    assert demo(situation()).data.image_size == (96, 96)


@pytest.mark.parametrize(
    ("channels", "dtype", "mean"), [(1, torch.uint8, 0.2), (3, torch.float32, 51.0), (4, torch.uint8, 0.2)]
)
def test_statistics_are_measured_where_imagenets_do_not_fit(channels: int, dtype: torch.dtype, mean: float) -> None:
    config = auto(situation(source=Images(10, dtype), chosen={"in_chans": channels}))
    np.testing.assert_allclose(config.data.mean, [mean] * channels)
    assert config.data.std == (1.0,) * channels


def test_weights_of_timm_come_with_their_statistics() -> None:
    place = situation(chosen={"init": "timm", "accumulate": 1})
    place.backbone.module.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # type: ignore[assignment]
    assert auto(place).data.mean == (0.5, 0.5, 0.5)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from sparkmim.recipes import auto\n"
        "def short(situation):\n"
        "    return auto(situation).replace({'epochs': 50.0, 'warmup_epochs': 2.0})\n"
    )
    config = find_recipe(f"{file}:short", RECIPES)(situation())
    assert isinstance(config, PretrainConfig)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (50, 2)


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(
        ValueError, match="there is no recipe 'papper'; use one of auto, paper, fast, demo, s3d, or FILE"
    ):
        find_recipe("papper", RECIPES)


@pytest.mark.parametrize("recipe", OF_IMAGES)
@pytest.mark.parametrize(("images", "processes", "accumulate"), [(27, 2, 1), (1000, 3, 1), (5000, 3, 2)])
def test_processes_share_the_batch(recipe: str, images: int, processes: int, accumulate: int) -> None:
    def batch_size(processes: int, accumulate: int) -> int:
        chosen = {"accumulate": accumulate}
        return RECIPES[recipe](situation(images, processes=processes, chosen=chosen)).run.batch_size

    parts, alone = processes * accumulate, batch_size(1, 1)
    assert batch_size(processes, accumulate) == alone // parts * parts


def test_values_that_a_recipe_sets_are_recorded_as_flags_are(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        "from sparkmim.objectives.pixels import Pixels\nfrom sparkmim.recipes import auto\n\n\n"
        "class Own(Pixels):\n    pass\n\n\n"
        "def recipe(situation):\n"
        "    return auto(situation).replace({'image_size': 64, 'objective': 'own.py:Own'})\n"
    )
    monkeypatch.chdir(tmp_path)
    chosen = {name: value for name, value in TINY_PRETRAIN.items() if name != "image_size"} | {"data": images}
    pretrain("run", recipe="own.py:recipe", chosen=chosen, after_step=interrupt_at(1))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["data"]["image_size"] == [64, 64]
    assert recorded["model"]["objective"] == f"{tmp_path / 'own.py'}:Own"


def test_a_recipe_may_change_what_the_memory_was_estimated_for(tmp_path: Path) -> None:
    """The networks of two models are never the same one: each model sets up its own."""
    config = ModelConfig(model="test_resnet", patch_size=(32, 32), decoder_width=32)
    other = ModelBuilder().model(config, NoSettings(), 1)
    save_encoder(other.encoder, tmp_path / "weights.safetensors", {})
    builder = ModelBuilder()
    estimated = builder.model(replace(config, init=str(tmp_path / "weights.safetensors")), NoSettings(), 2)
    trained, fresh = builder.model(config, NoSettings(), 2), ModelBuilder().model(config, NoSettings(), 2)
    assert builder.model(config, NoSettings(), 2) is trained
    assert trained.encoder is not estimated.encoder
    for key, tensor in fresh.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", OF_IMAGES)
@pytest.mark.parametrize("epochs", [0.5, 2000.0])
def test_recipes_follow_the_epochs_that_are_chosen(recipe: str, epochs: float) -> None:
    """No message about a warm-up that nobody has given."""
    config = RECIPES[recipe](situation(chosen={"epochs": epochs}))
    assert config.schedule.epochs == epochs
    assert 0 < config.schedule.warmup_epochs < epochs
