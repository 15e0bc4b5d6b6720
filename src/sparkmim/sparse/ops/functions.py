"""Finding torch's functions under all the names they go by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def functions_named(names: str) -> list[Any]:
    """Every form under which torch offers functions: free, method, in-place, operator and reflected operator.

    Args:
        names: separated by white space.
    """
    found = []
    for name in names.split():
        forms = (name, f"{name}_", f"__{name}__", f"__i{name}__", f"__r{name}__")
        for namespace in (torch, torch.Tensor, F, torch.special, torch._C._nn):
            found += [getattr(namespace, form) for form in forms if callable(getattr(namespace, form, None))]
    return found


def attributes_named(names: str) -> list[Any]:
    """The getters of tensor attributes."""
    return [getattr(torch.Tensor, name).__get__ for name in names.split()]
