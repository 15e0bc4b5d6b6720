"""A linear classifier on frozen features: multinomial logistic regression, fitted to convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = tuple(10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -5, -6))
"""Factors of half the squared weights that are tried, strongest first."""

ITERATIONS = 500
"""Of L-BFGS, at most, for each penalty; where the penalty is not tiny it converges earlier."""


class Standardisation(NamedTuple):
    """Mean and deviation of each feature, measured on the images that the classifier is fitted to."""

    mean: Float[Tensor, "feature"]
    std: Float[Tensor, "feature"]

    @classmethod
    def of(cls, features: Float[Tensor, "image feature"]) -> Standardisation:
        """Measured; a feature that never changes is left as it is."""
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        return cls(mean, torch.where(std > 1e-8 * (1 + mean.abs()), std, 1.0))

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image feature"]:
        """Features of mean 0 and deviation 1, in double precision."""
        return (features.double() - self.mean) / self.std


class LinearProbe(NamedTuple):
    """A classifier.

    Attributes:
        penalty: it was fitted with.
        standardisation: of the features it takes.
        weight: of each class.
        bias: of each class.
    """

    penalty: float
    standardisation: Standardisation
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, "class"]

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image class"]:
        """Logits."""
        return F.linear(self.standardisation(features), self.weight, self.bias)


def fit_probes(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[LinearProbe]:
    """The classifier of least cross entropy plus `penalty / 2` times its squared weights, for each penalty.

    A convex problem with one solution, so there is no learning rate to choose: L-BFGS (full batch, strong Wolfe line
    search) from the solution of the stronger penalty before. The bias is not penalised.

    Args:
        features: of labelled images, without augmentation.
        labels: their classes.
        classes: how many there are.
        penalties: from strong to weak.
    """
    standardisation = Standardisation.of(features)
    x = standardisation(features)
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    probes = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def loss(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        probes.append(LinearProbe(penalty, standardisation, weight.detach().clone(), bias.detach().clone()))
    return probes
