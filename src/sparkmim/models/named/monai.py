"""Networks of MONAI by name: `monai:BasicUNet`, `monai:UNet(channels=(16, 32, 64), strides=(2, 2))`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from .base import Built, NamedNetwork

FORM = "monai:NAME(key=value, ...), whose values are numbers, strings, True, False, None, and tuples, lists or dicts"

INPUTS = ("in_channels", "n_input_channels")
"""Names of MONAI's networks for the number of input channels."""

OUTPUTS = ("out_channels", "num_classes")
"""Names of MONAI's networks for the number of output channels, or of classes."""

REQUIRED = {"spatial_dims": 3}
"""Values of arguments that a network requires, if they are not given."""

RANDOM = {"pretrained": False}
"""Values of arguments that some networks have, if they are not given: weights are random."""

FETCHING = ("pretrained", "weights", "path_or_repo_id")
"""Arguments that have a network fetch weights, or read them from a file, unless they are empty."""


class Monai(NamedNetwork):
    """A class or function of `monai.networks.nets`, and the arguments that it is called with.

    `spatial_dims` is 3, and the number of output channels that of the images, where the network requires them and they
    are not given.
    """

    library: ClassVar[str] = "monai"
    install: ClassVar[str] = "pip install monai"

    def build(self, in_chans: int | None) -> Built:
        """Build the network, with all levels of a U-Net, or the four deepest of another network."""
        channels, settings = self.settings(in_chans)
        return Built(self.make(settings), channels, levels="all")

    def settings(self, in_chans: int | None) -> tuple[int, dict[str, Any]]:
        """Return the number of input channels, and the arguments that the network is built with.

        Raises:
            ValueError: for an unknown name or argument, or another number of channels than the name says.
        """
        builder, given = self._builder(), self._arguments()
        parameters = _parameters(builder)
        takes = next((name for name in INPUTS if name in parameters), INPUTS[0] if _is_open(builder) else None)
        if takes is None:
            raise ValueError(f"{self} does not take a number of input channels; it is not a network of images")
        channels = given.get(takes, in_chans if in_chans is not None else 1)
        if in_chans not in (None, channels):
            raise ValueError(f"--in-chans {in_chans}, but {self} takes {channels} channels; leave one of them out")
        unknown = [name for name in given if name not in parameters]
        if unknown and not _is_open(builder):
            known = ", ".join(parameters)
            raise ValueError(f"{self} has no argument {', '.join(unknown)}; {self.name.partition('(')[0]} has {known}")
        required = {name for name, p in parameters.items() if p.default is p.empty}
        defaults = {**REQUIRED, **dict.fromkeys(OUTPUTS, channels)}
        settings = {name: value for name, value in defaults.items() if name in required}
        settings |= {name: value for name, value in RANDOM.items() if name in parameters}
        return channels, settings | {takes: channels} | given

    def make(self, settings: Mapping[str, Any]) -> nn.Module:
        """Return the network that some settings make.

        Raises:
            ValueError: in place of what MONAI raises.
        """
        try:
            module = self._builder()(**settings)
        except Exception as error:  # of MONAI's own kinds, too
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"{self} cannot be built ({reason})") from error
        if not isinstance(module, nn.Module):
            raise ValueError(f"{self} is not a network: it gives a {type(module).__name__}")
        return module

    def call(self, in_chans: int, wanted: int | None = None) -> tuple[str, dict[str, Any]]:
        """Return Python code that builds the network for `N` outputs, and the settings with one more than it has.

        A network whose outputs are not counted keeps its settings.

        Args:
            in_chans: channels of the images.
            wanted: channels of other images that it is built for instead.
        """
        _, settings = self.settings(in_chans)
        if wanted is not None:
            settings = {name: wanted if name in INPUTS else value for name, value in settings.items()}
        parameters = _parameters(self._builder())
        counted = next((name for name in OUTPUTS if name in parameters), None)
        if counted is not None:
            settings[counted] = settings.get(counted, parameters[counted].default) + 1
        written = ", ".join(f"{name}={'N' if name == counted else repr(value)}" for name, value in settings.items())
        return f"monai.networks.nets.{self.name.partition('(')[0].strip()}({written})", settings

    def needs_trust(self) -> bool:
        """Return whether it would fetch weights or read them from a file."""
        builder, given = self._builder(), self._arguments()
        defaults = {name: p.default for name, p in _parameters(builder).items() if p.default is not p.empty}
        return any((defaults | RANDOM | given).get(name) for name in FETCHING)

    def _builder(self) -> Callable[..., Any]:
        name = self.name.partition("(")[0].strip()
        nets = self.import_module("monai.networks.nets")
        found: Any = getattr(nets, name, None)
        if not _builds(found):
            raise self.unknown(sorted(name for name in dir(nets) if _builds(getattr(nets, name))))
        return found  # type: ignore[no-any-return]

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments as written, which are values, not code.

        Raises:
            ValueError: if the name is not one call with values by name.
        """
        if "(" not in self.name:
            return {}
        try:
            call = ast.parse(self.name.strip(), mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
                raise ValueError("arguments are given by name")
            if any(keyword.arg is None for keyword in call.keywords):
                raise ValueError("arguments are given one by one")
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            reason = str(error).split(":")[0].split("(")[0].strip()
            raise ValueError(f"{self} is not {FORM} ({reason})") from error


def _builds(found: Any) -> bool:
    """Return whether something is a network's class, or a function that may return one."""
    if inspect.isclass(found):
        return issubclass(found, nn.Module)
    return inspect.isfunction(found) and found.__module__.startswith("monai.networks.nets.")


def _is_open(builder: Callable[..., Any]) -> bool:
    """Return whether a builder passes on arguments that its signature does not name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(builder).parameters.values())


def _parameters(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a builder, and of the classes that it passes further arguments on to."""
    sources: list[Callable[..., Any]] = [builder]
    if _is_open(builder):
        returned = inspect.get_annotations(builder).get("return") if inspect.isfunction(builder) else builder
        kind = builder.__globals__.get(returned) if isinstance(returned, str) else returned
        sources += [base for base in kind.__mro__ if issubclass(base, nn.Module)] if inspect.isclass(kind) else []
    found: dict[str, inspect.Parameter] = {}
    for source in sources:
        if source is nn.Module:
            continue
        for name, parameter in inspect.signature(source).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    return found
