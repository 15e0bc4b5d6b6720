"""Attentive probe: a linear classifier on positions of a feature map that are weighted by learned queries.

Source: attentive probing as in AIM (arXiv 2401.08541) and CAPI (arXiv 2502.08769), with the few parameters of efficient
probing (arXiv 2506.10178): queries attend to the features themselves, and each pools its own share of the channels. It
starts as the linear probe of mean features, which is what queries of zeros pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.seeding import Stream, keyed_generator
from .frozen import LabeledFeatures
from .knn import Accuracy, accuracy
from .linear_probe import LinearProbe
from .standardization import Standardization

RATES = (0.0, 1e-3, 3e-3, 1e-2)
"""Learning rates to choose from; with 0 the probe stays the linear one."""

QUERIES = 8
"""Queries at most; as many as divide the number of channels."""

EPOCHS, BATCH_SIZE = 40, 256
"""Passes over the training images, and images of a step."""


class AttentiveProbe(NamedTuple):
    """A fitted classifier of feature maps.

    Attributes:
        penalty: weight of the L2 penalty on the classifier's weights.
        rate: learning rate that it was fitted with.
        standardization: applied to the features of every position.
        queries: attend to positions; each pools an equal share of the channels.
        weight: weight of each class.
        bias: bias of each class.
    """

    penalty: float
    rate: float
    standardization: Standardization
    queries: Float[Tensor, "query feature"]
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, "class"]

    @classmethod
    def of(cls, probe: LinearProbe) -> AttentiveProbe:
        """Return what starts as a linear probe of mean features, and computes the same."""
        channels = probe.weight.shape[1]
        queries = torch.zeros(math.gcd(QUERIES, channels), channels)
        return cls(probe.penalty, 0.0, probe.standardization, queries, probe.weight.float(), probe.bias.float())

    def __call__(self, maps: Float[Tensor, "image position feature"]) -> Float[Tensor, "image class"]:
        """Return the logits."""
        x = self.standardization(maps).float()
        scores = torch.einsum("npc,qc->nqp", x, self.queries) / math.sqrt(x.shape[2])
        values = x.unflatten(2, (len(self.queries), -1))
        pooled = torch.einsum("nqp,npqc->nqc", scores.softmax(2), values).flatten(1)
        return F.linear(pooled, self.weight, self.bias)

    @torch.no_grad()
    def score(self, images: LabeledFeatures) -> Accuracy:
        """Return the accuracy on labeled images."""
        predicted = [self(part).argmax(1) for part in images.values.split(BATCH_SIZE)]
        return accuracy(torch.cat(predicted), images.labels)


def fit_attentive_probe(start: LinearProbe, images: LabeledFeatures, *, rate: float, seed: int = 0) -> AttentiveProbe:
    """Minimize the linear probe's objective in queries, weights and bias, from the linear probe on.

    AdamW without decay of its own, batches in random order, and a learning rate that falls to 0 as a cosine. The
    queries make the objective nonconvex, so the result depends on the learning rate; validation images choose it.

    Args:
        start: fitted to the mean features of the same images.
        images: feature maps of labeled images, without augmentation.
        rate: learning rate of the first step; 0 returns the linear probe.
        seed: of the order of images.
    """
    probe = AttentiveProbe.of(start)._replace(rate=rate)
    if rate == 0:
        return probe
    learned = [value.clone().requires_grad_() for value in (probe.queries, probe.weight, probe.bias)]
    queries, weight, bias = learned
    probe = probe._replace(queries=queries, weight=weight, bias=bias)
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    steps = EPOCHS * math.ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for chosen in _batches(len(images), seed):
        logits = probe(images.values[chosen])
        loss = F.cross_entropy(logits, images.labels[chosen]) + probe.penalty / 2 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe._replace(queries=queries.detach(), weight=weight.detach(), bias=bias.detach())


def _batches(count: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of each step's images."""
    for epoch in range(EPOCHS):
        order = torch.randperm(count, generator=keyed_generator(seed, Stream.PROBE, epoch))
        yield from order.split(BATCH_SIZE)
