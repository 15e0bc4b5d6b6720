"""A training step on synthetic images, as a whole and in parts that can be timed separately."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.config import Execution
from ...models.masking import random_visible
from ...models.spark import SparK
from ...objectives.base import hidden_patch_loss
from ...training.config import OptimizerConfig, Precision
from ...training.optim import build_optimizer, param_groups_weight_decay, set_rates

DTYPES: dict[Precision, torch.dtype] = {
    "32": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Data types of products, by precision."""


@dataclass(frozen=True)
class Part:
    """A part of a step.

    Attributes:
        forward: computes the outputs.
        run: forward, and backward with gradients of one.
    """

    forward: Callable[[], object]
    run: Callable[[], object]


class Step:
    """The training step of one execution.

    Args:
        model: the model, on the device; several steps may share it.
        execution: execution of the encoder.
        images: `(B, C, H, W)`.
        precision: precision of products.
        compile: compile the whole and each part.
        like: the step of another execution, which has the same parts after the encoder.
    """

    def __init__(
        self,
        model: SparK,
        execution: Execution,
        images: Tensor,
        precision: Precision,
        *,
        compile: bool,
        like: Step | None = None,
    ) -> None:
        self.model, self.execution, self.images, self.precision = model, execution, images, precision
        shape = model.grid_shape(images.shape[2:])
        self.visible = random_visible(len(images), shape, model.mask_ratio, torch.Generator().manual_seed(0))
        self.visible = self.visible.to(images.device)
        config = OptimizerConfig(lr=1e-4, betas=(0.9, 0.95))
        self.optimizer = build_optimizer(param_groups_weight_decay(model.named_parameters()), config)
        set_rates(self.optimizer, config.lr, config.weight_decay)
        self.grid = model.mask(images, self.visible)
        with torch.no_grad(), self._as_trained():
            features = self._encode()
            maps = self._densify(features)
        self.features = [feature.detach().requires_grad_() for feature in features]
        self.maps = [dense.detach().requires_grad_() for dense in maps]
        # The reference has data-dependent shapes, which cannot be compiled.
        made = torch.compile if compile and execution != "masked-dense" else lambda function: function
        self.loss = made(self._loss)
        self.parts = {"encoder": self._part(made(self._encode))}
        if like is None:
            self.parts["densify"] = self._part(made(lambda: self._densify(self.features)))
            self.parts["decoder and loss"] = self._part(made(lambda: [self._decode(self.maps)]))

    def forward(self) -> Tensor:
        """Compute the loss."""
        with self._as_trained():
            loss: Tensor = self.loss()
        return loss

    def train(self) -> None:
        """Run a whole step."""
        self.forward().backward()
        self.update()

    def update(self) -> None:
        """Run the optimizer's part of the step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def eager_forward(self) -> Tensor:
        """Compute the loss without compilation."""
        with self._as_trained():
            return self._loss()

    def _part(self, function: Callable[[], list[Tensor]]) -> Part:
        def forward() -> list[Tensor]:
            with self._as_trained():
                return function()

        def run() -> None:
            outputs = forward()
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

        return Part(forward, run)

    def _as_trained(self) -> AbstractContextManager[object]:
        self.model.execution = self.execution
        dtype = DTYPES[self.precision]
        return torch.autocast(self.images.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _loss(self) -> Tensor:
        return self.model(self.images, self.visible).loss

    def _encode(self) -> list[Tensor]:
        return self.model.encode_visible(self.images, self.grid)

    def _densify(self, features: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.model.densify, reversed(features), strict=True)
        return [densify(feature, self.grid) for densify, feature in pairs]

    def _decode(self, maps: list[Tensor]) -> Tensor:
        hidden = self.visible.numel() - self.grid.patches
        assert self.model.decoder is not None
        return hidden_patch_loss(self.model.decoder(maps), self.model.target(self.images), self.visible, hidden)
