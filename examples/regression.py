"""A transfer task of one's own: predict a number for each image, from a CSV file of rows `path,number`.

Use it by naming the file and the class; its settings are flags:

    sparkmim finetune --encoder runs/mine --data train.csv --val-data val.csv --output runs/regression \
        --task examples/regression.py:Regression --task.loss smooth-l1
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim import TransferTask
from sparkmim.data.sources.folder import Files
from sparkmim.data.targets import ImagesWithArrays


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """The settings of the task."""

    loss: Literal["squared", "smooth-l1"] = "squared"
    """squared, or smooth-l1, which large errors dominate less."""


class Standardized(nn.Linear):
    """A linear layer whose output has the mean and deviation of the training targets when it has none of its own."""

    def __init__(self, channels: int, mean: float, std: float) -> None:
        super().__init__(channels, 1)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, features: Tensor) -> Tensor:
        """Return predictions `(B, 1)` in the targets' unit."""
        return super().forward(features) * self.std + self.mean


class Regression(TransferTask[ImagesWithArrays]):
    """Predict a number for each image."""

    settings_type = RegressionSettings
    metric = "mae"
    greater_is_better = False

    def read_split(self, path: Path, option: str, train: ImagesWithArrays | None) -> ImagesWithArrays:
        """Return the images of a CSV file with their numbers."""
        if path.suffix != ".csv":
            raise ValueError(f"expected a .csv file of rows `path,number` for {option}, got {path}")
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        try:
            numbers = np.array([[float(row[1])] for row in rows], dtype=np.float32)
        except (IndexError, ValueError) as error:
            raise ValueError(f"expected rows `path,number` in {path}, got one that is not ({error})") from error
        missing = [row[0] for row in rows if not (path.parent / row[0]).is_file()]
        if missing or not rows:
            raise ValueError(f"{path} lists {'no images' if not rows else f'images that do not exist: {missing[:4]}'}")
        return ImagesWithArrays(Files(path.parent, [row[0] for row in rows]), numbers)

    def target(self, images: ImagesWithArrays, index: int) -> Tensor:
        """Return an image's number, `(1,)`."""
        return torch.from_numpy(images.targets[index])

    def describe_targets(self, train: ImagesWithArrays) -> dict[str, Any]:
        """Return mean and deviation of the training targets."""
        return {"mean": float(train.targets.mean()), "std": max(float(train.targets.std()), 1e-6)}

    def head(self, channels: int, targets: Mapping[str, Any]) -> nn.Module:
        """Return a linear layer in the targets' unit."""
        return Standardized(channels, targets["mean"], targets["std"])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean error of the kind that the settings name."""
        function = F.mse_loss if self.settings.loss == "squared" else F.smooth_l1_loss
        return function(outputs.float(), targets)

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean absolute error, and the share of the variance that is explained."""
        error = outputs - targets
        variance = (targets - targets.mean()).square().mean().clamp_min(1e-12)
        return {"mae": float(error.abs().mean()), "r2": float(1 - error.square().mean() / variance)}
