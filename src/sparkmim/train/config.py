"""The whole configuration of a pretraining, in groups that stand beside what they configure."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from ..build import ModelConfig
from ..data import DataConfig
from .optimizer import OptimizerConfig
from .precision import Precision
from .schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is carried out."""

    batch_size: int
    """Images of one step, over all processes and accumulated micro-batches."""

    accumulate: int = 1
    """Micro-batches whose gradients make one step: less memory, the same step but for batch norm's statistics."""

    precision: Precision = "32"
    """32, bf16-mixed or 16-mixed (float16 with loss scaling)."""

    compile: bool = False
    """Compile the model with torch.compile."""

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

    pictures: int = 10
    """How many times over the run to draw reconstructions; 0 never."""


FREE = frozenset(
    {"workers", "log_every", "val_every", "checkpoint_minutes", "keep_checkpoints", "pictures", "compile", "device"}
    | {"data", "val_data"}  # folders may move; the names of their images are compared instead
)
"""Fields that do not change what a run computes (but for rounding), so a run may be continued with others."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that determines a pretraining, every value resolved."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig

    def replace(self, chosen: Mapping[str, Any]) -> Self:
        """With other values for some fields, named without their group."""
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
            for f in fields(group_of(group.name))
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
                groups[group.name] = group_of(group.name)(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"the recorded configuration does not fit this version of sparkmim ({error})"
                ) from error
        return cls(**groups)


def group_of(name: str) -> type[Any]:
    """The class of a group of fields."""
    return get_type_hints(PretrainConfig)[name]  # type: ignore[no-any-return]


def documented_fields() -> Iterator[tuple[str, str, Any, str]]:
    """Group, name, type and documentation of every field; the text below a field in its class is its documentation."""
    for group in fields(PretrainConfig):
        cls = group_of(group.name)
        hints = get_type_hints(cls)
        source = inspect.getsource(cls)
        for f in fields(cls):
            found = re.search(rf'\n    {f.name}: [^\n]*\n    """(.*?)"""', source, re.DOTALL)
            assert found is not None, f"{cls.__name__}.{f.name} is not documented"
            yield group.name, f.name, hints[f.name], " ".join(found[1].split())


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
        return " ".join(map(str, value))
    return "none" if value is None else str(Path(value) if isinstance(value, Path) else value)
