"""The objective distill: its losses against their formulas, its targets against the teacher, and runs of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, make_images, record
from sparkmim import SparK, load_encoder, pretrain, reconstruct, refine
from sparkmim.data.config import DataConfig
from sparkmim.data.sources.address import open_source
from sparkmim.data.teachers.maps import ImageTeacherMaps, MapsLayout, sample_map
from sparkmim.data.views import EvaluationView, TrainingView, WholeView, Window
from sparkmim.models.masking import random_visible
from sparkmim.objectives.base import find_objective
from sparkmim.objectives.distill import Distill, TeacherTargets, position_loss, similarity_loss
from sparkmim.objectives.settings import DistillSettings
from sparkmim.pretraining.teachers import load_teacher, map_of_tokens

TEACHER = """
import timm, torch
from torch import nn

def make():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=0)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 16, 16)

    def forward(self, images):
        maps = self.conv(images)
        return maps, maps.amax((2, 3))

def pair():
    torch.manual_seed(3)
    return Pair()

def classifier():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))

def number():
    return 3
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.py"
    path.write_text(TEACHER)
    return f"{path}:make"


def chosen(images: Path, teacher: str, **more: Any) -> dict[str, Any]:
    fixed = {name: value for name, value in TINY_PRETRAIN.items() if name not in ("decoder_width", "pictures")}
    return fixed | {"data": str(images), "objective": "distill", "teacher": teacher, "teacher_size": 96} | more


# --- losses ---------------------------------------------------------------------------------------------------------


