"""Rules that are made of other rules."""

from __future__ import annotations

from typing import Any

from ..execution import Execution


def call(execution: Execution, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function within a rule, as the network would: the rule of `func` answers.

    For functions that are compositions: each part is answered by its own rule, on maps whose positions hold several
    patches by that of their execution.
    """
    owner = execution.owner([*args, *kwargs.values()])
    if owner is None:
        return func(*args, **kwargs)
    out = owner.answer(func, args, kwargs)
    return out if owner is execution else execution.returned(out)
