"""Modes and buffers of modules are restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparkmim.utils.modules import eval_mode, modules_of, preserved_buffers


def test_eval_mode_restores_every_modules_own_mode() -> None:
    module = nn.Sequential(nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Identity())
    module[0].eval()
    module[0][1].train()
    modes = [m.training for m in module.modules()]
    assert len(set(modes)) == 2
    with eval_mode(module):
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == modes
    with pytest.raises(RuntimeError), eval_mode(module):
        raise RuntimeError
    assert [m.training for m in module.modules()] == modes


def test_buffers_are_preserved() -> None:
    first, second, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    x = torch.randn(4, 2, requires_grad=True)
    with preserved_buffers(first, second):
        y = other(second(first(x)))
    for norm in (first, second):
        assert norm.running_mean.tolist() == [0, 0]
        assert norm.num_batches_tracked == 0
    assert other.num_batches_tracked == 1
    y.sum().backward()


def test_autograd_does_not_see_the_restoring() -> None:
    """A buffer that a graph holds may be restored: the graph needs the value that is restored."""
    norm = nn.BatchNorm1d(2).eval()
    x = torch.randn(4, 2, requires_grad=True)
    y = norm(x)
    version = norm.running_mean._version
    with preserved_buffers(norm):
        pass
    assert norm.running_mean._version == version
    y.sum().backward()


def test_modules_of_a_network_in_their_order() -> None:
    shared = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    network = nn.Sequential(shared, nn.ModuleDict({"a": shared[0], "b": nn.Sequential(shared, nn.Identity())}))
    network.register_module("none", None)
    assert modules_of(network) == list(network.modules())
    network.append(network[1])
    assert modules_of(network) == list(network.modules())
