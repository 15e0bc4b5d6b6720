"""What a checkpoint holds, validated: a file may come from anybody, or have been damaged in a way that still reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..utils.text import printable

PARTS = {"model", "optimizer", "precision", "step", "broken", "config"}
"""Keys of every checkpoint."""

MOST_STEPS = 2**53
"""Steps of the longest run: up to here floating-point numbers count each one."""


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(valid, value))


def _named(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(name, str) for name in value) and all(map(valid, value.values()))
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not value:  # an empty one is of no parameters
        return isinstance(value, dict)
    groups = value.get("param_groups")
    return (
        isinstance(groups, list) and isinstance(value.get("state"), dict) and all(isinstance(g, dict) for g in groups)
    )


def _pair(first: Callable[[Any], bool], second: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and first(value[0]) and second(value[1])


def _or_none(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


VALID: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_whole(0, MOST_STEPS), "a number of steps"),
    "model": (_named(_tensor), "tensors by name"),
    "optimizer": (_optimizer, "the state of an optimizer"),
    "precision": (lambda value: isinstance(value, dict), "the state of a loss scaling"),
    "broken": (_named(_text), "errors by name"),
    "config": (_text, "text"),
    "unlogged": (_pair(_list_of(_number), _list_of(_number)), "two lists of numbers"),
    "unmeasured": (_list_of(lambda value: _text(value) or _whole(0, 1000)(value)), "a list of evaluators"),
    "told": (_pair(_or_none(_number), _named(_number)), "a loss and numbers by name"),
    "processes": (_whole(1, 2**20), "a number of processes"),
    "origin": (_or_none(_text), "a digest"),
    "origin_file": (_or_none(_text), "a path"),
    "average": (_or_none(_named(_tensor)), "tensors by name"),
    "best": (
        _or_none(lambda value: isinstance(value, dict) and {"model", "step"} <= value.keys()),
        "weights and their step",
    ),
}
"""What each part must be, if a checkpoint has it; tasks of one's own may have others."""


def unsound_part(state: Any) -> str | None:
    """Return what is wrong with the content of a checkpoint, None if each part can be what it is named."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    missing = sorted(PARTS - state.keys())
    if missing:
        return f"it lacks {', '.join(missing)}"
    for name, (valid, expected) in VALID.items():
        if name in state and not valid(state[name]):
            return f"its {printable(name)} is not {expected}"
    return None
