"""Linear probe: multinomial logistic regression on frozen features, fitted to convergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .frozen import LabeledFeatures
from .knn import Accuracy, accuracy
from .standardization import Standardization

PENALTIES = tuple(10.0**exponent for exponent in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4, -5, -6))
"""Weights of half the sum of squared weights, strongest first."""

ITERATIONS = 500
"""Maximum of L-BFGS iterations for each penalty; unless the penalty is tiny, it converges earlier."""


class LinearProbe(NamedTuple):
    """A fitted linear classifier.

    Attributes:
        penalty: weight of the L2 penalty that it was fitted with.
        standardization: applied to features first.
        weight: weight of each class.
        bias: bias of each class.
    """

    penalty: float
    standardization: Standardization
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, "class"]

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image class"]:
        """Return the logits."""
        return F.linear(self.standardization(features), self.weight, self.bias)

    def score(self, images: LabeledFeatures) -> Accuracy:
        """Return the accuracy on labeled images."""
        return accuracy(self(images.values).argmax(1), images.labels)


def fit_probes(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[LinearProbe]:
    """Minimize cross entropy plus `penalty / 2` times the sum of squared weights, for each penalty.

    The problem is convex and has one solution, so there is no learning rate to choose: L-BFGS (full batch, strong Wolfe
    line search) starts from the solution of the previous penalty. The bias is not penalized.

    Args:
        features: features of labeled images, without augmentation.
        labels: their class indices.
        classes: number of classes.
        penalties: from strong to weak.
    """
    standardization = Standardization.of(features)
    x = standardization(features)
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
        probes.append(LinearProbe(penalty, standardization, weight.detach().clone(), bias.detach().clone()))
    return probes
