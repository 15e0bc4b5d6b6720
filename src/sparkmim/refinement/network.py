"""The network that is refined: an encoder, and the projector in whose output views are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..models.backbone import Backbone
from .config import ContrastConfig


class Projected(NamedTuple):
    """Views as they are compared.

    Attributes:
        projections: `(views, channels)`.
        predictions: of the projections of other views; the projections themselves without a predictor.
    """

    projections: Tensor
    predictions: Tensor


class ContrastiveNetwork(nn.Module):
    """Project the mean of the deepest map; what that does not depend on (a classifier, say) is not trained.

    Args:
        backbone: the encoder.
        config: of the projector.

    Attributes:
        queue: `(--queue, projection)`, projections of images before, of length 1, the newest last; None without.
        filled: how many of them have been set.
    """

    queue: Tensor | None
    filled: Tensor

    def __init__(self, backbone: Backbone, config: ContrastConfig) -> None:
        super().__init__()
        self.encoder = backbone.module
        self._backbone = backbone
        channels, width, out = backbone.channels[-1], config.projector_width, config.projection
        self.projector = perceptron(channels, width, out)
        self.predictor = None
        self.register_buffer("queue", None)
        if config.positives == "neighbors":
            self.predictor = perceptron(out, width, out)
            self.register_buffer("queue", torch.zeros(config.queue, out))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        for name in backbone.unreached_parameters(1):  # several processes would wait for their gradients
            self.encoder.get_parameter(name).requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """All that is trained."""
        return self

    @property
    def backbone(self) -> Backbone:
        """The encoder's feature maps."""
        return self._backbone

    def forward(self, images: Float[Tensor, "view channel height width"]) -> Projected:
        """Return the projections of views."""
        projections = self.projector(self._backbone(images)[-1].flatten(2).mean(2))
        return Projected(projections, projections if self.predictor is None else self.predictor(projections))

    @torch.no_grad()
    def remember(self, projections: Float[Tensor, "view channel"]) -> None:
        """Append projections to the queue; the oldest ones leave it."""
        assert self.queue is not None
        new = F.normalize(projections.detach().to(self.queue.dtype), dim=1)[-len(self.queue) :]
        self.queue.copy_(torch.cat([self.queue[len(new) :], new]))
        self.filled.copy_((self.filled + len(new)).clamp_max(len(self.queue)))


def perceptron(channels: int, width: int, out: int) -> nn.Sequential:
    """Return a perceptron of one hidden layer with batch norm (SimCLR, arXiv 2002.05709, section 2.1)."""
    return nn.Sequential(
        nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out)
    )
