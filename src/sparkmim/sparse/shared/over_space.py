"""Functions of one axis, applied to all of space: what they make of an image's visible positions, in any order.

The largest value, a median or a quantile are as well defined for the visible positions as for all. An index into
positions is not, so indices are returned as tensors that raise when they are used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..layout import Layout
from .axes import without_axes
from .places import LARGEST, returned, without_meaning
from .reduce import reduction

WITHOUT_ORDER = (
    *("median", "nanmedian", "quantile", "nanquantile", "kthvalue", "topk"),
    *("prod", "any", "all", "count_nonzero"),
)
"""What has a meaning for positions in any order."""


class OverPositions(NamedTuple):
    """A function along one axis, applied to several axes that are taken as one: a reduction of these.

    Attributes:
        name, function: the function, by the name that rules go by and as it is called.
        keep: whether the axes stay, the last of them with what the function makes of it.
        arguments: other arguments of the function.
    """

    name: str
    function: Any
    keep: bool
    arguments: dict[str, Any]

    def __call__(self, x: Tensor, axes: tuple[int, ...]) -> Any:
        """Apply the function along `axes` of `x`."""
        behind = tuple(range(-len(axes), 0))
        flat = x.movedim(axes, behind).flatten(-len(axes))
        if self.arguments.get("k", 1) > flat.shape[-1]:
            raise unsupported(
                self.function, f"it takes {self.arguments['k']} positions, and only {flat.shape[-1]} are visible here"
            )
        out = self.function(flat, dim=-1, **self.arguments)

        def placed(values: Tensor) -> Tensor:
            values = values.unsqueeze(-1) if values.ndim < flat.ndim else values
            for _ in axes[1:]:
                values = values.unsqueeze(-2)
            values = values.movedim(behind, axes)
            return values if self.keep else values.squeeze(axes)

        return placed(out) if isinstance(out, Tensor) else tuple(placed(part) for part in out)


def over_space(
    execution: Execution,
    func: Any,
    name: str,
    x: Tensor,
    layout: Layout,
    axes: tuple[int, ...],
    arguments: dict[str, Any],
) -> Any:
    """Apply a function along spatial axes to the visible positions of each image; raise for one that orders them.

    Args:
        name: of the function.
        axes: at least one of space, none of samples.
        arguments: of the function, by name.
    """
    keep = bool(arguments.get("keepdim", False))
    if name in LARGEST:
        return largest(execution, func, name, x, axes, keep)
    if name not in WITHOUT_ORDER:
        raise unsupported(
            func,
            "along space its result is a place among the positions, or depends on their order, which visible patches "
            "do not have",
        )
    if axes != layout.space:
        raise unsupported(
            func,
            "it reduces one spatial axis and not the others, and rows and columns run through hidden patches; flatten "
            f"space first, as in x.flatten(2).{name}(dim=-1)",
        )
    others = {key: value for key, value in arguments.items() if key not in ("dim", "keepdim")}
    reduce: Any = OverPositions(name, func, keep or name == "topk", others)
    own = layout.per_image(layout.batch)
    own = own if reduce.keep else without_axes(own, axes)
    out = execution.reduce_space(reduce, x, layout, axes)
    if isinstance(out, Tensor):
        return execution.mark(out, own)
    values = execution.mark(out[0], own)
    return returned(name, values, without_meaning(execution, func, values))


def largest(execution: Execution, func: Any, name: str, x: Tensor, axes: tuple[int, ...], keep: bool) -> Any:
    """Return the largest (or smallest) values along axes of space, and indices that must not be used."""
    values = reduction(execution, LARGEST[name], x, axes, keep)
    return returned(name, values, without_meaning(execution, func, values))
