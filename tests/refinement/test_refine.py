"""Runs of refinement: resumed to the bit, from and to everything else, within the learning rates of their layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY_PRETRAIN, assert_same_training, final, interrupt_at, make_images, record
from sparkmim import Backbone, embed, finetune, knn, load_encoder, pretrain, refine
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.data.config import ViewConfig
from sparkmim.data.photometric import PhotometricChange
from sparkmim.data.sources.address import open_source
from sparkmim.refinement.config import ContrastConfig, StrongViewConfig
from sparkmim.refinement.network import ContrastiveNetwork
from sparkmim.refinement.views import PairedViews, PairView, collate_pairs
from sparkmim.training.layer_decay import layer_groups

TINY: dict[str, Any] = {
    "batch_size": 4,
    "epochs": 1.6,
    "warmup_epochs": 0.4,
    "lr": 1e-3,
    "precision": "32",
    "device": "cpu",
    "workers": 0,
    "seed": 1,
    "log_every": 1,
    "projector_width": 16,
    "projection": 8,
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(run, chosen=TINY_PRETRAIN | {"data": str(images), "pictures": 0})
    return run


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory, images: Path, pretrained: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "refined"
    refine(run, chosen=TINY | {"encoder": str(pretrained), "data": str(images)})
    return run


@pytest.mark.parametrize("positives", ["views", "neighbors"])
def test_resumes_to_the_bit(tmp_path: Path, images: Path, pretrained: Path, refined: Path, positives: str) -> None:
    chosen = TINY | {"encoder": str(pretrained), "data": str(images), "positives": positives}
    whole = refined
    if positives == "neighbors":
        whole = tmp_path / "whole"
        refine(whole, chosen=chosen | {"queue": 6})
        chosen |= {"queue": 6}
    parts = tmp_path / "parts"
    refine(parts, chosen=chosen, after_step=interrupt_at(2))
    refine(parts)
    assert_same_training(whole, parts)
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["positives_found"] <= 1 for line in lines if "loss" in line)


def test_early_layers_stay_within_their_learning_rates(refined: Path, pretrained: Path) -> None:
    """A step of AdamW moves a weight by little more than its learning rate; earlier layers have smaller ones."""
    before, after = load_encoder(pretrained), load_encoder(refined)
    rates = [json.loads(line)["lr"] for line in (refined / "metrics.jsonl").read_text().splitlines() if "lr" in line]
    network = ContrastiveNetwork(Backbone(before), ContrastConfig())
    groups = layer_groups(network)
    moved: dict[int, float] = {}
    last = max(groups.values())
    for name, parameter in before.named_parameters():
        if not parameter.requires_grad:
            continue
        group = groups[f"encoder.{name}"]
        change = float((after.get_parameter(name) - parameter).detach().abs().max())
        moved[group] = max(moved.get(group, 0.0), change)
    for group, change in moved.items():
        # the first steps' averages are few: at most 1 / sqrt(1 - 0.999) * 0.1 times the rate, and weight decay
        assert 0 < change <= 3.2 * sum(rates) * 0.65 ** (last - group) * 1.1
    assert moved[0] < moved[max(moved)]


def test_folder_serves_wherever_an_encoder_does(tmp_path: Path, refined: Path, images: Path, data: Path) -> None:
    assert embed(refined, images, batch_size=4, device="cpu").features.shape[0] == 10
    assert knn(refined, data, device="cpu", image_size=64).test_images
    short = {"data": str(images), "epochs": 0.8, "warmup_epochs": 0.0}
    pretrain(tmp_path / "again", chosen=TINY_PRETRAIN | short | {"init": str(refined), "pictures": 0})
    refine(tmp_path / "twice", chosen=TINY | short | {"encoder": str(refined)})
    newest = RunFolder(refined).list_checkpoints()[-1]
    of_checkpoint, of_folder = load_encoder(newest).state_dict(), load_encoder(refined).state_dict()
    assert all(torch.equal(of_checkpoint[name], tensor) for name, tensor in of_folder.items())
    fine = {"epochs": 1.0, "warmup_epochs": 0.0, "batch_size": 4, "device": "cpu", "workers": 0, "precision": "32"}
    finetune(tmp_path / "fine", chosen={"encoder": str(refined), "data": str(data), "image_size": 64} | fine)
    assert run_command(["finetune", "--output", str(refined)]) == 2
    assert run_command(["pretrain", "--output", str(refined)]) == 2


def test_plan_says_what_it_will_do(images: Path, pretrained: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    chosen = {"encoder": str(pretrained), "data": str(images), "device": "cpu", "workers": 0, "positives": "neighbors"}
    assert record(lines, refine, tmp_path / "planned", plan=True, chosen=chosen) is None
    text = "\n".join(lines)
    assert "nearest neighbors among 1024 images" in text
    assert "layer decay 0.65" in text
    assert "two of 64 x 64" in text
    assert "5 epochs" in text  # a quarter of the pretraining's 2.4, but five at least
    assert not (tmp_path / "planned").exists()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"queue": 8}, "--queue 8 has no effect"),
        ({"val_every": 2.0}, "--val-every 2.0 has no effect"),
        ({"batch_size": 1, "epochs": 1.0}, "takes one image at a time"),
        ({"encoder": "missing"}, "there is no file"),
        ({"temperature": 0.0}, "--temperature"),
        ({"data": None}, "--data is required"),
        ({"crop": "native", "crop_scale": (0.3, 1.0)}, "no effect with --crop native"),
        ({"batch_size": 4, "accumulate": 4}, "takes one image at a time"),
    ],
)
def test_what_cannot_be_is_said_before(
    tmp_path: Path, images: Path, pretrained: Path, chosen: dict[str, Any], said: str
) -> None:
    asked = TINY | {"encoder": str(pretrained), "data": str(images)} | chosen
    asked = {name: value for name, value in asked.items() if value is not None}
    with pytest.raises(ValueError, match=said):
        refine(tmp_path / "run", chosen=asked)
    assert not (tmp_path / "run").exists()


def test_broken_images_are_replaced_and_listed(tmp_path: Path, pretrained: Path) -> None:
    folder = make_images(tmp_path / "images")
    (folder / "broken.png").write_bytes(b"no picture")
    run = tmp_path / "run"
    refine(run, chosen=TINY | {"encoder": str(pretrained), "data": str(folder), "epochs": 2.0})
    assert "broken.png" in (run / "broken_images.txt").read_text()
    assert (run / "encoder.safetensors").is_file()
    assert "Contrastive refinement" in (run / "report.html").read_text()


def test_views_depend_on_image_and_epoch_alone(images: Path) -> None:
    source = open_source(str(images))
    data = ViewConfig(image_size=(64, 64), mean=(0.5,) * 3, std=(0.2,) * 3)
    views = PairedViews(source, data, StrongViewConfig(), 3, seed=0)
    one, again, later = views[0, 3], views[0, 3], views[1, 3]
    assert one.images.shape == (2, 3, 64, 64)
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, later.images)
    assert not torch.equal(one.images[0], one.images[1])
    both = collate_pairs([one, later])
    assert both.indices == [3, 3]
    assert torch.equal(both.images[2:], later.images)
    assert PairView(data).look(source, 0, 3).dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_any_channels_are_changed_and_gaps_stay(channels: int, dtype: torch.dtype) -> None:
    pixels = (255 * torch.rand(channels, 32, 32)).to(dtype)
    if dtype == torch.float32:
        pixels[:, :4] = torch.nan
    change = PhotometricChange(1.0, 0.2, 0.5)
    changed = [change(pixels, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(view.dtype == dtype and view.shape == pixels.shape for view in changed)
    assert any(not torch.equal(view.nan_to_num(), pixels.nan_to_num()) for view in changed)
    if dtype == torch.float32:
        assert all(torch.equal(view.isnan(), pixels.isnan()) for view in changed)
    untouched = PhotometricChange(0.0)(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(untouched.nan_to_num(), pixels.nan_to_num())


@pytest.mark.parametrize(("shape", "dtype"), [((3, 8, 9, 7), torch.uint8), ((2, 50), torch.float32)])
def test_clips_and_signals_change_by_channels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pixels = (255 * torch.rand(shape)).to(dtype)
    changed = [PhotometricChange(1.0, 0.5, 1.0)(pixels, torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert all(view.dtype == dtype and view.shape == pixels.shape for view in changed)
    assert any(not torch.equal(view, pixels) for view in changed)


def test_final_state_holds_the_projector(refined: Path) -> None:
    names = final(refined)["model"].keys()
    assert any(name.startswith("projector.") for name in names)
    assert all(not name.startswith("projector.") for name in load_encoder(refined).state_dict())
