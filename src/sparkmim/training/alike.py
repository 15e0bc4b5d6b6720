"""What must be equal among the processes of a run, compared before it begins."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from ..checkpoints.run_folder import identity
from ..utils.distributed import gather
from ..utils.fields import flag, show
from .task import Preparation

PACKAGES = ("sparkmim", "torch", "torchvision", "timm", "pillow")
"""Packages whose versions decide what is computed."""


OF_THE_MACHINE = ("workers", "accumulate", "memory_efficient")
"""Fields that a recipe chooses by the machine; of the micro-batches, the processes agree on the most."""


def facts_of(ready: Preparation[Any, Any], images: Mapping[str, str], processes: int = 1) -> dict[str, str]:
    """Return, by name, what every process of a run must find alike, also how often they measure and draw together.

    Args:
        ready: the run as this process has prepared it.
        images: what identifies each set of images.
        processes: that train together; the weights of a checkpoint are compared among several.
    """
    values = ready.config.flat()
    settings = type(ready.config).settings(values)
    fields = {
        flag(name): code_of(value) if settings[name].kind in ("images", "code") else show(value)
        for name, value in values.items()
        if name not in OF_THE_MACHINE
    }
    step = "the beginning"
    if ready.state is not None:
        step = f"step {ready.state['step']}" + (f" ({identity(ready.state)})" if processes > 1 else "")
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {**images, "checkpoint": step, **versions, **fields}


def code_of(spec: Any) -> str:
    """Return the name of an object of a Python file and a digest of the file, whose path may differ; else the name.

    Paths of images may differ, too: they are compared by their files' names.
    """
    text = "" if spec is None else str(spec)
    path, found, name = text.partition(".py:")
    if found and Path(f"{path}.py").is_file():
        digest = sha256(Path(f"{path}.py").read_bytes()).hexdigest()[:16]
        return f"{name.partition('://')[0]} of {Path(path).name}.py ({digest})"
    return "a path" if "/" in text else text


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
