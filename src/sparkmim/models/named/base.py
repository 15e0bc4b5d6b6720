"""What a scheme of names is: it builds networks of a library that `SCHEME:NAME` stands for."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from difflib import get_close_matches
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from ...utils.orientation import RAS
from ...utils.specs import NAMED, find_plugin, scheme_of


class Built(NamedTuple):
    """A network of a library, and how its maps are read.

    Attributes:
        module: the whole network, its own decoder included.
        in_chans: channels of the images.
        stages: names of the submodules whose outputs are the feature maps; empty to find them by running the network.
        levels: number of feature maps; None for the four deepest, "all" for every one of a U-Net, see
            :class:`~sparkmim.Backbone`.
    """

    module: nn.Module
    in_chans: int
    stages: tuple[str, ...] = ()
    levels: int | Literal["all"] | None = None


class NamedNetwork(ABC):
    """A network that `SCHEME:NAME` stands for.

    A subclass in a module of `sparkmim.models.named` is all it takes; the scheme is the module's name. Other packages
    add one as an entry point of the group `sparkmim.models.named`. Nothing of the library is imported before it is
    needed.

    Args:
        name: what stands after the scheme.
    """

    library: ClassVar[str]
    """Module to import; its absence is reported with `install`."""

    install: ClassVar[str]
    """Command that installs the library."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(self, in_chans: int | None) -> Built:
        """Build the network, with random weights.

        Args:
            in_chans: channels of the images; by default those that the name says, or one.

        Raises:
            ValueError: for an unknown name (with those there are), a setting that the network does not take, or a
                library that is not installed (with the command that installs it).
        """

    def needs_trust(self) -> bool:
        """Return whether building it runs or fetches what the user must name: not on the word of a file alone."""
        return True

    def orientation(self) -> str:
        """Return the order of the axes of the volumes that the network takes: RAS, or that of the library."""
        return RAS

    def orientation_of_file(self, stored: str) -> str:
        """Return the order in which the library sees the axes of a file: its own, if it turns volumes as is done here.

        Args:
            stored: order of the axes in the file, such as RAS.
        """
        return self.orientation()

    def import_module(self, module: str | None = None) -> ModuleType:
        """Import a module of the library.

        Raises:
            ValueError: if the library, or something that it needs, is not installed.
        """
        try:
            return importlib.import_module(module or self.library)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            raise ValueError(
                f"{self} needs the package {self.library}, and {missing} is not installed: {self.install}"
            ) from error

    def unknown(self, known: list[str], also: str = "") -> ValueError:
        """Return the error for a name that the library does not have.

        Args:
            known: the names there are; the nearest ones are shown, or all of a few.
            also: another form of names.
        """
        name = self.name.partition("(")[0]
        folded = {each.lower(): each for each in known}
        close = [folded[each] for each in get_close_matches(name.lower(), folded, n=4)]
        few = ", ".join(known)
        hint = f"did you mean {', '.join(close)}?" if close and len(known) > 12 else f"use one of {few}"
        return ValueError(f"{self.scheme} has no network {name!r}; {hint}{also}")

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return type(self).__module__.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}"


def find_named(model: str) -> NamedNetwork | None:
    """Return the network that `SCHEME:NAME` stands for; None for a spec of another form."""
    scheme = scheme_of(model)
    if scheme is None:
        return None
    kind: type[Any] = find_plugin(scheme, NAMED, NamedNetwork, "--model")
    found: NamedNetwork = kind(model.removeprefix(f"{scheme}:"))
    return found
