"""What the processes of a run know, together."""

from __future__ import annotations

import gc
import time
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
def broadcast(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Write the first process's tensors into those of all; all of them have to call it."""
    if fabric.world_size == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


def destroy_process_group() -> None:
    """End the group of processes; the last thing before the interpreter ends.

    Gloo's threads let go of tensors after what was exchanged has arrived. A thread that comes too late for the
    interpreter aborts the process, with all work done ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/pull/179291).
    """
    gc.collect()  # a DistributedDataParallel holds the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # whoever else holds it keeps its threads, which get the time to end what they do
