"""Finding torch's functions under all the names they go by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def functions_named(names: str) -> list[Any]:
    """The free functions and methods of these names, separated by white space."""
    return _forms(names, "{}")


def operators_named(names: str) -> list[Any]:
    """Likewise, with their in-place forms and operators, reflected ones too."""
    return _forms(names, "{}", "{}_", "__{}__", "__i{}__", "__r{}__")


def attributes_named(names: str) -> list[Any]:
    """The getters of tensor attributes."""
    return [getattr(torch.Tensor, name).__get__ for name in names.split()]


def _forms(names: str, *forms: str) -> list[Any]:
    namespaces = (torch, torch.Tensor, F, torch.special, torch._C._nn)
    candidates = [getattr(n, form.format(name), None) for name in names.split() for form in forms for n in namespaces]
    return [candidate for candidate in candidates if callable(candidate)]
