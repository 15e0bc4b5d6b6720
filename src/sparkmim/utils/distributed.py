"""Collectives: every process of the run must call them."""

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
    """Return the values of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return [value]
    values = [value] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of rank 0 into those of every other rank."""
    if fabric.world_size == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


def destroy_process_group() -> None:
    """Destroy the process group and give its threads time to end; call it last before the interpreter exits.

    Gloo's threads release tensors only after their transfer has completed. A thread still alive while the interpreter
    shuts down aborts the process, with all work done ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/pull/179291).
    """
    gc.collect()  # a DistributedDataParallel holds the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # other references to the group keep its threads alive
