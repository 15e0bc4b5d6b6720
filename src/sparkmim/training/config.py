"""Configurations in groups of fields, and the groups that every training has."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast, get_type_hints

from ..data.config import ViewConfig
from .compile import Compile
from .optim import OptimizerConfig
from .precision import Precision
from .schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a run is carried out."""

    batch_size: int
    """Images of one step, over all processes and accumulated micro-batches."""

    accumulate: int = 1
    """Micro-batches whose gradients make one step: less memory, the same step but for batch norm's statistics."""

    precision: Precision = "32"
    """32, bf16-mixed or 16-mixed (float16 with loss scaling)."""

    compile: Compile = "off"
    """Compile the model with torch.compile: off; on; or try, which goes on without where the model cannot be
    compiled."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""

    seed: int = 0
    """All randomness follows from it."""

    log_every: int = 10
    """Steps between two lines of metrics."""

    val_every: float = 1.0
    """Epochs between two evaluations of the held-out loss."""

    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; there is always one at the end and on interruption."""

    keep_checkpoints: int = 2
    """Checkpoints to keep, the newest ones."""

    def __post_init__(self) -> None:
        """What may be said, and was recorded once, as a switch."""
        if isinstance(cast(object, self.compile), bool):
            object.__setattr__(self, "compile", "on" if self.compile else "off")


FREE = frozenset(
    {"workers", "log_every", "val_every", "checkpoint_minutes", "keep_checkpoints", "pictures", "compile", "device"}
    | {"grad_checkpointing", "monitor", "monitor_data", "monitor_every"}
    | {"data", "val_data", "test_data"}  # folders may move; the names of their images are compared instead
)
"""Fields that do not change what a run computes (but for rounding), so a run may be continued with others."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Groups of fields; no two fields have the same name."""

    @classmethod
    def group_of(cls, name: str) -> type[Any]:
        """The class of a group."""
        return get_type_hints(cls)[name]  # type: ignore[no-any-return]

    def replace(self, chosen: Mapping[str, Any]) -> Self:
        """With other values for some fields, named without their group.

        Raises:
            ValueError: for a name that no field has.
        """
        known_fields(chosen, type(self))
        groups = {}
        for group in fields(self):
            old = getattr(self, group.name)
            groups[group.name] = dataclasses.replace(old, **{k: v for k, v in chosen.items() if hasattr(old, k)})
        return dataclasses.replace(self, **groups)

    def flat(self) -> dict[str, Any]:
        """Field name to value, without groups."""
        return {
            f.name: getattr(getattr(self, group.name), f.name)
            for group in fields(self)
            for f in fields(self.group_of(group.name))
        }

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, as `config.json` has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`, from JSON too, where tuples have become lists.

        Raises:
            ValueError: if fields are missing or unknown, as in what another version has written.
        """
        groups = {}
        for group in fields(cls):
            try:
                plain = values[group.name]
                groups[group.name] = cls.group_of(group.name)(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"the recorded configuration does not fit this version of sparkmim ({error})"
                ) from error
        return cls(**groups)


class TrainingConfig(Protocol):
    """The groups that a training of any kind has."""

    @property
    def data(self) -> ViewConfig:
        """Of the images."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Of the update."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Of its size over the steps."""

    @property
    def run(self) -> LoopConfig:
        """Of the rest."""

    def replace(self, chosen: Mapping[str, Any]) -> Self:
        """See :meth:`Configuration.replace`."""

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Configuration.to_dict`."""


def documented_fields(kind: type[Configuration]) -> Iterator[tuple[str, str, Any, str]]:
    """Group, name, type and documentation of every field; the text below a field in its class is its documentation."""
    for group in fields(kind):
        cls = kind.group_of(group.name)
        hints = get_type_hints(cls)
        for part in cls.__mro__[:-1]:
            source = inspect.getsource(part)
            for name in part.__annotations__:
                found = re.search(rf'\n    {name}: [^\n]*\n    """(.*?)"""', source, re.DOTALL)
                assert found is not None, f"{part.__name__}.{name} is not documented"
                yield group.name, name, hints[name], " ".join(found[1].split())


def known_fields(names: Iterable[str], kind: type[Configuration]) -> None:
    """Whether fields are called so.

    Raises:
        ValueError: for a name that none has, with those like it.
    """
    known = [name for _, name, _, _ in documented_fields(kind)]
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=3, cutoff=0.4)
            raise ValueError(
                f"the configuration has no field {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "")
            )


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The fields in which two flat configurations differ and may not, one line each."""
    return [
        f"{name}: {show(recorded[name])} there, {show(value)} asked for"
        for name, value in asked.items()
        if name in recorded and name not in FREE and recorded[name] != value
    ]


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(Path(value) if isinstance(value, Path) else value)
