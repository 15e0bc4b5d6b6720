"""Clustering: k-means of features, compared with the classes by normalized mutual information."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.seeding import Stream, keyed_generator
from .few_shot import Measured
from .frozen import LabeledFeatures

ROUNDS = 100
"""Most rounds of k-means; it has mostly converged before."""


def clustering_agreement(images: LabeledFeatures, *, repeats: int, seed: int) -> Measured:
    """Cluster features of unit length into as many clusters as there are classes, from several first centers.

    Returns:
        Mean and standard deviation of the normalized mutual information of clusters and classes.
    """
    features = F.normalize(images.values.double(), dim=1)
    count = len(images.labels.unique())
    found = torch.tensor(
        [
            normalized_mutual_information(
                k_means(features, count, keyed_generator(seed, Stream.CLUSTERS, repeat)), images.labels
            )
            for repeat in range(repeats)
        ],
        dtype=torch.float64,
    )
    return Measured(float(found.mean()), float(found.std(correction=1)) if repeats > 1 else math.nan)


def k_means(features: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return the cluster of each row: Lloyd's rounds from centers that k-means++ draws (Arthur, Vassilvitskii 2007).

    A cluster that loses all its rows takes the row that is farthest from its center.

    Args:
        features: `(rows, features)`.
        clusters: how many, at most as many as there are rows.
        generator: of the first centers.
    """
    first = int(torch.randint(len(features), (), generator=generator))
    centers = features[first : first + 1]
    nearest = (features - centers).square().sum(1)
    while len(centers) < clusters:
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        chosen = int(torch.multinomial(weights, 1, generator=generator))
        centers = torch.cat([centers, features[chosen : chosen + 1]])
        nearest = torch.minimum(nearest, (features - centers[-1]).square().sum(1))
    labels = torch.full((len(features),), -1)
    for _ in range(ROUNDS):
        away = torch.cdist(features, centers)
        new = away.argmin(1)
        empty = (torch.bincount(new, minlength=clusters) == 0).nonzero().flatten().tolist()
        for cluster in empty:
            apart = away.gather(1, new[:, None]).flatten()
            spare = torch.bincount(new, minlength=clusters)[new] > 1  # or another cluster would lose its last row
            new[int(apart.masked_fill(~spare, -1.0).argmax())] = cluster
        if torch.equal(new, labels):
            break
        labels = new
        sums = torch.zeros_like(centers).index_add_(0, labels, features)
        centers = sums / torch.bincount(labels, minlength=clusters).clamp_min(1)[:, None]
    return labels


def normalized_mutual_information(one: Tensor, other: Tensor) -> float:
    """Return the mutual information of two labelings over the mean of their entropies; 1 where both have one label."""
    _, one = one.unique(return_inverse=True)
    _, other = other.unique(return_inverse=True)
    shape = int(one.max()) + 1, int(other.max()) + 1
    joint = torch.bincount(one * shape[1] + other, minlength=shape[0] * shape[1]).double().view(shape) / len(one)
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = [float(torch.special.entr(share).sum()) for share in (rows, columns)]
    mutual = sum(entropies) - float(torch.special.entr(joint).sum())
    mean = sum(entropies) / 2
    return 1.0 if mean == 0 else max(0.0, mutual / mean)
