"""How many images fit into memory, estimated before the run from two forward passes of an image or two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..utils.memory import host_memory
from ..utils.modules import preserved_buffers
from .config import Precision

STATE_BYTES = 16
"""Bytes of a parameter: weight, gradient and two averages of the optimizer, in float32."""

SLACK = 1.5
"""What a step needs besides what forward keeps for backward: gradients of activations, workspace, fragmentation."""


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Return the bytes that a process can use on a device.

    On a CPU it is half of what :func:`~sparkmim.utils.memory.host_memory` tells, divided among the processes.
    """
    if device.type == "cuda":  # what an earlier run in this process has left in torch's hands is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)  # torch 2.6 has none
        return min(free + kept, int(total * share) - torch.cuda.memory_allocated(device))
    if device.type == "mps":  # which is the machine's own memory
        return min(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory(), host_memory())
    return host_memory() // 2 // processes


def kept_bytes(model: nn.Module, inputs: tuple[Tensor, ...], precision: Precision) -> int:
    """Return the bytes that a forward pass keeps for backward, beside the parameters; the model stays as it is."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # an execution has no rule for it, and checkpoints keep packed tensors
            storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        preserved_buffers(model),
        torch.random.fork_rng(devices=()),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32"):
            out = model(*inputs)
    del out
    return sum(size for pointer, size in storages.items() if pointer not in own)


def images_that_fit(
    model: nn.Module, inputs: Callable[[int], tuple[Tensor, ...]], precision: Precision, memory_bytes: int
) -> int:
    """Return how many images one forward and backward pass can take within the memory given; 0 if not even one.

    Args:
        model: on the CPU.
        inputs: what the model takes, for a number of images.
        precision: in which it will be trained.
        memory_bytes: that are free.
    """
    fewest = 1
    try:
        few = kept_bytes(model, inputs(fewest), precision)
    except ValueError:  # batch norm has one value for each channel; any other error comes again
        fewest = 2
        few = kept_bytes(model, inputs(fewest), precision)
    each = kept_bytes(model, inputs(fewest + 1), precision) - few
    whatever = few - fewest * each  # the parameters in half precision
    state = STATE_BYTES * sum(p.numel() for p in model.parameters()) + SLACK * whatever
    return max(0, int((memory_bytes - state) / (SLACK * each)))


def micro_batches(images: int, fits: int) -> int:
    """Return the fewest equal parts of a batch of images that fit; the smallest parts where not even one image does."""
    return next((n for n in range(1, images + 1) if images % n == 0 and images // n <= max(1, fits)), images)
