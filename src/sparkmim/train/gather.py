"""What the processes of a run know, together."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed
from lightning_fabric import Fabric

Value = TypeVar("Value")


def gather(fabric: Fabric, value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; all of them have to call it."""
    if fabric.world_size == 1:
        return [value]
    values = [value] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
