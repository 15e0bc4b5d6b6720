"""Functions that reduce axes, and their arguments by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .functions import functions_named

# Reductions with the names of their positional arguments after the tensor.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mean", "sum", "nanmean", "nansum"), ("dim", "keepdim", "dtype")),
    **dict.fromkeys(("amax", "amin", "logsumexp"), ("dim", "keepdim")),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), ("dim", "unbiased", "keepdim")),
    "norm": ("p", "dim", "keepdim", "dtype"),
    "vector_norm": ("ord", "dim", "keepdim"),
}

REDUCTIONS = functions_named(" ".join(_ARGUMENTS)) | dict.fromkeys(
    (torch.linalg.vector_norm, torch.linalg.norm), "vector_norm"
)
"""The functions that reduce axes, and the name of each; that of `torch.linalg.norm`, along one axis, is vector_norm."""


def bound_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a reduction by name, the tensor left out."""
    names = _ARGUMENTS[REDUCTIONS[func]]
    if names[0] == "dim" and args and type(args[0]) is bool:  # x.var(False)
        args = (None, *args)
    if names[0] == "dim" and len(args) > 1 and all(type(a) is int for a in args):  # x.mean(2, 3)
        args = (args,)
    bound = dict(zip(names, args, strict=False))
    aliases = {"axis": "dim", "keepdims": "keepdim"}
    bound.update({aliases.get(key, key): value for key, value in kwargs.items()})
    return bound


class Reduction(NamedTuple):
    """A function that reduces axes, with its other arguments."""

    function: Any
    keep: bool
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the function in :data:`REDUCTIONS`."""
        return REDUCTIONS[self.function]

    def __call__(self, x: Tensor, axes: tuple[int, ...]) -> Any:
        """Reduce `x` along `axes`."""
        return self.function(x, dim=axes if len(axes) > 1 else axes[0], keepdim=self.keep, **self.arguments)
