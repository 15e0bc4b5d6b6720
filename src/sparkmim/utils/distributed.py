"""Collectives: every process of the run must call them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor

from .interruption import Interrupted

Value = TypeVar("Value")

WAIT = timedelta(minutes=30)
"""How long processes wait for each other, at most."""

LOST_CONNECTION = (
    *("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe"),
    *("timed out", "timeout", "communicator was aborted", "remote process exited"),
)
"""Lower-case texts of errors of Gloo's and NCCL's collectives whose other processes have ended or do not answer."""


def processes_here() -> int:
    """Return how many processes a launcher, such as torchrun, has started to train together.

    Raises:
        ValueError: if the variables by which it says so are incomplete: the processes would wait for each other.
    """
    processes = _variable("WORLD_SIZE", 1)
    if processes > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {processes}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; "
                f"start the processes by torchrun --nproc-per-node {processes} -m sparkmim ..., or unset WORLD_SIZE"
            )
    return processes


def local_processes() -> int:
    """Return the number of processes that train together on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1)


def _variable(name: str, default: int) -> int:
    """Return a positive number of the environment.

    Raises:
        ValueError: if it is something else.
    """
    text = os.environ.get(name, "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"the environment variable {name} is {text!r}, not a number of processes; unset it")
    return int(text) if text else default


class OtherProcessStopped(Exception):
    """Another process has stopped, and says why."""


class _Groups:
    """Groups of all processes whose tensors are on the CPU, by the default group, each made once."""

    made: dict[object, torch.distributed.ProcessGroup] = {}


def cpu_group() -> torch.distributed.ProcessGroup | None:
    """Return a group of all processes for tensors on the CPU; None for the default one, if it takes them.

    What is agreed through it does not wait for the device, and a process that does not answer is an error here, where
    NCCL would end this one.
    """
    if torch.distributed.get_backend() == "gloo":
        return None
    default = torch.distributed.group.WORLD
    if default not in _Groups.made:
        made = torch.distributed.new_group(backend="gloo", timeout=WAIT)
        assert isinstance(made, torch.distributed.ProcessGroup)
        _Groups.made[default] = made
    return _Groups.made[default]


def gather(fabric: Fabric, value: Value) -> list[Value]:
    """Return the values of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return [value]
    values = [value] * fabric.world_size
    torch.distributed.all_gather_object(values, value, group=cpu_group())
    return values


def largest(fabric: Fabric, numbers: Sequence[int]) -> list[int]:
    """Return the largest of all processes' numbers, one by one. Fast: it may be called at every step."""
    if fabric.world_size == 1:
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.int64)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=cpu_group())
    return [int(number) for number in shared]


def gather_results(fabric: Fabric, compute: Callable[[], Value]) -> list[Value]:
    """Return what each process computes by itself, in the order of their ranks.

    Raises:
        Interrupted: in all processes, if one of them was interrupted.
    """
    try:
        parts: list[Value | None] = gather(fabric, compute())
    except Interrupted:
        gather(fabric, None)
        raise
    if any(part is None for part in parts):
        raise Interrupted
    return [part for part in parts if part is not None]


def by_first_process(fabric: Fabric, act: Callable[[], object]) -> None:
    """Let the first process do something, while the others wait; they stop if it fails.

    Raises:
        Exception: in the first process, what it raised.
        OtherProcessStopped: in the others, if it failed.
    """
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            act()
        except Exception as raised:
            error = raised
    said = gather(fabric, None if error is None else str(error))[0]
    if error is not None:
        raise error
    if said is not None:
        raise OtherProcessStopped(said)


def lost_connection(error: BaseException) -> bool:
    """Return whether an error comes of a process that has ended or does not answer."""
    ours = isinstance(error, (torch.distributed.DistError, RuntimeError))
    return ours and torch.distributed.is_initialized() and any(text in str(error).lower() for text in LOST_CONNECTION)


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
        _Groups.made.clear()
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # other references to the group keep its threads alive
