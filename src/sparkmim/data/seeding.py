"""Randomness that depends on a key alone, and not on what was drawn before: a resumed run draws what it would have."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What randomness is drawn for: the second part of every key, after the seed. A number is never given twice."""

    HELD_OUT = 1
    """Which images are held out."""

    ORDER = 2
    """The order of an epoch."""

    VIEW = 3
    """The view and mask of an image in an epoch."""

    STEP = 4
    """What a network draws in a step, such as dropout."""

    PRETRAIN_WEIGHTS = 5
    """Initial weights of a pretraining."""

    LABEL_SHARE = 6
    """Which images belong to a share of the labels."""

    FOLDS = 7
    """How images are dealt to the folds of a cross-validation."""

    FINETUNE_WEIGHTS = 8
    """Initial weights of a fine-tuning."""

    REFINE_WEIGHTS = 9
    """Initial weights of a refinement's projector."""

    FEW_SHOT = 10
    """Which images of each class a few-shot draw takes."""

    CLUSTERS = 11
    """The first centers of a clustering."""

    PROBE = 12
    """The order of images that an attentive probe is fitted to."""


def keyed_seed(*key: int) -> int:
    """Return a seed of 63 bits from non-negative integers; different keys give independent seeds.

    Source: numpy's SeedSequence.
    """
    small = min(key) >= 0 and max(key) < 2**32
    entropy = np.array(key, np.uint32) if small else key  # the same words, in less time
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def keyed_generator(*key: int) -> torch.Generator:
    """Return a generator on the CPU, seeded by :func:`keyed_seed`."""
    return torch.Generator().manual_seed(keyed_seed(*key))
