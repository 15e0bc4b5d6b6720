"""Configurations in groups of fields, and the groups that every training has. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Protocol, Self, cast, get_type_hints

from ..data.config import ViewConfig
from ..utils.fields import (
    Setting,
    Valid,
    above_zero,
    along_axes_of,
    at_least,
    describe,
    setting,
    share,
    show,
)

Compile = Literal["off", "on", "try"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]

COMPUTATION: dict[Compile, str] = {"off": "", "on": ", compiled", "try": ", compiled if the network can be"}
"""Ways to compile, as the plan of a run names them."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule."""

    optimizer: Literal["lamb", "adamw", "sgd"] = setting("lamb", shapes_model=True)
    """lamb (timm's, the paper's choice), adamw, or sgd with Nesterov momentum, which is the first of --betas."""

    lr: float = setting(valid=above_zero())
    """Peak learning rate."""

    betas: tuple[float, float] = setting(
        valid=Valid(lambda v: len(v) == 2 and all(0 <= part < 1 for part in v), "are two rates from 0 to below 1")
    )
    """Decay of the running averages of gradients and of their squares."""

    eps: float = setting(1e-6, at_least(0))
    """Added to the root of the second average."""

    weight_decay: float = setting(0.04, at_least(0))
    """Weight decay at the start."""

    weight_decay_end: float = setting(0.2, at_least(0))
    """Weight decay at the end, approached along a cosine."""

    clip: float = setting(
        5.0, Valid(lambda v: v >= 0, "is the largest norm of gradients, above 0, or 0 not to clip them")
    )
    """Largest norm of all gradients together; larger ones are scaled down to it. 0 never clips."""


@dataclass(frozen=True, kw_only=True)
class LayeredOptimizerConfig(OptimizerConfig):
    """The update rule of a network that is trained on from an encoder, and how it differs between layers."""

    layer_decay: float = setting(1.0, Valid(lambda v: 0 < v <= 1, "is a factor above 0 and at most 1"))
    """Factor of the learning rate from one group of layers to the one below it; 1 trains all layers alike."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate moves."""

    epochs: float = setting(valid=above_zero())
    """How many times every image is shown."""

    warmup_epochs: float = setting(valid=at_least(0))
    """Epochs over which the learning rate rises linearly."""

    lr_start: float = setting(0.005, share("the peak"))
    """Learning rate of the first step, as a share of the peak."""

    lr_end: float = setting(0.001, share("the peak"))
    """Learning rate of the last step, as a share of the peak."""

    lr_decay: Literal["cosine", "polynomial"] = "cosine"
    """How the learning rate falls from the peak: along a cosine, or as the 0.9th power of what is left of the run, as
    nnU-Net's does."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a run is carried out."""

    batch_size: int = setting(valid=at_least(1, "a number of images"))
    """Images of one step, over all processes and accumulated micro-batches."""

    accumulate: int = setting(1, at_least(1, "a number of micro-batches"), resumable=True)
    """Micro-batches whose gradients make one step: less memory, the same step but for batch norm's statistics."""

    precision: Precision = "32"
    """32, bf16-mixed or 16-mixed (float16 with loss scaling)."""

    compile: Compile = setting(
        "off",
        Valid(lambda v: isinstance(v, bool) or v in COMPUTATION, f"is {' or '.join(COMPUTATION)}"),
        resumable=True,
    )
    """Compile the model with torch.compile: off; on; or try, which continues without where the model cannot be
    compiled."""

    cudnn_benchmark: bool = setting(True, resumable=True)
    """On CUDA, let cuDNN measure its algorithms for each convolution at the first step and take the fastest; off, its
    heuristics choose, and two runs choose alike."""

    device: Device = setting("auto", resumable=True)
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""

    seed: int = setting(0, at_least(0))
    """All randomness follows from it."""

    log_every: int = setting(10, at_least(1, "a number of steps"), resumable=True)
    """Steps between two lines of metrics."""

    val_every: float = setting(1.0, above_zero("a number of epochs"), resumable=True)
    """Epochs between two evaluations of the held-out loss."""

    checkpoint_minutes: float = setting(10.0, at_least(0), resumable=True)
    """Minutes between two checkpoints; there is always one at the end and on interruption."""

    keep_checkpoints: int = setting(2, at_least(1), resumable=True)
    """Checkpoints to keep, the newest ones."""

    time_limit: float | None = setting(
        None, Valid(lambda v: v is None or 0 < v < math.inf, "is a number of minutes, above 0"), resumable=True
    )
    """Minutes after which to save and end with code 75, as on a signal; the same command continues. No limit if not
    given."""

    log: Literal["none", "wandb", "mlflow"] = setting("none", resumable=True)
    """Where to send metrics beside metrics.jsonl and TensorBoard: wandb or mlflow, by their packages and settings."""

    def __post_init__(self) -> None:
        """Accept `compile` as a switch, as it was recorded once."""
        if isinstance(cast(object, self.compile), bool):
            object.__setattr__(self, "compile", "on" if self.compile else "off")


