"""When to compile a model, and how to go on where it cannot be compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ..utils.eager import force_eager
from .config import Compile

STEPS_THAT_PAY = 5000
"""Steps from which compiling pays: it takes a minute or two for a ResNet-50, and saves tens of milliseconds a step.
(An estimate, not a measurement.)"""


def compilation(device: torch.device, steps: int, processes: int) -> Compile:
    """Return what recipes choose: to try, in long runs of one process on CUDA.

    Dynamo before torch 2.11 cannot trace all networks (docs/concepts/engine.md). On a CPU, compiling takes minutes each
    time a run is resumed and gains little (docs/guides/pretraining.md). It is not tested with synchronized batch norm.
    """
    # (torch compares its version as one, not as text.)
    pays = device.type == "cuda" and steps >= STEPS_THAT_PAY and processes == 1
    return "try" if pays and torch.__version__ >= "2.11" else "off"


def compile_model(model: nn.Module, how: Compile) -> None:
    """Compile a model's calls, from the first one on; its state-dict keys stay. "try" makes one graph or none."""
    if how != "off":
        model.compile(fullgraph=how == "try")


def uncompile(model: nn.Module) -> None:
    """Undo :func:`compile_model`."""
    model._compiled_call_impl = None  # torch has no public way back


def eager(how: Compile) -> AbstractContextManager[object]:
    """Return a context in which a compiled model runs eagerly: other modes and batch sizes than those of training would
    each be compiled anew."""
    return nullcontext() if how == "off" else force_eager()


def reason(error: Exception) -> str:
    """Return the beginning of a compiler's error message, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:157]}..."
