"""Functions that Dynamo must not hide from an execution."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..utils.eager import force_eager
from .registry import RULES


def show_functions_to_modes() -> None:
    """Let Dynamo show function modes all functions that have rules or write in place, as eager mode does.

    Dynamo asks a cached set which functions can be overridden, and hides others. Without this, a network that calls
    `F.hardswish` or `F.pad` (which Dynamo traces into, down to `torch._C._nn.pad`) is refused when it is compiled,
    because the engine no longer traces the input; and `torch.index_put_` and its like write into a map untraced.
    """
    import torch._dynamo.variables.torch as dynamo

    functions = getattr(dynamo, "get_overridable_functions", None)
    if functions is not None and isinstance(functions(), set):
        functions().update(RULES, _functions_in_place())


# Dynamo then calls it where it would trace it. (Set as by torch.compiler.assume_constant_result, which imports Dynamo.)
show_functions_to_modes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def compiled_parts_eager() -> AbstractContextManager[Any]:
    """Return a context in which parts of a network that are compiled by themselves run eagerly.

    Compiled, they would be traced under an execution that does not know of it. Where the whole run is being compiled
    there is nothing to do.
    """
    if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
        return nullcontext()
    return force_eager()


def _functions_in_place() -> list[Any]:
    namespaces = (torch, torch._C._nn)
    return [getattr(n, name) for n in namespaces for name in dir(n) if name.endswith("_") and not name.endswith("__")]
