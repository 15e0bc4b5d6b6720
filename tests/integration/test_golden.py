"""The numbers of the authors' own code (keyu-tian/SparK, commit a63e386, float64), reproduced.

`golden/official_spark.json` holds them; weights and images are rebuilt from an integer hash, so no weights are stored.
Tolerances: features 1e-12, losses 1e-7 relative (the official divisor's 1e-8 is in them), trajectories, final
parameters and running statistics 1e-6, reconstruction samples 1e-7. Sums are compared against sqrt(sq_sum).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import Lamb
from torch import Tensor, nn

import sparkmim
from sparkmim.models.config import Execution

CASES = {
    case["name"]: case for case in json.loads((Path(__file__).parents[1] / "golden/official_spark.json").read_text())
}
CONVNEXTS = {
    "convnext-ln": ((1, 1, 2, 1), (24, 48, 96, 192)),
    "convnext-ln-identity-proj": ((1, 1, 1, 1), (16, 32, 64, 128)),
}


def stream(name: str) -> int:
    """32-bit FNV-1a."""
    value = 2166136261
    for byte in name.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def hashed(n: int, name: str) -> np.ndarray:
    x = np.arange(n, dtype=np.uint32) * np.uint32(2654435761) + np.uint32((stream(name) * 40503) & 0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(2246822519)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(3266489917)
    return (x ^ (x >> np.uint32(16))) / 2.0**32 - 0.5


def formula_weights(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            u = torch.from_numpy(hashed(p.numel(), name)).view(p.shape)
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "mask_token":
                value = 0.2 * u
            elif leaf == "gamma":
                value = 0.6 + 0.4 * u
            elif leaf == "bias":
                value = 0.2 * u
            elif p.ndim == 1:
                value = 1 + 0.4 * u
            else:
                fan = 4 * p.shape[0] if "upsample" in name else p[0].numel()
                value = u * math.sqrt(12) * math.sqrt(1.5 / fan)
            p.copy_(value)


def formula_images(batch: int, size: int) -> Tensor:
    b, c, y, x = np.meshgrid(np.arange(batch), np.arange(3), np.arange(size), np.arange(size), indexing="ij")
    smooth = np.sin(0.11 * (y + 1) * (1 + 0.3 * b) + 0.07 * x * (c + 1)) + np.cos(0.05 * (x + 2 * y) + b)
    return torch.from_numpy(smooth + 0.5 * hashed(smooth.size, "image").reshape(smooth.shape))


def build(case: dict[str, Any], execution: Execution) -> sparkmim.SparK:
    if case["kind"] == "convnext":
        depths, dims = CONVNEXTS[case["name"]]
        network: nn.Module = timm.models.convnext.ConvNeXt(depths=depths, dims=dims, num_classes=0)
    else:
        network = timm.create_model(case["name"].removesuffix("-bn"), num_classes=0)
    model = sparkmim.SparK(
        network, mask_ratio=case["mask_ratio"], decoder_width=case["decoder_width"], execution=execution
    ).double()
    formula_weights(model)
    return model


def masks(case: dict[str, Any]) -> list[Tensor]:
    side = case["image_size"] // case["patch_size"]
    return [torch.tensor(step, dtype=torch.bool).view(case["batch"], side, side) for step in case["visible_steps"]]


def assert_summary(actual: Tensor, wanted: dict[str, Any], tolerance: float, what: str) -> None:
    """Sums of all elements, compared against the size of the tensor: some sums cancel to nothing."""
    assert list(actual.shape) == wanted["shape"], what
    scale = math.sqrt(wanted["sq_sum"]) or 1.0
    assert abs(actual.sum().item() - wanted["sum"]) <= tolerance * scale * math.sqrt(actual.numel()), f"{what}: sum"
    assert actual.square().sum().item() == pytest.approx(wanted["sq_sum"], rel=2 * tolerance, abs=1e-30), (
        f"{what}: squares"
    )
    if "abs_sum" in wanted:
        assert actual.abs().sum().item() == pytest.approx(wanted["abs_sum"], rel=tolerance, abs=1e-15), f"{what}: abs"


@pytest.mark.parametrize("execution", ["packed", "masked-dense"])
@pytest.mark.parametrize("name", CASES)
def test_first_step(name: str, execution: Execution) -> None:
    case = CASES[name]
    model = build(case, execution)
    images, visible = formula_images(case["batch"], case["image_size"]), masks(case)[0]
    for feature, wanted in zip(build(case, execution).encode(images, visible), case["features"], strict=True):
        assert_summary(feature, wanted, 1e-12, "feature")
    out = model(images, visible)
    assert out.loss.item() == pytest.approx(case["loss_step0"], rel=1e-7)
    out.loss.backward()
    named: dict[str, Any] = dict(model.named_parameters())
    trained = {n: p for n, p in named.items() if p.requires_grad}  # not ConvNeXt's last norm, unreached
    assert sum(p.numel() for p in trained.values()) == case["n_params"]
    assert set(trained) == set(case["grads"])
    total = math.sqrt(sum(g["sq_sum"] for g in case["grads"].values()))
    for parameter, p in trained.items():
        wanted = case["grads"][parameter]
        if math.sqrt(wanted["sq_sum"]) > 1e-9 * total:  # others (biases before batch norm) are zero but for rounding
            assert_summary(p.grad, wanted, 1e-7, f"gradient of {parameter}")
        else:
            assert p.grad.norm() <= 1e-8 * total, parameter


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    case = CASES[name]
    model, settings = build(case, "packed"), case["optimizer"]
    images, visible = formula_images(case["batch"], case["image_size"]), masks(case)
    trained: dict[str, Any] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decayed = {n for n, p in trained.items() if p.ndim > 1 and not n.endswith(("bias", "mask_token", "gamma"))}
    groups = [
        {"params": [p for n, p in trained.items() if n in decayed], "decay": True},
        {"params": [p for n, p in trained.items() if n not in decayed], "decay": False},
    ]
    optimizer = Lamb(groups, betas=settings["betas"], eps=settings["eps"], max_grad_norm=settings["max_grad_norm"])
    for step, wanted in enumerate(case["trajectory"]):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = wanted["lr"], wanted["wd"] if group["decay"] else 0.0
        optimizer.zero_grad()
        loss = model(images, visible[step]).loss
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained.values()])
        assert loss.item() == pytest.approx(wanted["loss"], rel=1e-6), f"step {step}"
        assert norm.item() == pytest.approx(wanted["grad_norm"], rel=1e-6), f"step {step}"
        optimizer.step()
    for parameter, p in trained.items():
        assert_summary(p.detach(), case["final_params"][parameter], 1e-6, parameter)
    buffers = {n: b for n, b in model.named_buffers() if n in case["final_buffers"]}
    assert set(buffers) == set(case["final_buffers"])
    for buffer, value in buffers.items():
        assert_summary(value, case["final_buffers"][buffer], 1e-6, buffer)
    model.eval()
    final = case["final_eval"]
    with torch.no_grad():
        assert model(images, visible[0]).loss.item() == pytest.approx(final["loss"], rel=1e-6)
        picture = model.reconstruct(images, visible[0])
    assert_summary(picture, final["reconstruction"], 1e-7, "reconstruction")
    for *place, value in final["reconstruction_samples"]:
        assert picture[tuple(place)].item() == pytest.approx(value, rel=1e-7, abs=1e-7)
