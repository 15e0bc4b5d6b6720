"""What must be equal among the processes of a run, compared before it begins."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning_fabric import Fabric

from ..utils.distributed import gather
from ..utils.fields import flag, show
from .task import Preparation

PACKAGES = ("sparkmim", "torch", "torchvision", "timm", "pillow")
"""Packages whose versions decide what is computed."""


def facts_of(ready: Preparation[Any, Any], images: Mapping[str, str]) -> dict[str, str]:
    """Return, by name, what every process of a run must find alike.

    Args:
        ready: the run as this process has prepared it.
        images: what identifies each set of images.
    """
    settings = type(ready.config).settings(ready.config.flat())
    fields = {flag(name): show(value) for name, value in ready.config.flat().items() if not settings[name].resumable}
    step = "the beginning" if ready.state is None else f"step {ready.state['step']}"
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {**images, "checkpoint": step, **versions, **fields}


def require_alike(fabric: Fabric, facts: Mapping[str, str]) -> None:
    """Raise unless the processes have found the same: else they would wait for each other, or train different models.

    Raises:
        ValueError: in all processes, with both descriptions of what differs.
    """
    first, *others = gather(fabric, dict(facts))
    for rank, other in enumerate(others, 1):
        unlike = [
            f"{name}: {first.get(name, 'none')} in process 0, {other.get(name, 'none')} in process {rank}"
            for name in {**first, **other}
            if first.get(name) != other.get(name)
        ]
        if unlike:
            raise ValueError(
                f"the processes of this run differ ({'; '.join(unlike)}). Give all the same images, --output on a file "
                "system that they share, settings (as flags where a recipe chooses them by the machine) and versions"
            )
