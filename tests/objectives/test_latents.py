"""The objective latents against its formula, its teacher, its watch over collapse, and runs of it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import TINY_PRETRAIN, assert_same_training, interrupt_at, record
from sparkmim import SparK, load_encoder
from sparkmim.models.masking import block_visible, random_visible
from sparkmim.objectives.base import Joined, find_objective
from sparkmim.objectives.latents import LEAST_RANK, LEAST_SPREAD, WATCHED, Latents, Teacher
from sparkmim.objectives.settings import LatentsSettings
from sparkmim.pretraining.model import load_run
from sparkmim.pretraining.run import pretrain


def objective(name: str, **settings: Any) -> Any:
    kind = find_objective(name)
    return kind(kind.settings_type(**settings), in_chans=3, patch_size=(32, 32))


def built(name: str = "latents", **settings: Any) -> SparK:
    torch.manual_seed(0)
    model = SparK("test_resnet", decoder_width=32, objective=objective(name, **settings)).double()
    with torch.no_grad():  # so that the teacher is another network
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def latents_of(model: SparK) -> Any:
    found = model.objective
    return next(p for p in found.parts if isinstance(p, Latents)) if isinstance(found, Joined) else found


def by_formula(model: SparK, images: Tensor, visible: Tensor) -> Tensor:
    """The loss, from the ordinary network's maps and the decoder's blocks, written out."""
    teacher, heads = latents_of(model).teacher.network, latents_of(model).heads
    with torch.no_grad():
        wanted = [
            F.layer_norm(m.movedim(1, -1), m.shape[1:2], eps=1e-6).movedim(-1, 1) for m in maps_of(teacher, images)
        ]
    grid = model.mask(images, visible)
    dense = [
        at.pack(m) for at, m in zip(model.grids(grid, images.shape[2:]), model.encode(images, visible), strict=True)
    ]
    grids = model.grids(grid, images.shape[2:])
    deep = [d(f, g) for d, f, g in zip(model.densify, reversed(dense), reversed(grids), strict=True)]
    decoder: Any = model.decoder
    x = decoder.blocks[0](deep[0]) + deep[1]
    y = decoder.blocks[1](x) + deep[2]
    total = torch.zeros((), dtype=torch.float64)
    for head, found, target in zip(heads, (x, y), wanted[::-1], strict=False):
        small = found.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        predicted = torch.einsum("oi,bihw->bohw", head.weight[:, :, 0, 0], small) + head.bias[:, None, None]
        difference = (predicted - target).abs()
        error = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean(1)
        here = F.interpolate(visible[:, None].double(), size=error.shape[1:])[:, 0] > 0
        total = total + error[~here].mean() / 2
    return total


def maps_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    return network.forward_intermediates(images, intermediates_only=True)[-2:]  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("name", ["latents", "pixels+latents"])
def test_loss_and_gradients_are_the_formulas(name: str) -> None:
    model = built(name).eval()
    images = torch.randn(3, 3, 96, 64, dtype=torch.float64)
    visible = random_visible(3, (3, 2), 0.6)
    loss = model(images, visible).loss
    wanted = by_formula(model, images, visible)
    if name == "pixels+latents":
        pixels = objective("pixels")
        prediction = model(images, visible).prediction
        wanted = wanted + pixels.loss(prediction, pixels.target(images), model.mask(images, visible))
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))  # every trained one is reached, as processes need
    others = torch.autograd.grad(wanted, list(trained.values()))
    for gradient, other in zip(found, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)
    assert not any(p.requires_grad for p in latents_of(model).teacher.parameters())


def test_weight_and_stages() -> None:
    images, visible = torch.randn(2, 3, 64, 64, dtype=torch.float64), random_visible(2, (2, 2), 0.5)
    losses = [built("pixels+latents", weight=w).eval()(images, visible).loss for w in (1.0, 3.0, 5.0)]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])
    assert len(latents_of(built(stages=1)).heads) == 1
    assert built(stages=1).decoder.steps[-1].factor == (2, 2)
    with pytest.raises(ValueError, match=r"--objective\.stages 5, but the network has 4 feature maps; use fewer"):
        built(stages=5)
    with pytest.raises(ValueError, match="--objective: Pixels is named twice"):
        find_objective("pixels+pixels")
    with pytest.raises(ValueError, match="'latent' is unknown"):
        find_objective("pixels+latent")


def test_the_teacher_is_the_average_of_the_encoder() -> None:
    model = built(momentum=0.9)
    teacher: Teacher = latents_of(model).teacher
    before = {name: p.clone() for name, p in teacher.network.named_parameters()}
    own = dict(model.encoder.named_parameters())
    for progress in (0.0, 0.5, 1.0):
        model.objective.after_step(model, progress)
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * progress)) / 2
        before = {name: momentum * p + (1 - momentum) * own[name] for name, p in before.items()}
        for name, p in teacher.network.named_parameters():
            torch.testing.assert_close(p, before[name], rtol=1e-12, atol=1e-14)
    assert momentum == 1, "at the end it stands still"


def test_the_teacher_has_no_noise_and_statistics_of_whole_images() -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("test_resnet", num_classes=0, drop_path_rate=0.9, drop_rate=0.5)
    teacher = Teacher(encoder).train()
    ordinary = copy.deepcopy(encoder).eval()
    for module in ordinary.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(teacher.network(images), ordinary(images))
    for name, buffer in teacher.network.named_buffers():
        torch.testing.assert_close(buffer, dict(ordinary.named_buffers())[name])
    assert not any(m.training for m in teacher.eval().modules())


def test_a_collapse_is_warned_of() -> None:
    latents = latents_of(built())
    assert latents.watch() == {}, "nothing has been seen"
    assert latents.warning(latents.watch()) is None
    channels = latents.seen.shape[1]
    latents.count.fill_(WATCHED)
    latents.seen.copy_(torch.randn(WATCHED, channels))
    found = latents.watch()
    assert found["latent_spread"] > 0.9
    assert found["latent_rank"] > 0.8 * channels
    assert latents.warning(latents.watch()) is None
    for rows in (
        torch.ones(channels) + 1e-3 * torch.randn(WATCHED, channels),
        torch.randn(WATCHED, 1).expand(-1, channels),
    ):
        latents.seen.copy_(rows)
        found = latents.watch()
        assert found["latent_spread"] < LEAST_SPREAD or found["latent_rank"] < LEAST_RANK
        assert "collapsed. Use --objective pixels+latents" in (latents.warning(latents.watch()) or "")


def test_a_network_made_to_collapse(tmp_path: Path, images: Path) -> None:
    """A teacher that answers every image with the same numbers; the run says so once, and goes on."""
    network = tmp_path / "net.py"
    network.write_text(
        "import timm\n"
        "def net():\n"
        "    made = timm.create_model('test_resnet', num_classes=0)\n"
        "    next(made.parameters()).data.zero_()\n"
        "    return made\n"
    )
    said: list[str] = []
    chosen = TINY_PRETRAIN | {
        "model": f"{network}:net",
        "data": images,
        "objective": "latents",
        "lr": 1e-12,
        "log_every": 1,
    }
    record(said, pretrain, tmp_path / "run", chosen=chosen)
    assert sum("they have collapsed" in line for line in said) == 1


def test_a_run_and_its_continuation(tmp_path: Path, images: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": images, "objective": "pixels+latents", "mask_shape": "blocks", "log_every": 1}
    pretrain(tmp_path / "whole", chosen=chosen)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"latent_spread", "latent_rank"} <= rows[-2].keys() | rows[-1].keys()
    pretrain(tmp_path / "parts", chosen=chosen, after_step=interrupt_at(3))
    pretrain(tmp_path / "parts", chosen={})
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
    trained = load_run(tmp_path / "whole").model
    teacher = load_encoder(tmp_path / "whole" / "teacher.safetensors")
    wanted = latents_of(trained).teacher.network.state_dict()
    found = teacher.module.state_dict() if hasattr(teacher, "module") else teacher.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in found if name in wanted)
    assert any(not torch.equal(wanted[name], p) for name, p in trained.encoder.state_dict().items())


@pytest.mark.parametrize("objective", ["latents", "pixels+latents"])
def test_it_starts_from_the_weights_of_another_run(objective: str, tmp_path: Path, images: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": images}
    pretrain(tmp_path / "pixels", chosen=chosen | {"objective": "pixels"})
    pretrain(
        tmp_path / "run",
        chosen=chosen
        | {"objective": objective, "init": str(tmp_path / "pixels"), "lr": 1e-12, "weight_decay": 0}
        | {"weight_decay_end": 0},
    )
    known, model = load_run(tmp_path / "pixels").model, load_run(tmp_path / "run").model
    own, teacher = dict(model.named_parameters()), dict(latents_of(model).teacher.network.named_parameters())
    for name, value in known.named_parameters():
        if name.startswith("encoder."):
            torch.testing.assert_close(teacher[name.removeprefix("encoder.")].data, value.data)
        if name.startswith("encoder.") or objective == "pixels+latents":
            torch.testing.assert_close(own[name].data, value.data)


def test_a_weight_beside_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--objective\.weight 0\.5 .* has no effect on latents alone; leave it out"):
        built("latents", weight=0.5)
    built("pixels+latents", weight=0.5)


def test_own_decoders_have_no_maps_for_it() -> None:
    model = SparK("test_resnet", decoder_width=32)
    model.decoder = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="predicts from the maps of --decoder unet; use that, or pixels"):
        Latents(LatentsSettings(), in_chans=3, patch_size=(32, 32)).attach(model)


@pytest.mark.parametrize("grid", [(7,), (7, 7), (3, 3), (14, 10), (5, 4, 6)])
@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.75])
def test_block_masks(grid: tuple[int, ...], ratio: float) -> None:
    def drawn(shape: Any) -> Tensor:
        return shape(64, grid, ratio, torch.Generator().manual_seed(0))  # type: ignore[no-any-return]

    blocks, apart = drawn(block_visible), drawn(random_visible)
    assert blocks.shape == (64, *grid)
    assert torch.equal(blocks.flatten(1).sum(1), apart.flatten(1).sum(1))
    assert torch.equal(blocks, drawn(block_visible))
    assert len({tuple(mask.flatten().tolist()) for mask in blocks}) > 6
    if math.prod(grid) > 40:  # neighbors agree more often than by chance
        alike = [(m.narrow(1, 1, grid[0] - 1) == m.narrow(1, 0, grid[0] - 1)).double().mean() for m in (blocks, apart)]
        assert alike[0] > alike[1] + 0.1


@pytest.mark.parametrize("name", ["latents", "pixels", "pixels+latents"])
def test_masks_of_an_image_share_its_target(name: str) -> None:
    """The loss of several masks is the mean of the losses of each; the teacher sees each image once."""
    masks, images = 3, torch.randn(2, 3, 64, 64, dtype=torch.float64)
    visible = random_visible(2 * masks, (2, 2), 0.5, torch.Generator().manual_seed(0))

    def loss(several: int, images: Tensor, visible: Tensor) -> tuple[Tensor, list[int], list[Tensor]]:
        torch.manual_seed(0)
        model = SparK("test_resnet", decoder_width=32, objective=objective(name), masks_per_image=several).double()
        model.eval()  # batch norms of the teacher see as many images, or their statistics would differ
        seen: list[int] = []
        for module in model.objective.modules():
            if isinstance(module, Teacher):
                first = next(m for m in module.network.modules() if isinstance(m, nn.Conv2d))
                first.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        out = model(images, visible)
        assert len(out.prediction) == len(out.visible) == len(visible)
        out.loss.backward()
        return out.loss, seen, [p.grad for p in model.encoder.parameters() if p.grad is not None]

    together, seen, gradients = loss(masks, images, visible)
    apart = [loss(1, images, visible[turn::masks]) for turn in range(masks)]
    torch.testing.assert_close(together, torch.stack([part[0] for part in apart]).mean())
    assert seen == ([2] if "latents" in name else [])
    for gradient, parts in zip(gradients, zip(*(part[2] for part in apart), strict=True), strict=True):
        torch.testing.assert_close(gradient, torch.stack(parts).mean(0))


def test_several_masks_are_drawn_and_others_refused() -> None:
    model, images = SparK("test_resnet", decoder_width=32, masks_per_image=2), torch.randn(3, 3, 64, 64)
    assert len(model(images).visible) == 6
    assert model(images, random_visible(3, (2, 2), 0.5)).visible.shape[0] == 3  # one of each, as held-out images have
    assert len(model.reconstruct(images)) == 3
    with pytest.raises(ValueError, match="visible must be"):
        model(images, random_visible(4, (2, 2), 0.5))
    with pytest.raises(ValueError, match="masks_per_image"):
        SparK("test_resnet", decoder_width=32, masks_per_image=0)


def test_run_of_several_masks_resumes_to_the_bit(images: Path, tmp_path: Path) -> None:
    chosen = TINY_PRETRAIN | {"data": str(images), "objective": "pixels+latents", "masks_per_image": 2}
    whole: list[str] = []
    record(whole, pretrain, tmp_path / "whole", chosen=chosen)
    assert any("2 masks of each" in line for line in whole)
    pretrain(tmp_path / "parts", chosen=chosen, after_step=interrupt_at(3))
    pretrain(tmp_path / "parts")
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
