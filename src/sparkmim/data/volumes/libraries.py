"""Import the libraries of the extra `volumes` where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

PACKAGES = {"blosc2": "blosc2", "nibabel": "nibabel", "pydicom": "pydicom", "SimpleITK": "SimpleITK", "zarr": "zarr"}
"""Modules that the extra brings, and the packages they are in."""


def library(module: str) -> Any:
    """Return a module of the extra `volumes`, such as nibabel.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = PACKAGES[module.partition(".")[0]]
        raise ValueError(f'volumes need {package} ({error}): pip install "sparkmim[volumes]"') from error
