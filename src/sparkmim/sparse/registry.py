"""The rules of torch functions, by function and by class of execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]

RULES: dict[Any, dict[str, Rule]] = {}
"""For each function, its rules by the name of the execution's class: a plain dict, which any Dynamo can read."""


UNDERSTAND_SIZES: set[Any] = set()
"""Functions whose rules translate sizes of the whole map to those of the tensor at hand; others get whole numbers."""

WAITING: dict[type, Rule] = {}
"""For each kind of thing that an unfinished tensor may wait as, what answers all functions of such a tensor.

It is called as `rule(execution, function, args, kwargs)`."""

FACTORIES: dict[Any, Rule] = {}
"""For each function that makes a tensor of a shape, the rule that answers where the shape is one of the input's. It is
called as `rule(execution, function, *args, **kwargs)` and returns None where it is not."""


def understands_sizes(*functions: Any) -> Callable[[Rule], Rule]:
    """Decorate a rule of `functions` that translates sizes itself."""

    def add(rule: Rule) -> Rule:
        UNDERSTAND_SIZES.update(functions)
        return rule

    return add


def register_waiting(kind: type) -> Callable[[Rule], Rule]:
    """Decorate what answers functions of tensors that wait as a `kind`."""

    def add(rule: Rule) -> Rule:
        WAITING[kind] = rule
        return rule

    return add


def register_factory(*functions: Any) -> Callable[[Rule], Rule]:
    """Decorate the rule of functions that make a tensor of a shape."""

    def add(rule: Rule) -> Rule:
        FACTORIES.update(dict.fromkeys(functions, rule))
        return rule

    return add


def factory_for(function: Any) -> Rule | None:
    """Return the rule of a function that makes a tensor of a shape, None for other functions."""
    return FACTORIES.get(function)


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
    for name in names:
        if name in rules:
            return rules[name]
    return None
