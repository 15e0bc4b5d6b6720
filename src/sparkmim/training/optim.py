"""The optimiser, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lamb import Lamb
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule."""

    optimizer: Literal["lamb", "adamw"] = "lamb"
    """lamb (timm's, the paper's choice) or adamw."""

    lr: float
    """Peak learning rate."""

    betas: tuple[float, float]
    """Decay of the running averages of gradients and of their squares."""

    eps: float = 1e-6
    """Added to the root of the second average."""

    weight_decay: float = 0.04
    """Weight decay at the start."""

    weight_decay_end: float = 0.2
    """Weight decay at the end, approached along a cosine."""

    clip: float = 5.0
    """Largest norm of all gradients together; larger ones are scaled down to it. 0 never clips."""


SETTINGS = ("betas", "eps", "lr_scale", "weight_decay_scale")
"""What a group of parameters holds of the configuration; the rest is set at each step, or is the optimiser's own."""


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """The parameters of a model in groups, see :func:`decayed_and_spared`."""
    return decayed_and_spared(model.named_parameters())


def decayed_and_spared(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, object]]:
    """Those of some named parameters that are trained, in two groups: decayed, and not.

    Not decayed are vectors and scalars (biases, norms, layer scale) and mask tokens, as in the official
    `get_param_groups`; a group's `weight_decay_scale` is 1 or 0.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            spare = parameter.ndim <= 1 or name.endswith((".bias", ".mask_token", ".gamma"))
            (spared if spare else decayed).append(parameter)
    groups = [(decayed, 1.0), (spared, 0.0)]
    return [{"params": params, "weight_decay_scale": scale} for params, scale in groups if params]


def build_optimizer(groups: list[dict[str, object]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser of some groups of parameters. Clipping is left to the training loop, for both kinds."""
    if config.optimizer == "lamb":
        return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, max_grad_norm=None)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set the learning rate (times a group's `lr_scale`, if it has one) and weight decay of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        group["weight_decay"] = weight_decay * group["weight_decay_scale"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Bring back what an optimiser remembers; the settings of its groups stay those of the configuration."""
    kept = [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
