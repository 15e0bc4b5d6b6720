"""The rules of functions, by function and execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]


# For each function, its rules by the name of the execution's class: a plain dict, which any Dynamo can read.
_RULES: dict[Any, dict[str, Rule]] = {}
