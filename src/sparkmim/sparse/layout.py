"""What the axes of a tensor that descends from the input mean.

Every such tensor has a :class:`Layout`. It says which axis counts the samples and which axes are
space; every other axis is free (channels, groups, radix, ...). Nothing is ever inferred from a tensor's shape, so a
layout survives permutations to channels-last, splits of the channel axis and reductions, and a weight never has one.

Two kinds exist. A *map* has spatial axes. A *per-image* value (a global average, a squeeze-excite gate, the noise of
stochastic depth) has none: it holds one value an image, repeated over the image's rows so that it broadcasts against
maps, whose batch axis it shares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import UnsupportedOperation, unsupported
from .extent import Degrees, area, unit

MARK = "_sparkmim_layout"
"""Attribute of a tensor that holds its layout."""


class Padding(NamedTuple):
    """An ``F.pad`` that waits for the convolution or pooling after it.

    Attributes:
        before, after: pixels along each spatial axis.
        value: of the padding.
        mode: "constant", or how its values follow from the map's: "reflect" or "replicate".
        version: of the tensor when it was padded: the padded tensor shares its memory, so it must not change.
        cropped: by which function, if one other than `F.pad` took off a part of the map's edges last.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float
    mode: str
    version: int
    cropped: Unfinished | None = None

    @property
    def sides(self) -> list[int]:
        """Pixels in the order of `F.pad`: before and after, the last axis first."""
        pairs = zip(reversed(self.before), reversed(self.after), strict=True)
        return [side for pair in pairs for side in pair]


class Unfinished(NamedTuple):
    """Why a tensor cannot be used as it is, and what may finish it.

    Attributes:
        function: that made the tensor, which errors name.
        why: it cannot be used, for errors.
        waits: what a function that finishes the tensor needs; None if nothing can.
        within: ids of the modules that were running when it was made.
        original: the error that is raised where one was raised before; by default one is made of `function` and `why`.
    """

    function: Any
    why: str
    waits: Any = None
    within: tuple[int, ...] = ()
    original: UnsupportedOperation | None = None

    def error(self) -> UnsupportedOperation:
        """Return the error for a tensor that is used as it is."""
        if self.original is not None:
            return self.original
        made = unsupported(self.function, self.why)
        made.within = self.within
        return made


class Layout:
    """The meaning of a tensor's axes. Immutable by convention; axes are non-negative.

    Attributes:
        origin: the execution whose input the tensor descends from (compared by identity).
        batch: the axis of samples: visible patches in the packed engine, images in the dense reference.
        space: the spatial axes in the order of the image's axes; empty for a per-image value.
        padding: spatial padding asked for by ``F.pad`` but not yet carried out, or None.
        flattened: if all of space has become one axis, the extents that it had; else empty.
        unfinished: why the tensor cannot be used as it is, or None; :meth:`Execution.layout` raises it.
    """

    __slots__ = ("batch", "flattened", "origin", "padding", "space", "unfinished")

    def __init__(
        self,
        origin: object,
        batch: int,
        space: tuple[int, ...],
        padding: Padding | None = None,
        flattened: tuple[int, ...] = (),
        unfinished: Unfinished | None = None,
    ) -> None:
        self.origin = origin
        self.batch = batch
        self.space = space
        self.padding = padding
        self.flattened = flattened
        self.unfinished = unfinished

    @property
    def is_map(self) -> bool:
        """Whether there are spatial axes."""
        return len(self.space) > 0

    def is_channels_first(self, ndim: int) -> bool:
        """Return whether a tensor of `ndim` axes is a map laid out as (batch, channel, *space)."""
        return self.is_map and not self.flattened and self.tracked_axes == (0, *range(2, ndim))

    @property
    def tracked_axes(self) -> tuple[int, ...]:
        """Axes that are not free, batch first."""
        return (self.batch, *self.space)

    def degrees(self, axis: int) -> Degrees:
        """Return how the extent of an axis scales with those of the map; `()` if it does not."""
        if axis not in self.space:
            return ()
        return area(len(self.flattened)) if self.flattened else unit(self.space.index(axis))

    def image_axis(self, axis: int) -> int | None:
        """Return which axis of the image an axis runs along; None for one that does not, or along all of them."""
        return self.space.index(axis) if axis in self.space and not self.flattened else None

    def moved(self, batch: int, space: tuple[int, ...]) -> Layout:
        """Return the same meaning with the axes at other places."""
        return Layout(self.origin, batch, space, self.padding, self.flattened)

    def flat(self, batch: int, axis: int, extents: tuple[int, ...]) -> Layout:
        """Return the layout with all of space as one axis, which had these extents."""
        return Layout(self.origin, batch, (axis,), self.padding, extents)

    def per_image(self, batch: int) -> Layout:
        """Return the layout of one value an image, with samples along the axis `batch`."""
        return Layout(self.origin, batch, ())

    def padded(self, padding: Padding | None) -> Layout:
        """Return the same axes with other padding waiting."""
        return Layout(self.origin, self.batch, self.space, padding, self.flattened)

    def __deepcopy__(self, memo: object) -> Layout:
        return self  # the copy of a tensor belongs to the same run; nothing of that is copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the run: a tensor that is loaded belongs to none."""
        return type(self), (None, self.batch, self.space, None, tuple(map(int, self.flattened)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Layout)
            and self.origin is other.origin
            and self.batch == other.batch
            and self.space == other.space
            and self.padding == other.padding
            and self.flattened == other.flattened
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kind = (
            f"map(batch axis {self.batch}, positions of all axes {self.space[0]})"
            if self.flattened
            else f"map(batch axis {self.batch}, spatial axes {self.space})"
            if self.is_map
            else f"per-image(batch axis {self.batch})"
        )
        return kind if self.padding is None else f"{kind} with deferred {self.padding}"