def maps(channels: int, seed: int) -> Tensor:
    return torch.randn(2, channels, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_position_loss_is_its_formula(masked: bool) -> None:
    one, other, target = maps(4, 0).requires_grad_(), maps(4, 0).requires_grad_(), 3 * maps(4, 1)
    counted = torch.tensor([[[True, False, True], [True, True, False]]] * 2) if masked else None
    loss = position_loss(one, target, counted)
    errors = []
    for b in range(2):
        for y in range(2):
            for x in range(3):
                if counted is not None and not counted[b, y, x]:
                    continue
                p, t = other[b, :, y, x], target[b, :, y, x]
                away = (p - t).abs()
                smooth = torch.where(away < 1, away.square() / 2, away - 0.5).mean()
                errors.append(0.9 * (1 - (p @ t) / (p.norm() * t.norm())) + 0.1 * smooth)
    wanted = torch.stack(errors).mean()
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("filled", [3, 6])
def test_similarity_loss_is_its_formula(filled: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = lambda n: torch.randn(n, 4, dtype=torch.float64, generator=generator)  # noqa: E731
    queue, target = F.normalize(rows(6), dim=1), rows(2)
    one = rows(2)
    other = one.clone().requires_grad_()
    one.requires_grad_()
    loss = similarity_loss(one, target, queue, torch.tensor(filled), 0.2)
    known = queue[-filled:]

    def shares(v: Tensor) -> Tensor:
        exponentials = torch.stack([torch.exp(v @ q / v.norm() / 0.2) for q in known])
        return exponentials / exponentials.sum()

    wanted = torch.stack(
        [(shares(t) * (shares(t) / shares(s)).log()).sum() for s, t in zip(other, target, strict=True)]
    ).mean()
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-12)


def test_an_empty_queue_costs_nothing() -> None:
    predicted = torch.randn(2, 4, requires_grad=True)
    loss = similarity_loss(predicted, torch.randn(2, 4), torch.zeros(6, 4), torch.tensor(0), 0.07)
    loss.backward()
    assert loss == 0
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def built(**settings: Any) -> SparK:
    torch.manual_seed(0)
    kind = find_objective("distill")
    own = kind.settings_type(channels=(6, 5), queue=8)
    objective = kind(own, in_chans=3, patch_size=(32, 32))
    return SparK("test_resnet", decoder_width=32, objective=objective, **settings).double()


def targets(images: int, grid: int = 2) -> TeacherTargets:
    generator = torch.Generator().manual_seed(5)
    return TeacherTargets(
        torch.randn(images, 6, grid, grid, generator=generator), torch.randn(images, 5, generator=generator)
    )


def test_whole_images_are_regressed_by_the_ordinary_network() -> None:
    model, images = built(mask_ratio=0.0), torch.randn(3, 3, 64, 64, dtype=torch.float64)
    given = targets(3)
    out = model(images, None, given)
    objective: Any = model.objective
    model.eval()
    assert model.decoder is None
    assert out.visible.all()
    again = built(mask_ratio=0.0)
    deepest = again.backbone(images)[-1]
    own: Any = again.objective
    queue = torch.zeros(8, 5, dtype=torch.float64)
    queue[-3:] = F.normalize(given.pooled.double(), dim=1)
    wanted = position_loss(own.head(deepest), given.maps) + similarity_loss(
        own.pooled_head(deepest.mean((2, 3))), given.pooled, queue, torch.tensor(3), 0.07
    )
    torch.testing.assert_close(out.loss, wanted, rtol=1e-10, atol=0)
    assert int(objective.filled) == 3


def test_masked_images_are_regressed_where_visible_and_predicted_everywhere() -> None:
    model = built(masks_per_image=2)
    images, given = torch.randn(2, 3, 64, 64, dtype=torch.float64), targets(2)
    visible = random_visible(4, (2, 2), 0.5, torch.Generator().manual_seed(0))
    model.eval()
    loss = model(images, visible, given).loss
    objective: Any = model.objective
    twice = images.repeat_interleave(2, 0)
    deepest = model.encode(twice, visible)[-1]
    grids = model.grids(model.mask(twice, visible), (64, 64))
    packed = [at.pack(m) for at, m in zip(grids, model.encode(twice, visible), strict=True)]
    dense = [d(f, g) for d, f, g in zip(model.densify, reversed(packed), reversed(grids), strict=True)]
    decoder: Any = model.decoder
    first = decoder.decode(dense).maps[0]
    wide = given.maps.repeat_interleave(2, 0)
    local = position_loss(objective.head(deepest), wide, visible)
    local = (local + position_loss(objective.hidden_head(F.avg_pool2d(first, 2)), wide)) / 2
    torch.testing.assert_close(loss, local)  # the queue is empty in evaluation mode
    loss.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


# --- targets --------------------------------------------------------------------------------------------------------


def whole_window(height: int, width: int, *, flip: bool = False) -> Window:
    return Window((height, width), 0, 0, height, width, (64, 64), flip=flip)


def test_sample_of_the_whole_image_is_the_map_itself() -> None:
    found = torch.randn(7, 3, 3)
    torch.testing.assert_close(sample_map(found, whole_window(60, 80), (64, 64), (3, 3)), found)
    torch.testing.assert_close(sample_map(found, whole_window(60, 80, flip=True), (64, 64), (3, 3)), found)


def test_sample_of_a_crop_is_the_part_of_the_map() -> None:
    found = torch.randn(2, 4, 6)
    crop = Window((40, 60), 10, 20, 20, 30, (64, 64))
    torch.testing.assert_close(sample_map(found, crop, (64, 64), (2, 3)), found[:, 1:3, 2:5])
    mirrored = sample_map(found.flip(2), crop._replace(flip=True), (64, 64), (2, 3))
    torch.testing.assert_close(mirrored, found[:, 1:3, 2:5].flip(2))
    beyond = Window((40, 60), -10, 0, 40, 60, (40, 60))
    wanted = F.pad(found[None], (0, 0, 1, 0), mode="replicate")[0, :, :4]
    torch.testing.assert_close(sample_map(found, beyond, (40, 60), (4, 6)), wanted)


def test_box_of_a_view_is_what_it_shows() -> None:
    config = DataConfig(image_size=(32, 32), mean=(0.0,), std=(1.0,))
    window = EvaluationView(config).place(60, 80)
    assert window.box((32, 32)) == pytest.approx((0, 10, 60, 70), abs=1.5)
    assert WholeView(config).place(60, 80).box((32, 32)) == pytest.approx((0, 0, 60, 80))
    native = TrainingView(DataConfig(image_size=(32, 32), crop="native", mean=(0.0,), std=(1.0,))).place(60, 80, None)
    top, left, bottom, right = native.box((32, 32))
    assert (bottom - top, right - left) == (32, 32)


def stores(folder: Path) -> list[Path]:
    return sorted(folder.glob("teacher-*"))


def test_targets_are_the_teacher_s_of_the_whole_image_and_its_mirror(
    tmp_path: Path, images: Path, teacher: str
) -> None:
    pretrain(tmp_path / "run", chosen=chosen(images, teacher, epochs=0.8, warmup_epochs=0.0))
    (store,) = stores(tmp_path)
    identity = json.loads((store / "identity.json").read_text())
    network = load_teacher(teacher, size=96)
    source = open_source(str(images))
    data = DataConfig(image_size=(96, 96), mean=network.mean, std=network.std)
    pixels = WholeView(data).look(source, 4, 3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
    channels, pooled = (np.load(store / f"{name}.npy").shape[2] for name in ("maps", "pooled"))
    layout = MapsLayout(10, 2, channels, (3, 3), pooled)
    reader = ImageTeacherMaps(store, layout, (3, 3))
    for flip in (False, True):
        image = ((pixels.float() / 255 - mean) / std)[None]
        wanted, vector = network.run(image.flip(-1) if flip else image)
        found = reader.sample(4, whole_window(60, 80, flip=flip), (64, 64))
        torch.testing.assert_close(found.maps.float() * identity["scale"], wanted, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(found.pooled.float(), vector, rtol=2e-3, atol=2e-3)
    rms = np.load(store / "maps.npy")[:, 0].astype(np.float32)
    assert math.sqrt((rms**2).mean()) == pytest.approx(1, abs=0.02)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"mask_ratio": 0.5, "decoder_width": 32}, {"objective": "pixels+distill", "decoder_width": 32, "pictures": 1}],
    ids=["whole", "masked", "pixels"],
)
def test_resumes_to_the_bit(tmp_path: Path, images: Path, teacher: str, more: dict[str, Any]) -> None:
    asked = chosen(images, teacher, **more)
    lines: list[str] = []
    record(lines, pretrain, tmp_path / "whole", chosen=asked)
    text = "\n".join(lines)
    assert "in half precision, to be computed" in text
    assert "use it again" in text
    written = (stores(tmp_path)[0] / "maps.npy").stat().st_mtime_ns
    pretrain(tmp_path / "parts", chosen=asked, after_step=interrupt_at(3))
    lines.clear()
    record(lines, pretrain, tmp_path / "parts", trust=True)
    assert "used again" in "\n".join(lines)
    assert (stores(tmp_path)[0] / "maps.npy").stat().st_mtime_ns == written
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    assert load_encoder(tmp_path / "whole") is not None
    if "pixels" in asked["objective"]:
        assert len(reconstruct(tmp_path / "whole", images, count=2).images) == 2
        assert list((tmp_path / "whole" / "reconstructions").glob("*.png"))