class Plugin(NamedTuple):
    """A group whose class depends on a plug-in that another field names.

    Attributes:
        chooser: the field that names the plug-in; flags of the group are `--CHOOSER.FIELD`.
        settings_of: returns the class of the plug-in's settings, given the chooser's value.
    """

    chooser: str
    settings_of: Callable[[Any], type[Any]]


def plugin(chooser: str, settings_of: Callable[[Any], type[Any]]) -> Any:
    """Declare a group of a :class:`Configuration` that holds a plug-in's settings, see :class:`Plugin`.

    If it is not given, it holds those of the plug-in that is used where none is named.
    """
    return dataclasses.field(default=settings_of(None)(), metadata={"plugin": Plugin(chooser, settings_of)})


class ConfigField(NamedTuple):
    """A field of a configuration: its group, its name there and in :meth:`Configuration.flat`, and its description."""

    group: str
    name: str
    flat: str
    type: Any
    help: str
    setting: Setting


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Groups of fields; no two fields have the same name.

    Fields are named without their group, but for those of plug-ins: `objective.cell_size` is a field of the objective
    that the field `objective` names.
    """

    @classmethod
    def group_types(cls, chosen: Mapping[str, Any]) -> dict[str, type[Any]]:
        """Return the class of each group, those of plug-ins as the fields in `chosen` (flat) name them.

        Raises:
            ValueError: for an unknown plug-in.
        """
        hints = get_type_hints(cls)
        types: dict[str, type[Any]] = {}
        for group in fields(cls):
            described: Plugin | None = group.metadata.get("plugin")
            if described is None:
                types[group.name] = hints[group.name]
            else:
                types[group.name] = described.settings_of(chosen.get(described.chooser))
                require_plain_defaults(types[group.name])
        return types

    @classmethod
    def describe(cls, chosen: Mapping[str, Any] = {}) -> Iterator[ConfigField]:
        """Yield every field, those of plug-ins as the fields in `chosen` (flat) name them."""
        types = cls.group_types(chosen)
        for group in fields(cls):
            described: Plugin | None = group.metadata.get("plugin")
            prefix = "" if described is None else f"{described.chooser}."
            for field in describe(types[group.name]):
                flat = prefix + field.name
                yield ConfigField(group.name, field.name, flat, field.type, field.help, field.setting)

    @classmethod
    def settings(cls, chosen: Mapping[str, Any] = {}) -> dict[str, Setting]:
        """Return the description of every field by its flat name."""
        return {field.flat: field.setting for field in cls.describe(chosen)}

    def replace(self, chosen: Mapping[str, Any]) -> Self:
        """Return a configuration with other values for some fields, by flat name.

        One number for all axes is repeated for as many as there are in this configuration. A plug-in that is exchanged
        begins with its default settings.

        Raises:
            ValueError: for an unknown name or plug-in.
        """
        asked = {**self.flat(), **chosen}
        require_known(chosen, type(self).settings(asked))
        groups: dict[str, Any] = {}
        for group, kind in type(self).group_types(asked).items():
            old = getattr(self, group)
            groups[group] = old if isinstance(old, kind) else kind()
        changes: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for field in type(self).describe(asked):
            if field.flat in chosen:
                old = getattr(groups[field.group], field.name)
                changes[field.group][field.name] = along_axes_of(old, chosen[field.flat], field.setting)
        return dataclasses.replace(self, **{g: dataclasses.replace(groups[g], **c) for g, c in changes.items()})

    def flat(self) -> dict[str, Any]:
        """Return the value of every field by its flat name."""
        values: dict[str, Any] = {}
        for group in fields(self):
            described: Plugin | None = group.metadata.get("plugin")
            prefix = "" if described is None else f"{described.chooser}."
            part = getattr(self, group.name)
            values |= {prefix + field.name: getattr(part, field.name) for field in fields(part)}
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as `config.json` has them; settings of plug-ins without any are left out."""
        values = dataclasses.asdict(self)
        return {g.name: values[g.name] for g in fields(self) if values[g.name] or "plugin" not in g.metadata}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Invert :meth:`to_dict`, from JSON too, where tuples have become lists.

        Raises:
            ValueError: if fields are missing or unknown, as in what another version has written.
        """
        try:
            recorded = {
                group.name: {k: tuple(v) if isinstance(v, list) else v for k, v in values[group.name].items()}
                for group in fields(cls)
                if group.name in values or group.name in cls.required_groups()
            }
            types = cls.group_types({k: v for group in recorded.values() for k, v in group.items()})
            return cls(**{name: kind(**recorded.get(name, {})) for name, kind in types.items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the recorded configuration does not fit this version of sparkmim ({error})") from error

    @classmethod
    def plugins_of(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that name plug-ins in what `config.json` recorded, by flat name."""
        values = {k: v for group in recorded.values() if isinstance(group, dict) for k, v in group.items()}
        choosers = [group.metadata["plugin"].chooser for group in fields(cls) if "plugin" in group.metadata]
        return {name: values[name] for name in choosers if name in values}

    @classmethod
    def required_groups(cls) -> set[str]:
        """Return the names of the groups that every recorded configuration has: those without defaults."""
        return {group.name for group in fields(cls) if not has_default(group)}

    @classmethod
    def optional_groups(cls) -> set[str]:
        """Return the names of the other groups.

        Those of plug-ins are recorded where they have settings; those with defaults came with later versions.
        """
        return {group.name for group in fields(cls)} - cls.required_groups()


