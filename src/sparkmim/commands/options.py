"""Flags made from the fields of a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from functools import wraps
from itertools import zip_longest
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from ..training.config import Configuration
from ..utils.fields import flag


def with_flags(
    command: Callable[..., int], configuration: type[Configuration], plugins: Mapping[str, str | None]
) -> Callable[..., int]:
    """Give a command a flag for each field of a configuration; its parameter `settings` receives those that are set.

    Args:
        command: takes the fields that are set, by flat name, as `settings`.
        configuration: with the fields.
        plugins: values of the fields that name plug-ins, whose settings are flags as well.
    """

    @wraps(command)
    def parsed(*arguments: Any, settings: Any, **others: Any) -> int:
        return command(*arguments, settings=_chosen(settings, configuration, plugins), **others)

    kind: Any = Annotated[_settings(configuration, plugins), tyro.conf.arg(name="")]  # type: ignore[valid-type]
    parsed.__annotations__ = {**get_type_hints(command), "settings": kind}
    parsed.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    del parsed.__wrapped__  # type: ignore[attr-defined]  # or tyro reads the annotations of what is wrapped
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(parsed)


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of a field's flag in a command line that is not parsed yet, None without it."""
    for argument, following in zip_longest(arguments, arguments[1:]):
        if argument == flag(name):
            return following
        if argument.startswith(f"{flag(name)}="):
            return argument.partition("=")[2]
    return None


def _settings(configuration: type[Configuration], plugins: Mapping[str, str | None]) -> type[Any]:
    """Build a dataclass of dataclasses with a flag for every field, None where the recipe decides."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for described in configuration.describe(plugins):
        kind: Any = Literal["on", "off"] if described.type is bool else described.type
        options = tyro.conf.arg(
            name=described.flat if "." in described.flat else None,
            help=described.help,
            help_behavior_hint="",
            metavar=_metavar(kind),
        )
        groups.setdefault(described.group, []).append(
            (described.name, Annotated[kind | None, options], field(default=None))
        )
    return make_dataclass(
        "Settings",
        [(group, cls := make_dataclass(group, flags), field(default_factory=cls)) for group, flags in groups.items()],
    )


def _metavar(kind: Any) -> str:
    """Return the placeholder of a flag's value in the help: `INT`, `lamb|adamw`, `median|none|FLOAT FLOAT FLOAT`."""
    if get_origin(kind) in (Union, UnionType):
        return "|".join(_metavar(option) for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return " ".join("[...]" if part is Ellipsis else part.__name__.upper() for part in get_args(kind))
    return kind.__name__.upper()


def _chosen(settings: Any, configuration: type[Configuration], plugins: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the fields that are set, by flat name."""
    values: dict[str, Any] = {}
    for described in configuration.describe(plugins):
        value = getattr(getattr(settings, described.group), described.name)
        if value is not None:
            values[described.flat] = value == "on" if described.type is bool else value
    return values
