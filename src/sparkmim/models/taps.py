"""Read the outputs of named submodules during a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn


class StageTaps:
    """Run a network up to the last of its named stages and return their outputs.

    The forward hooks stay on the network, inactive between calls: other hooks keep their place relative to them.

    Args:
        module: the network.
        stages: names of submodules, in the order in which their outputs are returned.

    Raises:
        ValueError: if the network has no submodule of such a name.
    """

    def __init__(self, module: nn.Module, stages: Sequence[str]) -> None:
        self.names = list(stages)
        self.outputs: dict[str, Tensor] = {}
        self.active = False
        self.hooked: dict[str, nn.Module] = {}
        modules = dict(module.named_modules())
        for name in self.names:
            if name not in modules:
                close = get_close_matches(name, modules, n=4, cutoff=0.0)
                raise ValueError(
                    f"{type(module).__name__} has no submodule {name!r}; the nearest are {', '.join(close)}"
                )
        self.attach(module)

    def attach(self, module: nn.Module) -> None:
        """Add a hook to each named submodule that has none yet: conversions of batch norm replace modules."""
        for name in self.names:
            submodule = module.get_submodule(name)
            if self.hooked.get(name) is not submodule:
                submodule.register_forward_hook(_Tap(self, name))
                self.hooked[name] = submodule

    def __call__(self, module: nn.Module, images: Tensor) -> list[Tensor]:
        """Return the outputs of the stages.

        Raises:
            ValueError: if the forward pass does not call one of them.
        """
        self.outputs.clear()
        self.attach(module)
        self.active = True
        try:
            module(images)
        except _AllStagesReached:
            pass
        finally:
            self.active = False
        missing = [name for name in self.names if name not in self.outputs]
        if missing:
            raise ValueError(f"the forward pass of {type(module).__name__} does not call {', '.join(missing)}")
        maps = [self.outputs[name] for name in self.names]
        self.outputs.clear()
        return maps


class _Tap:
    """A forward hook; an object and not a closure, so that a deep copy of the network gets hooks of its own."""

    def __init__(self, taps: StageTaps, name: str) -> None:
        self.taps, self.name = taps, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.taps.active:
            self.taps.outputs[self.name] = output
            if len(self.taps.outputs) == len(self.taps.names):
                raise _AllStagesReached


class _AllStagesReached(Exception):
    """Ends a forward pass once every stage has returned."""