def test_recipe_sees_whole_images_and_the_loss_falls(tmp_path: Path, images: Path, teacher: str) -> None:
    asked = chosen(images, teacher, epochs=20.0, warmup_epochs=1.0, lr=2e-3, val_share=0.2)
    run = tmp_path / "run"
    pretrain(run, chosen=asked)
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["mask_ratio"] == 0
    assert config["data"]["jitter"] == 0.5
    assert config["optimizer"]["optimizer"] == "adamw"
    assert len(stores(tmp_path)) == 2  # of the images to train on, and of the held-out ones
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line["val_loss"] for line in lines if "val_loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert held_out[-1] < held_out[0]


def test_interrupted_store_is_continued(tmp_path: Path, images: Path, teacher: str) -> None:
    asked = chosen(images, teacher, epochs=0.8, warmup_epochs=0.0)
    pretrain(tmp_path / "one", chosen=asked)
    (store,) = stores(tmp_path)
    whole = np.load(store / "maps.npy")
    maps, state = (np.lib.format.open_memmap(store / f"{n}.npy", mode="r+") for n in ("maps", "state"))
    maps[6:], state[6:] = 0, 0
    maps.flush()
    state.flush()
    lines: list[str] = []
    record(lines, pretrain, tmp_path / "two", chosen=asked)
    assert any("computing 4 of 10 images" in line for line in lines)
    np.testing.assert_allclose(np.load(store / "maps.npy"), whole, rtol=2e-3, atol=2e-3)
    assert_same_training(tmp_path / "one", tmp_path / "two")


