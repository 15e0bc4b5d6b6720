"""The optimizer, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim.lamb import Lamb
from torch import nn

from .config import OptimizerConfig

GROUP_SETTINGS = ("betas", "momentum", "eps", "lr_scale", "weight_decay_scale", "always_adapt")
"""What a group of parameters holds of the configuration; the rest is set at each step, or is the optimizer's own."""


def param_groups_weight_decay(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, object]]:
    """Return the trainable ones of some named parameters in two groups: decayed, and not.

    Not decayed are vectors and scalars (biases, norms, layer scale) and mask tokens, as in the official
    `get_param_groups`; a group's `weight_decay_scale` is 1 or 0.
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            spare = parameter.ndim <= 1 or name.endswith((".bias", ".mask_token", ".gamma"))
            (not_decayed if spare else decayed).append(parameter)
    groups = [(decayed, 1.0), (not_decayed, 0.0)]
    return [{"params": params, "weight_decay_scale": scale} for params, scale in groups if params]


def build_optimizer(groups: list[dict[str, object]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of some groups of parameters. Clipping is left to the training loop, for all kinds.

    LAMB scales the steps of what is decayed by its trust ratio, also where the decay is 0; timm's would not.
    """
    if config.optimizer == "lamb":
        groups = [{**group, "always_adapt": bool(group["weight_decay_scale"])} for group in groups]
        return Lamb(groups, lr=config.lr, betas=config.betas, eps=config.eps, max_grad_norm=None)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0], nesterov=config.betas[0] > 0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set the learning rate (times a group's `lr_scale`, if it has one) and weight decay of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        group["weight_decay"] = weight_decay * group["weight_decay_scale"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state; the settings of its groups stay those of the configuration.

    Raises:
        ValueError: if it is of other parameters.
    """
    kept = [{name: group[name] for name in GROUP_SETTINGS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
