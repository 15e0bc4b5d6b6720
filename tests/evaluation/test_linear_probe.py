"""The linear probe is the minimum it says it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparkmim.evaluation.linear_probe import PENALTIES, fit_probes
from sparkmim.evaluation.standardization import Standardization


def problem(count: int = 60, features: int = 6, classes: int = 3, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    means = 2 * torch.randn(classes, features, generator=generator)
    return means[labels] + noise * torch.randn(count, features, generator=generator), labels


def objective(weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor, penalty: float) -> Tensor:
    return F.cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-4])
def test_the_gradient_vanishes(penalty: float) -> None:
    features, labels = problem(noise=3.0)
    (probe,) = fit_probes(features, labels, classes=3, penalties=[penalty])
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    objective(weight, bias, probe.standardization(features), labels, penalty).backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4


def test_each_penalty_is_fitted_as_if_alone() -> None:
    features, labels = problem(noise=3.0)
    along = fit_probes(features, labels, classes=3, penalties=[1.0, 0.1, 0.01])
    (alone,) = fit_probes(features, labels, classes=3, penalties=[0.01])
    torch.testing.assert_close(along[-1].weight, alone.weight, rtol=0, atol=2e-3)
    norms = [probe.weight.norm().item() for probe in along]
    assert norms == sorted(norms), "weaker penalties allow larger weights"
    assert [probe.penalty for probe in along] == [1.0, 0.1, 0.01]


def test_classes_that_are_far_apart_are_learned() -> None:
    features, labels = problem(noise=0.1)
    probe = fit_probes(features, labels, classes=3)[-1]
    assert (probe(features).argmax(1) == labels).all()
    assert list(PENALTIES) == sorted(PENALTIES, reverse=True)


def test_scales_of_features_do_not_matter() -> None:
    features, labels = problem()
    scales = torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.2, 1.0])
    one, other = (fit_probes(x, labels, classes=3, penalties=[0.1])[0] for x in (features, scales * features + 3))
    torch.testing.assert_close(one(features), other(scales * features + 3), rtol=0, atol=1e-3)


def test_standardization() -> None:
    features, _ = problem()
    features[:, 2] = 7.0  # never changes
    standardise = Standardization.of(features)
    x = standardise(features)
    torch.testing.assert_close(x.mean(0), torch.zeros(6, dtype=torch.float64))
    deviations = x.std(0, correction=0)
    assert deviations[2] == 0
    torch.testing.assert_close(deviations[[0, 1, 3]], torch.ones(3, dtype=torch.float64))
