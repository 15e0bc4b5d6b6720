"""Retrieval: how well the images of a query's class are ranked before others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .few_shot import Measured
from .frozen import LabeledFeatures

CHUNK = 1024
"""Queries that are ranked at once."""


def average_precisions(queries: LabeledFeatures, bank: LabeledFeatures | None = None) -> Tensor:
    """Return the average precision of each query that has an image of its class in the bank, by cosine similarity.

    It is the mean, over the images of the query's class, of the share of such images among all that are ranked as high
    or higher.

    Args:
        queries: labeled images.
        bank: images that are ranked; None for all other queries.
    """
    ranked = queries if bank is None else bank
    features, others = (F.normalize(part.values.double(), dim=1) for part in (queries, ranked))
    found = []
    for start in range(0, len(queries), CHUNK):
        similarity = features[start : start + CHUNK] @ others.T
        if bank is None:
            similarity.diagonal(start).fill_(-torch.inf)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        order = order[:, : order.shape[1] - (bank is None)]  # the query itself comes last
        relevant = ranked.labels[order] == queries.labels[start : start + CHUNK, None]
        precision = relevant.cumsum(1) / torch.arange(1, relevant.shape[1] + 1)
        count = relevant.sum(1)
        found.append(((precision * relevant).sum(1) / count.clamp_min(1))[count > 0])
    return torch.cat(found)


def mean_average_precision(queries: LabeledFeatures, bank: LabeledFeatures | None = None) -> Measured | None:
    """Return the mean of :func:`average_precisions` and its standard error; None if no query has a match."""
    each = average_precisions(queries, bank)
    if not len(each):
        return None
    deviation = float(each.std(correction=1)) if len(each) > 1 else math.nan
    return Measured(float(each.mean()), deviation / math.sqrt(len(each)))
