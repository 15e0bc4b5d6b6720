"""Configuration fields, each described once, where it stands in its dataclass.

Help is the text below a field. What else the program needs to know of it is given to :func:`setting`: which values are
valid, whether a run may be resumed with another one, whether it decides which parameters a model has, and whether it
names files.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from .axes import per_axis
from .specs import absolute_spec

KEY = "sparkmim"
"""Key of a field's :class:`Setting` in its metadata."""

WORDS = ("none", "timm")
"""Weights that are not files."""


@dataclass(frozen=True)
class Setting:
    """Describe a field beside its type, default and help.

    Attributes:
        valid: returns whether a value makes sense, whatever the others are.
        expected: completes "--flag ..., not VALUE" where it does not.
        resumable: a run may be resumed with another value; it changes nothing that is computed, but for rounding.
        shapes_model: it decides which parameters a model has, or what the optimizer remembers of them.
        kind: "images" (a folder, table or address), "weights" (a file, or one of :data:`WORDS`), "code"
            (`FILE.py:NAME`, or a name), "teacher" (weights or code), "folder", "file",
            or "value". Relative paths are recorded as absolute ones.
        per_axis: a number for each spatial axis, given as one number or several.
    """

    valid: Callable[[Any], bool] | None = None
    expected: str = ""
    resumable: bool = False
    shapes_model: bool = False
    kind: Literal["value", "images", "weights", "code", "teacher", "folder", "file"] = "value"
    per_axis: bool = False


PLAIN = Setting()


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """The settings of a plug-in that has none."""


class Valid(NamedTuple):
    """A test of values, and what to say of one that fails: see :class:`Setting`."""

    test: Callable[[Any], bool]
    expected: str


def at_least(least: float, what: str = "") -> Valid:
    """Return the test of numbers from `least` on; `what` says what they count."""
    text = f"is {what}, at least {least:g}" if what else f"must be at least {least:g}"
    return Valid(lambda value: least <= value < math.inf, text)


def above_zero(what: str = "") -> Valid:
    """Return the test of finite numbers above 0."""
    return Valid(lambda value: 0 < value < math.inf, f"is {what}, above 0" if what else "must be above 0")


def share(what: str) -> Valid:
    """Return the test of shares from 0 to 1, both included."""
    return Valid(lambda value: 0 <= value <= 1, f"is a share of {what}, from 0 to 1")


def rate() -> Valid:
    """Return the test of rates from 0 to below 1."""
    return Valid(lambda value: 0 <= value < 1, "is a rate from 0 to below 1")


def setting(default: Any = MISSING, valid: Valid | None = None, **description: Any) -> Any:
    """Declare a dataclass field with a :class:`Setting`; without a default it is required."""
    made = Setting(*(valid or ()), **description)
    return dataclasses.field(default=default, metadata={KEY: made})


class Field(NamedTuple):
    """A field of a group as the command line needs it."""

    name: str
    type: Any
    help: str
    setting: Setting


_described: dict[type[Any], tuple[Field, ...]] = {}


def describe(group: type[Any]) -> tuple[Field, ...]:
    """Return the fields of a dataclass, those of its own before inherited ones; its source is read once.

    Raises:
        ValueError: for a field without a text below it.
    """
    if group not in _described:
        _described[group] = _describe(group)
    return _described[group]


def _describe(group: type[Any]) -> tuple[Field, ...]:
    types = get_type_hints(group)
    settings = {field.name: field.metadata.get(KEY, PLAIN) for field in dataclasses.fields(group)}
    found: list[Field] = []
    for part in group.__mro__[:-1]:
        own = list(filter(settings.__contains__, inspect.get_annotations(part)))
        texts = attribute_docstrings(part) if own else {}
        for name in own:
            if name not in texts:
                raise ValueError(f"{part.__name__}.{name} is not documented: write a text below it")
            found.append(Field(name, types[name], texts[name], settings[name]))
    return tuple(found)


def attribute_docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the text below each annotated attribute of a class, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for attribute, below in pairwise(definition.body):
        field = isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if field and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[attribute.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return texts


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return f"--{name.replace('_', '-')}"


def show(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def validate(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> None:
    """Validate each value by itself against its field's range.

    Args:
        values: by field name; only those present are validated.
        settings: of the fields, by name.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    for name, described in settings.items():
        if name in values and described.valid is not None and not described.valid(values[name]):
            raise ValueError(f"{flag(name)} {described.expected}, not {show(values[name])}")


def validate_as(group: type[Any], **values: Any) -> None:
    """Validate values given to a function against the types and ranges of a group's fields of the same names.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    described = {field.name: field for field in describe(group) if field.name in values}
    for name, field in described.items():
        require_type(name, values[name], field.type, field.setting)
    validate(values, {name: field.setting for name, field in described.items()})


def require_type(name: str, value: Any, kind: Any, described: Setting) -> None:
    """Raise unless a value, in a form that :func:`normalize` takes, is of a field's type; Python code may give any.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    if described.per_axis and not isinstance(value, (list, tuple)):
        kind = kind | int
    if described.kind in ("images", "weights", "folder", "file") and isinstance(value, Path):
        return
    if get_origin(kind) is Literal and described.valid is not None:
        return  # it accepts more, as what older versions recorded
    if not _fits(tuple(value) if isinstance(value, list) else value, kind):
        options = [_spelled(part) for part in (get_args(kind) if _is_union(kind) else (kind,))]
        raise ValueError(f"{flag(name)} takes {' or '.join(options)}, not {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type of a field; an integer serves as a float too, and unknown types fit."""
    if _is_union(kind):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(part, parts[0]) for part in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind) if isinstance(kind, type) and get_origin(kind) is None else True


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _spelled(kind: Any) -> str:
    """Return a type as a message names it: `packed or zero-out`, `True or False`, `int`, or `tuple[float, float]`."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if kind is bool:
        return "True or False"
    return "None" if kind is type(None) else kind.__name__ if get_origin(kind) is None else str(kind)


def normalize(name: str, value: Any, described: Setting) -> Any:
    """Return a value in the form in which a configuration records it: tuples, sizes as tuples, absolute paths.

    Addresses of images are made absolute where sources are known, not here, and one number for all axes is repeated
    where their number is known, by :func:`per_axis`.

    Raises:
        ValueError: for a size below 1.
    """
    value = tuple(value) if isinstance(value, list) else value
    if value is None:
        return None
    if described.per_axis:
        size = (value,) if isinstance(value, int) else tuple(value)
        if any(s < 1 for s in size):
            raise ValueError(f"{flag(name)} {show(size)} is not a number of pixels")
        return size
    if described.kind == "teacher" and Path(value).expanduser().exists():
        return str(Path(value).expanduser().absolute())
    if described.kind in ("code", "teacher"):
        return absolute_spec(value)
    if described.kind == "weights" and value not in WORDS:
        return str(Path(value).expanduser().absolute())
    if described.kind in ("folder", "file"):
        return str(Path(value).expanduser().absolute())
    return value


def along_axes_of(other: Any, value: Any, described: Setting) -> Any:
    """Return a size along as many axes as another value of its field has; values of other fields unchanged."""
    if not (described.per_axis and isinstance(other, tuple) and isinstance(value, (int, tuple, list))):
        return value
    return per_axis(value, len(other))