def test_plan_announces_the_store_and_writes_nothing(tmp_path: Path, images: Path, teacher: str) -> None:
    lines: list[str] = []
    record(lines, pretrain, tmp_path / "planned", plan=True, chosen=chosen(images, teacher))
    text = "\n".join(lines)
    assert "of 10 images and their mirrors" in text
    assert "frozen, whole images of 96 x 96 pixels" in text
    assert "64 x 64 pixels, whole; jitter 0.5" in text
    assert not list(tmp_path.iterdir())


def test_unreadable_images_have_no_map(tmp_path: Path, teacher: str) -> None:
    folder = make_images(tmp_path / "images")
    (folder / "4.png").write_bytes(b"no picture")
    run = tmp_path / "runs" / "run"
    pretrain(run, chosen=chosen(folder, teacher))
    assert "4.png" in (run / "broken_images.txt").read_text()
    assert list(np.load(stores(run.parent)[0] / "state.npy")) == [1, 1, 1, 1, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("function", "chans"), [("make", 1), ("pair", 3), ("pair", 1)])
def test_teacher_and_student_take_any_channels(
    tmp_path: Path, images: Path, teacher: str, function: str, chans: int
) -> None:
    """A student of gray images learns from a teacher of colors, and the other way round."""
    spec = teacher.replace(":make", f":{function}")
    asked = chosen(images, spec, in_chans=chans, epochs=0.8, warmup_epochs=0.0)
    if function == "pair":
        asked |= {"teacher_mean": (0.5,), "teacher_std": (0.25,)}
    pretrain(tmp_path / "run", chosen=asked)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["in_chans"] == chans


def test_run_folders_and_folders_of_timm_teach(tmp_path: Path, images: Path, teacher: str) -> None:
    pretrain(tmp_path / "a" / "run", chosen=chosen(images, teacher, epochs=0.8, warmup_epochs=0.0))
    from_run = load_teacher(str(tmp_path / "a" / "run"))
    assert from_run.size == (64, 64)
    refined = tmp_path / "a" / "refined"
    short = {"epochs": 0.8, "warmup_epochs": 0.0, "batch_size": 4, "device": "cpu", "workers": 0, "projection": 8}
    refine(refined, chosen=short | {"encoder": str(tmp_path / "a" / "run"), "data": str(images)})
    pretrain(tmp_path / "b" / "run", chosen=chosen(images, str(refined), epochs=0.8, warmup_epochs=0.0))
    folder = tmp_path / "timm"
    module = timm.create_model("test_resnet", num_classes=0)
    timm.models.save_for_hf(module, str(folder), model_config={"num_classes": 0})
    of_folder = load_teacher(str(folder))
    images_ = torch.randn(1, 3, *of_folder.size)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(of_folder.run(images_)[0], module.forward_features(images_))


def test_tokens_become_maps() -> None:
    tokens = torch.arange(2 * 7 * 3.0).view(2, 7, 3)
    found = map_of_tokens(tokens, (32, 48), 16)
    assert found.shape == (2, 3, 2, 3)
    assert torch.equal(found[:, :, 1, 2], tokens[:, 6])
    assert torch.equal(found[:, :, 0, 0], tokens[:, 1])
    with pytest.raises(ValueError, match="7 tokens for 4 x 4 patches"):
        map_of_tokens(tokens, (64, 64), 16)