def has_default(group: dataclasses.Field[Any]) -> bool:
    """Return whether a group of a configuration may be left out."""
    return group.default is not dataclasses.MISSING or group.default_factory is not dataclasses.MISSING


class TrainingConfig(Protocol):
    """The groups that a training of any kind has."""

    @property
    def data(self) -> ViewConfig:
        """Return the group of the images."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Return the group of the update rule."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Return the group of the learning rate's schedule."""

    @property
    def run(self) -> LoopConfig:
        """Return the group of the loop."""

    def replace(self, chosen: Mapping[str, Any]) -> Self:
        """See :meth:`Configuration.replace`."""

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Configuration.to_dict`."""

    def flat(self) -> dict[str, Any]:
        """See :meth:`Configuration.flat`."""


def require_plain_defaults(settings: type[Any]) -> None:
    """Raise unless the settings of a plug-in can be made of nothing and recorded as JSON.

    Raises:
        ValueError: naming the class, and what stands against it.
    """
    try:
        json.dumps(dataclasses.asdict(settings()))
    except TypeError as error:
        raise ValueError(
            f"expected settings {settings.__name__} to be a dataclass whose fields all have defaults, numbers or text "
            f"({error})"
        ) from error


def require_known(names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise if a field does not exist.

    Args:
        names: of fields, flat.
        settings: descriptions of all fields, by flat name.

    Raises:
        ValueError: for an unknown name, with those like it.
    """
    for name in names:
        if name not in settings:
            close = get_close_matches(name, settings, n=3, cutoff=0.4)
            raise ValueError(
                f"the configuration has no field {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "")
            )


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any], settings: Mapping[str, Setting]) -> list[str]:
    """Return the fields in which two flat configurations differ although a resumed run may not, one line each."""
    found = []
    for name, value in asked.items():
        there = recorded.get(name)
        value = along_axes_of(there, value, settings[name])
        if name in recorded and not settings[name].resumable and there != value:
            found.append(f"{name}: {show(there)} there, {show(value)} asked for")
    return found
