"""Sizes that a network reads off a map: numbers of the whole map, which remember how they grow with it.

A network that reads the size of a map must behave as it would on the whole map, although the tensor in its hands may
hold visible patches alone. `x.shape[2]` is therefore an :class:`Extent`: to Python the extent of the whole map
(comparisons, `//`, `max`, keys of tables, logarithms see that), to the rules also the extent of the tensor at hand,
which takes its place where it returns to a function as a size. What is computed from extents and is no longer
proportional to them (`h - 1`, `h ** 0.5`) is a number of the whole map too. Such numbers are refused where they meet a
tensor of the input: a sum over visible positions divided by the number of all is no mean.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

from torch import Tensor

from .errors import unsupported

Degrees = tuple[int, ...]
"""How often the extent of each spatial axis is a factor, without zeros at the end: `(1,)` for the height of a map,
`(1, 1)` for height x width, `()` for an ordinary number. (The number of images is one.)"""

MEASURED = (
    "it computes with the size of the map, which is that of all positions while it sees the visible ones alone; for an "
    "average over the map use x.mean((2, 3))"
)

OF_THE_BATCH = "_sparkmim_of_the_batch"
"""Attribute of tensors that were taken over all positions of all images, and of what is computed from them."""

SMALLEST_LOST = 5
"""Whole numbers below it are common as constants, and not looked for among the numbers that meet a tensor."""


FEWEST_LOST = 16
"""Products of the extents of single axes below it are not looked for either."""


class Extent:
    """A number computed from sizes of a map: an int or float to Python, as which it also counts in `isinstance`.

    It is no subclass of int, because `2.0 * h` would then be an ordinary float.

    Attributes:
        value: on the whole map.
        local: of the tensor at hand, where it is proportional to the map's extents: a fraction of a position, where
            patches are smaller than that (half the height of a map whose patches are one pixel).
        degrees: of these extents; empty where it is not proportional to them.
        told: what the network is told, where values are noted that leave as ordinary numbers, by `int()` or the like.
    """

    __slots__ = ("degrees", "local", "told", "value")

    def __init__(
        self, value: float, local: float | Fraction | None = None, degrees: Degrees = (), told: Told | None = None
    ) -> None:
        self.value = value
        self.local = local
        self.degrees = degrees
        self.told = Told(()) if told is None else told

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Extent, (self.value, self.local, self.degrees)

    # --- leaving as an ordinary number --------------------------------------------------------------------------

    def __index__(self) -> int:
        self._lose()
        return operator.index(self.value)  # type: ignore[arg-type]

    def __int__(self) -> int:
        self._lose()
        return int(self.value)

    def __float__(self) -> float:
        self._lose()
        return float(self.value)

    def _lose(self) -> None:
        """Note a number of positions, or one computed from sizes.

        The extent of one axis may be any constant; once those of all axes have left, their product is a number of
        positions.
        """
        self.told.left.add(self.value)
        if self.degrees and sum(self.degrees) < len(self.told.grid):
            self.told.axes.setdefault(self.degrees, set()).add(self.value)
            if all(unit(axis) in self.told.axes for axis in range(len(self.told.grid))):
                for extents in product(*[self.told.axes[unit(axis)] for axis in range(len(self.told.grid))]):
                    if math.prod(extents) >= FEWEST_LOST:
                        self.told.lost.update((math.prod(extents), 1 / math.prod(extents)))
            return
        for number in (self.value, math.sqrt(abs(self.value))):
            if number >= SMALLEST_LOST or number % 1:
                self.told.lost.update((number, 1 / number))

    def __bool__(self) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    # --- comparisons, which the whole map decides ---------------------------------------------------------------

    # --- arithmetic that stays proportional ---------------------------------------------------------------------

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, (tuple, list, str)):
            return other * self.value  # type: ignore[operator]
        if not _is_number(other):
            return _meeting(operator.mul, self, other)
        value = self.value * value_of(other)
        if not _follow(self, other):
            return _derived(value, self, other)
        return extent(value, self.local * local_of(other), added(self.degrees, degrees_of(other)), self.told)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return _quotient(self, other, operator.floordiv)

    def __rfloordiv__(self, other: Any) -> Any:
        return _quotient(other, self, operator.floordiv)

    def __truediv__(self, other: Any) -> Any:
        return _quotient(self, other, operator.truediv)

    def __rtruediv__(self, other: Any) -> Any:
        return _quotient(other, self, operator.truediv)

    def _rounded(self, function: Callable[[Any], int]) -> Any:
        whole = function(self.value)
        if whole == self.value and self.local is not None:
            return Extent(whole, self.local, self.degrees, self.told)
        return Extent(whole, told=self.told)

    def __ceil__(self) -> Any:
        return self._rounded(math.ceil)

    def __floor__(self) -> Any:
        return self._rounded(math.floor)

    def __trunc__(self) -> Any:
        return self._rounded(math.trunc)

    def __round__(self, digits: int | None = None) -> Any:
        return self._rounded(round) if digits is None else Extent(round(self.value, digits), told=self.told)

    def __pos__(self) -> Extent:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def is_integer(self) -> bool:
        """Return whether the number is whole."""
        return float(self.value).is_integer()

    def bit_length(self) -> int:
        """Return the bits that the number on the whole map takes."""
        return int(self.value).bit_length()


def _is_number(value: Any) -> bool:
    return type(value) is Extent or isinstance(value, (int, float))


def _follow(*operands: Any) -> bool:
    """Return whether all extents among the operands are proportional to those of a map."""
    return all(type(operand) is not Extent or operand.degrees for operand in operands)


def _derived(value: Any, *operands: Any) -> Any:
    """Return a number that is not proportional to the map."""
    return Extent(value, told=next(operand.told for operand in operands if type(operand) is Extent))


def _quotient(a: Any, b: Any, divide: Callable[[Any, Any], Any]) -> Any:
    """Divide: a quotient that is exact on the whole map scales with it."""
    if not (_is_number(a) and _is_number(b)):
        return _meeting(divide, a, b)
    value = divide(value_of(a), value_of(b))
    if not _follow(a, b) or value_of(a) % value_of(b):
        return _derived(value, a, b)
    told = (a if type(a) is Extent else b).told
    local = Fraction(local_of(a)) / Fraction(local_of(b))
    found = extent(value, local, added(degrees_of(a), degrees_of(b), -1), told)
    return _derived(value, a, b) if type(found) is Extent and not found.degrees else found


def _unfollowed(compute: Callable[..., Any], reflected: bool) -> Callable[[Extent, Any], Any]:
    """Return the method of an operator whose result is a number of the whole map and not proportional to it."""

    def method(self: Extent, other: Any) -> Any:
        operands = (other, self) if reflected else (self, other)
        if not _is_number(other):
            return _meeting(compute, *operands)
        return _derived(compute(*map(value_of, operands)), self, other)

    return method


for _name in ("add", "sub", "mod", "pow", "lshift", "rshift", "and", "or", "xor"):
    _compute = getattr(operator, f"__{_name}__")
    setattr(Extent, f"__{_name}__", _unfollowed(_compute, reflected=False))
    setattr(Extent, f"__r{_name}__", _unfollowed(_compute, reflected=True))
for _name in ("neg", "abs", "invert"):
    _compute = getattr(operator, f"__{_name}__")
    setattr(Extent, f"__{_name}__", lambda self, compute=_compute: _derived(compute(self.value), self))


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Extent, Any], Any]:
    """Return the method of a comparison, which the whole map decides."""

    def method(self: Extent, other: Any) -> Any:
        return compare(self.value, value_of(other)) if _is_number(other) else _meeting(compare, self, other)

    return method


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Extent, f"__{_name}__", _comparison(getattr(operator, f"__{_name}__")))


def _meeting(compute: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """Compute with an extent and a tensor, which must not descend from the input; what comes out is known for it.

    Raises:
        UnsupportedOperation: for a tensor of the input.
    """
    tensor = next((operand for operand in (a, b) if isinstance(operand, Tensor)), None)
    if tensor is None:
        return NotImplemented
    if hasattr(tensor, "_sparkmim_layout"):
        raise unsupported(compute, MEASURED)
    if hasattr(tensor, OF_THE_BATCH):
        raise scaled_batch(compute, next(value_of(operand) for operand in (a, b) if operand is not tensor))
    out = compute(value_of(a), value_of(b))
    out._sparkmim_measured = True
    return out


def scaled_batch(func: Any, number: float) -> Exception:
    """Return the error for a statistic of all images that is scaled by a number computed from sizes of the map."""
    return unsupported(
        func,
        f"it scales a statistic of all images by {number:g}, which is computed from the size of the map, or may be, "
        "and only some positions are visible: let torch count them, as in x.var((0, 2, 3)), or use F.batch_norm",
    )


class Told:
    """What a network is told of sizes in one pass, shared by the executions that answer it.

    Attributes:
        grid: patches along each axis of the image whose sizes it is told. (A check of a rectangle of visible patches
            tells it those of the rectangle.)
        lost: sizes that it has made ordinary numbers of, and numbers near at hand that are computed from these.
        axes: extents of single axes that it has made ordinary numbers of, by their degrees.
        left: all numbers computed from sizes that have left as ordinary ones, however small (see `totals.py`).
        totals: whether it has taken values over all positions of a map.
        batches: whether it has taken values over all positions of all images.
        read: whether it has read any size of a map.
        plain: whether it is told sizes of the tensors at hand as ordinary numbers, as Dynamo tells them. (A pass in
            this way, compared with an ordinary one, shows whether a network can be compiled.)
    """

    def __init__(self, grid: Sequence[int]) -> None:
        self.grid = tuple(grid)
        self.lost: set[float] = set()
        self.axes: dict[Degrees, set[float]] = {}
        self.left: set[float] = set()
        self.totals = False
        self.batches = False
        self.read = False
        self.plain = False
        self._scales: tuple[int, tuple[float, ...]] = (0, ())

    def scales(self) -> tuple[float, ...]:
        """Return what a network may scale by to divide by a size that has left: it, its square, its root, inverses.

        Products of the extents of all axes are among them, 1 is not.
        """
        if self._scales[0] != len(self.left):
            powers = {power for n in self._sizes() for power in (n, n * n, math.sqrt(n))}
            self._scales = len(self.left), tuple(sorted(powers | {1 / n for n in powers}))
        return self._scales[1]

    def _sizes(self) -> set[float]:
        """Return what has left, and products of the extents of all axes that have."""
        axes = [self.axes.get(unit(axis), set()) for axis in range(len(self.grid))]
        return {abs(n) for n in (*self.left, *map(math.prod, product(*axes))) if n not in (0, 1)}

    def corrections(self, images: int) -> list[float]:
        """Return what a statistic of so many images may be scaled by for the number n of its values.

        That is n, n / (n - 1) and their inverses.
        """
        numbers = {count * n for n in self._sizes() for count in (1, images)}
        factors = [factor for n in numbers for factor in (n, n / (n - 1))]
        return factors + [1 / factor for factor in factors]


class MapSize(tuple[Any, ...]):
    """The shape of a map as its network reads it: what `torch.Size` is, of extents. (That cannot be derived from.)"""

    __slots__ = ()

    def numel(self) -> Any:
        """Return the product."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return MapSize(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> MapSize:
        return MapSize((*self, *other))

    def __repr__(self) -> str:
        return f"torch.Size([{', '.join(map(repr, self))}])"


