"""SciPy looks for PyData's package sparse, and a folder of tests has that name."""

from __future__ import annotations

import importlib
from contextlib import suppress

import numpy as np
import pytest

signal = pytest.importorskip("scipy.signal")


def test_resampling_after_a_search_for_sparse() -> None:
    with suppress(ModuleNotFoundError):  # as some functions of SciPy do
        importlib.import_module("sparse")
    assert signal.resample_poly(np.ones((1, 8)), 1, 2, axis=1, padtype="edge").shape == (1, 4)