def test_transformers_of_timm_teach() -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=0).eval()
    from sparkmim.pretraining.teachers import _of_module

    found = _of_module(module, "test_vit")
    maps, pooled = found.run(torch.randn(2, 3, *found.size))
    assert maps.shape[:2] == (2, module.num_features)
    assert pooled.shape == (2, module.num_features)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no teacher": ({"teacher": None}, "requires --teacher"),
    "unknown teacher": ({"teacher": "no_such_network"}, "neither a file or folder"),
    "a classifier": ({"teacher": "FILE:classifier"}, "returns a tensor of shape"),
    "no network": ({"teacher": "FILE:number"}, "returns a int"),
    "one statistic": ({"teacher_mean": (0.5,)}, "are given together"),
    "statistics of other channels": ({"teacher_mean": (0.5,), "teacher_std": (0.5,)}, "takes 3 channels"),
    "teacher without distill": ({"objective": "pixels"}, "--teacher .* has no effect without --objective distill"),
    "whole pixels": (
        {"objective": "pixels+distill", "mask_ratio": 0.0},
        "--mask-ratio 0 hides nothing, and --objective pixels.distill",
    ),
    "decoder of whole images": ({"decoder_width": 32}, "no effect with --mask-ratio 0"),
    "masks of whole images": ({"masks_per_image": 2}, "no effect with --mask-ratio 0"),
    "weight alone": ({"objective.weight": 0.5}, "no effect on it alone"),
    "other channels": ({"objective.channels": (3, 3)}, "not 3 and 3"),
    "loss on": ({"mask_ratio": 0.5, "loss_on": "all"}, "--loss-on all has no effect"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_before(tmp_path: Path, images: Path, teacher: str, name: str) -> None:
    more, said = REFUSED[name]
    asked = chosen(images, teacher) | more
    if asked["teacher"] is not None and asked["teacher"].startswith("FILE"):
        asked["teacher"] = teacher.replace(":make", asked["teacher"].removeprefix("FILE"))
    if asked["objective"] == "pixels":
        del asked["teacher_size"]
    asked = {key: value for key, value in asked.items() if value is not None}
    with pytest.raises(ValueError, match=said):
        pretrain(tmp_path / "run", chosen=asked)
    assert not list(tmp_path.iterdir())


def test_another_teacher_is_noticed(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "teacher.py"
    path.write_text(TEACHER)
    asked = chosen(images, f"{path}:make")
    pretrain(tmp_path / "run", chosen=asked, after_step=interrupt_at(2))
    path.write_text(TEACHER.replace("manual_seed(3)", "manual_seed(4)"))
    with pytest.raises(ValueError, match="another teacher"):
        pretrain(tmp_path / "run", chosen=asked)


def test_signals_are_refused(tmp_path: Path, teacher: str) -> None:
    folder = tmp_path / "signals"
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).standard_normal((2, 500)).astype(np.float32))
    with pytest.raises(ValueError, match="takes images"):
        pretrain(tmp_path / "run", chosen=chosen(folder, teacher, image_size=64) | {"data": f"signals://{folder}"})


def test_python_needs_channels() -> None:
    with pytest.raises(ValueError, match="takes a teacher"):
        SparK("test_resnet", decoder_width=32, objective="distill")
    made = Distill(DistillSettings(channels=(4, 4)), in_chans=3, patch_size=(32, 32))
    with pytest.raises(ValueError, match="needs the teacher's maps"):
        SparK("test_resnet", objective=made, mask_ratio=0)(torch.randn(2, 3, 64, 64))


def test_gray_images_are_read_in_color_for_a_teacher_of_colors(tmp_path: Path, teacher: str) -> None:
    folder = tmp_path / "gray"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (70, 70), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    pretrain(tmp_path / "runs" / "run", chosen=chosen(folder, teacher, in_chans=1, epochs=0.8, warmup_epochs=0.0))