def extent(value: float, local: float | Fraction, degrees: Degrees, told: Told | None = None) -> Any:
    """Return an :class:`Extent`; an ordinary number where the extents of the map have cancelled out.

    Args:
        value: on the whole map.
        local: of the tensor at hand.
        degrees: of the map's extents; a number that is divided by some of them is not proportional to the map.
        told: see :class:`Extent`.
    """
    if not degrees:
        return value
    local = int(local) if local % 1 == 0 else local
    return Extent(value, local, degrees, told) if min(degrees) >= 0 else Extent(value, told=told)


def unit(axis: int) -> Degrees:
    """Return the degrees of the extent of one spatial axis."""
    return (*[0] * axis, 1)


def area(dims: int) -> Degrees:
    """Return the degrees of the product of all spatial extents."""
    return (1,) * dims


def degrees_of(value: Any) -> Degrees:
    """Return how a number scales with the map; `()` for one that is not known to."""
    return value.degrees if type(value) is Extent else ()


def value_of(value: Any) -> Any:
    """Return a number as it is on the whole map; anything else as it is."""
    return value.value if type(value) is Extent else value


def local_of(value: Any) -> Any:
    """Return a number as it is of the tensor at hand, None where that is not known."""
    return value.local if type(value) is Extent else value


def added(a: Degrees, b: Degrees, sign: int = 1) -> Degrees:
    """Return the degrees of a product, or with `sign` -1 of a quotient."""
    length = max(len(a), len(b))
    total = [x + sign * y for x, y in zip(_padded(a, length), _padded(b, length), strict=True)]
    while total and total[-1] == 0:
        total.pop()
    return tuple(total)


def _padded(degrees: Degrees, length: int) -> Sequence[int]:
    return (*degrees, *[0] * (length - len(degrees)))


def has_extent(value: Any) -> bool:
    """Return whether a number in nested lists, tuples, dicts and slices was computed from sizes of a map."""
    return type(value) is Extent or any(has_extent(part) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def of_whole_map(value: Any) -> Any:
    """Return nested lists, tuples, dicts and slices with all numbers as ordinary ones of the whole map."""
    if type(value) is Extent:
        return value.value
    if not has_extent(value):
        return value
    parts = [of_whole_map(part) for part in _parts(value)]
    if isinstance(value, slice):
        return slice(*parts)
    if isinstance(value, dict):
        return dict(zip(value, parts, strict=True))
    return parts if isinstance(value, list) else tuple(parts)
