"""The rules of torch functions, by function and by class of execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]

RULES: dict[Any, dict[str, Rule]] = {}
"""For each function, its rules by the name of the execution's class: a plain dict, which any Dynamo can read."""


def register(execution: type, *functions: Any) -> Callable[[Rule], Rule]:
    """Decorate the rule of `functions` for a class of execution and those derived from it."""

    def add(rule: Rule) -> Rule:
        for function in functions:
            RULES.setdefault(function, {})[execution.__name__] = rule
        return rule

    return add


def rule_for(function: Any, names: list[str]) -> Rule | None:
    """Return the rule of `function` for the first of several classes of execution that has one, None if none has."""
    rules = RULES.get(function, {})
    return next((rules[name] for name in names if name in rules), None)
