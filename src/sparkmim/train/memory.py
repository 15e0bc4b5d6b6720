"""How many images fit into memory, estimated before the run from one forward pass of two images."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..masking import random_visible
from ..spark import SparK
from .config import PretrainConfig

STATE_BYTES = 16
"""Of a parameter: weight, gradient and two averages of the optimiser, in float32."""

SLACK = 1.5
"""What a step needs besides what forward keeps for backward: gradients of activations, workspace, fragmentation."""


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes free on a device; on a CPU, half of the machine's free memory, divided among its processes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def kept_bytes(model: SparK, config: PretrainConfig) -> int:
    """Bytes that one image makes a forward pass keep for backward."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # an execution has no rule for it, and checkpoints keep packed tensors
            storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    size = config.data.image_size
    images = torch.zeros(2, config.model.in_chans, *size)
    visible = random_visible(2, model.grid_shape(size), config.model.mask_ratio)
    mixed = config.run.precision != "32"
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            out = model(images, visible)
    del out
    return sum(size for pointer, size in storages.items() if pointer not in own) // 2


def images_that_fit(model: SparK, config: PretrainConfig, memory_bytes: int) -> int:
    """How many images one forward and backward pass can take within the memory given; 0 if not even one."""
    state = STATE_BYTES * sum(p.numel() for p in model.parameters())
    return max(0, int((memory_bytes - state) / (SLACK * kept_bytes(model, config))))
