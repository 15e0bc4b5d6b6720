"""Which parameters are decayed, and what one update does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb
from torch import nn

from sparkmim import SparK
from sparkmim.training.config import OptimizerConfig
from sparkmim.training.optim import build_optimizer, load_optimizer, param_groups_weight_decay, set_rates


def groups_by_name(model: nn.Module) -> tuple[set[str], set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    decayed: set[str] = set()
    spared: set[str] = set()
    for group in param_groups_weight_decay(model.named_parameters()):
        params: Any = group["params"]
        (decayed if group["weight_decay_scale"] else spared).update(names[id(p)] for p in params)
    return decayed, spared


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_vectors_biases_and_mask_tokens_are_not_decayed(name: str) -> None:
    model = SparK(name, decoder_width=32)
    decayed, spared = groups_by_name(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert decayed | spared == trained
    assert not decayed & spared
    for name, parameter in model.named_parameters():
        if name not in trained:
            continue
        matrix = parameter.ndim > 1 and not name.endswith(("mask_token", "bias"))
        assert (name in decayed) == matrix, name
    tokens = {name for name in spared if name.endswith("mask_token")}
    assert len(tokens) == len(model.densify)
    assert any(model.get_parameter(name).ndim > 1 for name in tokens)  # told by name, not by shape


def test_unreached_parameters_are_absent() -> None:
    model = SparK("test_convnext", decoder_width=32)
    decayed, spared = groups_by_name(model)
    assert model.unreached
    for name in model.unreached:
        assert not model.encoder.get_parameter(name).requires_grad
        assert f"encoder.{name}" not in decayed | spared
    held = sum(p.numel() for group in build(model, "lamb").param_groups for p in group["params"])
    assert held == sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(model: nn.Module, kind: Any) -> torch.optim.Optimizer:
    return build_optimizer(
        param_groups_weight_decay(model.named_parameters()),
        OptimizerConfig(optimizer=kind, lr=0.1, betas=(0.9, 0.95), eps=1e-6),
    )


def net() -> nn.Linear:
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        model.bias.copy_(torch.tensor([0.25, -1.0]))
    model.weight.grad = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=torch.float64)
    model.bias.grad = torch.tensor([0.5, -0.125], dtype=torch.float64)
    return model


def test_adamw_takes_the_rates_of_the_step() -> None:
    model = net()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    optimizer = build(model, "adamw")
    assert type(optimizer) is torch.optim.AdamW
    set_rates(optimizer, 0.01, 0.2)
    optimizer.step()
    # The first step's averages, bias-corrected, are the gradient and its square.
    update = model.weight.grad / (model.weight.grad.abs() + 1e-6)
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.01 * 0.2) - 0.01 * update)
    torch.testing.assert_close(model.bias.detach(), bias - 0.01 * model.bias.grad / (model.bias.grad.abs() + 1e-6))


def test_lamb_scales_the_update_of_decayed_tensors_to_their_norm() -> None:
    model = net()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    optimizer = build(model, "lamb")
    assert type(optimizer) is Lamb
    set_rates(optimizer, 0.01, 0.2)
    optimizer.step()
    update = model.weight.grad / (model.weight.grad.abs() + 1e-6) + 0.2 * weight
    torch.testing.assert_close(model.weight.detach(), weight - 0.01 * update * weight.norm() / update.norm())
    # Without decay there is no trust ratio: a plain Adam step.
    torch.testing.assert_close(model.bias.detach(), bias - 0.01 * model.bias.grad / (model.bias.grad.abs() + 1e-6))


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_gradients_are_not_clipped_by_the_optimizer(kind: str) -> None:
    """The training loop does that: twice the gradient, whatever its norm, gives the same first step."""
    steps = []
    for scale in (1.0, 1e6):
        model = net()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= scale
        optimizer = build(model, kind)
        optimizer.param_groups[0]["eps"] = optimizer.param_groups[1]["eps"] = 0.0
        set_rates(optimizer, 0.01, 0.0)
        optimizer.step()
        steps.append(model.weight.detach())
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("weight_decay", [0.0, 0.04])
def test_lamb_trusts_what_is_decayed_also_without_decay(weight_decay: float) -> None:
    """The first step of a matrix is as long as its norm times the rate, whatever its gradient's size."""
    parameter = nn.Parameter(torch.full((4, 4), 0.01))
    optimizer = build_optimizer(
        [{"params": [parameter], "weight_decay_scale": 1.0}],
        OptimizerConfig(optimizer="lamb", lr=0.1, betas=(0.9, 0.95)),
    )
    for state in (None, optimizer.state_dict()):
        if state is not None:  # of an older checkpoint, which did not record it
            state["param_groups"][0]["always_adapt"] = False
            load_optimizer(optimizer, state)
        before = parameter.detach().clone()
        parameter.grad = torch.full((4, 4), 1000.0)
        set_rates(optimizer, 0.1, weight_decay)
        optimizer.step()
        assert (parameter.detach() - before).norm() == pytest.approx(0.1 * before.norm().item(), rel=1e-3)
