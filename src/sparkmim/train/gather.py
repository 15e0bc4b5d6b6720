"""What the processes of a run know, together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor

Value = TypeVar("Value")


def gather(fabric: Fabric, value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks; all of them have to call it."""
    if fabric.world_size == 1:
        return [value]
    values = [value] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def share(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Write the first process's tensors into those of all; all of them have to call it."""
    if fabric.world_size == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)
