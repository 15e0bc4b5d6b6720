"""Standardized features: each with mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Standardization(NamedTuple):
    """Mean and standard deviation of each feature, measured on the training images."""

    mean: Float[Tensor, "feature"]
    std: Float[Tensor, "feature"]

    @classmethod
    def of(cls, features: Float[Tensor, "image feature"]) -> Standardization:
        """Measure features; constant ones are left unscaled."""
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        return cls(mean, torch.where(std > 1e-8 * (1 + mean.abs()), std, 1.0))

    def __call__(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image feature"]:
        """Return features with mean 0 and standard deviation 1, in double precision."""
        return (features.double() - self.mean) / self.std
