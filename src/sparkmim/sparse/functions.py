"""Find torch's functions under all the names they go by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def functions_named(names: str) -> dict[Any, str]:
    """Return the free functions and methods of these names (separated by white space), and the name of each.

    (Rules tell functions apart by such tables: the Dynamo of torch 2.14 cannot read `__name__`.)
    """
    return _forms(names, "{}")


def operators_named(names: str) -> dict[Any, str]:
    """Return them with their in-place forms and operators, reflected ones too."""
    return functions_named(names) | operators_in_place(names) | _forms(names, "__{}__", "__r{}__")


def operators_in_place(names: str) -> dict[Any, str]:
    """Return the forms that write into their first argument."""
    return _forms(names, "{}_", "__i{}__")


def attributes_named(names: str) -> dict[Any, str]:
    """Return the getters of tensor attributes."""
    return {getattr(torch.Tensor, name).__get__: name for name in names.split()}


def _forms(names: str, *forms: str) -> dict[Any, str]:
    namespaces = (torch, torch.Tensor, F, torch.special, torch._C._nn)
    found = {getattr(n, form.format(name), None): name for name in names.split() for form in forms for n in namespaces}
    return {function: name for function, name in found.items() if callable(function)}
