"""What `torch.compile` needs to know of functions that an execution must see."""

from __future__ import annotations

import torch.nn.functional as F

HIDDEN = (F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh)
"""Functions that torch lists as not overridable, though function modes do see them in eager mode."""


def show_functions_to_modes() -> None:
    """Let Dynamo show :data:`HIDDEN` to function modes, as it shows all others.

    Dynamo asks a cached set which functions can be overridden; without this, a compiled network that calls these is
    refused, because the engine loses sight of the input.
    """
    import torch._dynamo.variables.torch as dynamo

    functions = getattr(dynamo, "get_overridable_functions", None)
    if functions is not None and isinstance(functions(), set):
        functions().update(HIDDEN)
