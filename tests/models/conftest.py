"""Fixtures of tests of models; functions and networks are in helpers.py."""

from __future__ import annotations

import pytest
import torch

from helpers import FixedClassifier


@pytest.fixture
def network() -> FixedClassifier:
    torch.manual_seed(0)
    return FixedClassifier()
