"""Contrastive losses against their formulas written out, in float64, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparkmim import Backbone
from sparkmim.refinement.config import ContrastConfig
from sparkmim.refinement.losses import found_positives, nearest_positives, neighbor_contrast, nt_xent
from sparkmim.refinement.network import ContrastiveNetwork, perceptron


def projections(views: int = 8, channels: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(
        views, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def nt_xent_by_formula(z: Tensor, temperature: float) -> Tensor:
    """Equation 1 of SimCLR, a sum over pairs written out."""
    losses = []
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.e ** (cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        losses.append(-torch.log(math.e ** (cosine(z[i], z[j]) / temperature) / others))
    return torch.stack(losses).mean()


def neighbors_by_formula(z: Tensor, p: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Equation 3 of NNCLR, for both views."""
    losses = []
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        nearest = max(queue.detach(), key=lambda q: float(cosine(z[i].detach(), q)))
        others = sum(math.e ** (cosine(nearest, p[k]) / temperature) for k in range(1 - i % 2, len(z), 2))
        losses.append(-torch.log(math.e ** (cosine(nearest, p[j]) / temperature) / others))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_nt_xent_is_its_formula(temperature: float) -> None:
    z, other = projections(), projections()
    loss, wanted = nt_xent(z, z, temperature), nt_xent_by_formula(other, temperature)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(z.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_losses_of_parts_are_those_of_the_whole() -> None:
    """What processes compute, each of its own views among all, has the mean of the whole."""
    z = projections()
    parts = [nt_xent(z[first : first + 4], z, 0.2, first=first) for first in (0, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), nt_xent(z, z, 0.2))
    positives = projections(seed=1).detach()
    parts = [neighbor_contrast(positives[first : first + 4], z, 0.2, first=first) for first in (0, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), neighbor_contrast(positives, z, 0.2))


def test_neighbor_contrast_is_its_formula() -> None:
    queue = F.normalize(projections(6, seed=3).detach(), dim=1)
    z, other, p, q = projections(), projections(), projections(seed=1), projections(seed=1)
    loss = neighbor_contrast(nearest_positives(z, queue, torch.tensor(6)), p, 0.3)
    wanted = neighbors_by_formula(other, q, queue, 0.3)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    assert z.grad is None


def test_only_what_has_been_set_in_the_queue_is_a_neighbor() -> None:
    z = projections().detach()
    queue = torch.cat([F.normalize(z[:3], dim=1), F.normalize(projections(2, seed=4).detach(), dim=1)])
    torch.testing.assert_close(nearest_positives(z, queue, torch.tensor(0)), F.normalize(z, dim=1))
    found = nearest_positives(z, queue, torch.tensor(2))
    assert all(any(torch.equal(row, known) for known in queue[-2:]) for row in found)
    assert torch.equal(nearest_positives(z, queue, torch.tensor(5))[:3], queue[:3])


def test_a_queue_holds_the_newest() -> None:
    backbone = Backbone.create("test_resnet")
    network = ContrastiveNetwork(backbone, ContrastConfig(positives="neighbors", projection=5, queue=4))
    first, second = torch.randn(3, 5), torch.randn(2, 5)
    network.remember(first)
    assert int(network.filled) == 3
    network.remember(second)
    assert int(network.filled) == 4
    torch.testing.assert_close(network.queue, F.normalize(torch.cat([first[1:], second]), dim=1))


def test_found_positives_counts_nearest_views() -> None:
    z = torch.eye(4).repeat_interleave(2, 0) + 0.01 * torch.randn(8, 4)
    assert found_positives(z, z) == 1
    shuffled = z[torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])]
    assert found_positives(shuffled, shuffled) == pytest.approx(0.5)


def test_half_precision_is_compared_in_float32() -> None:
    z = projections().detach().bfloat16()
    assert nt_xent(z, z, 0.1).dtype == torch.float32
    assert perceptron(4, 8, 2)(torch.randn(3, 4)).shape == (3, 2)
