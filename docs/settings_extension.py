"""Griffe extension: show the default of a config field, `setting(0.6, at_least(0))`, as 0.6."""

from __future__ import annotations

from typing import Any

import griffe


class Settings(griffe.Extension):
    """Replace calls of `setting` and `plugin` by the default value in them."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Replace the value, before signatures of dataclasses are made of it."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) in ("setting", "plugin"):
            first = call.arguments[0] if call.arguments and str(call.function) == "setting" else None
            plain = isinstance(first, str) or type(first).__name__ not in ("ExprKeyword", "ExprCall")
            attr.value = first if first is not None and plain else None
            if attr.value is None:
                attr.labels.discard("class-attribute")
