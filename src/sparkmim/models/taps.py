"""Read chosen maps during a forward pass. A string names each of them:

- `layer1`: the output of the submodule `layer1`, of its first call;
- `relu:call[2]`: the output of its third call;
- `neck:output[1]`, `neck:output[low]`: an item of an output that is a list, a tuple or a dict;
- `layer2:input`: the first argument of `layer2`, a map that `forward` computes itself just before;
- `layer1:relu[1]`, `:add[0]`: the result of the second call of `relu` directly in the forward pass of `layer1`, of the
  first addition in that of the network. Operators and writes in place count by the function's name: `x += y` as `add`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..sparse.functions import operators_named

_NOTATION = re.compile(r"(?P<module>.*):(?P<what>\w+)(?:\[(?P<which>.+)\])?")


class Tap(NamedTuple):
    """One map to read.

    Attributes:
        name: in the notation above.
        module: the submodule's name.
        what: "output", "input", "part" of an output, or "function".
        number: of the call that counts, from 0: of the module, or of the function.
        key: index or key of a part.
        function: name of the function.
    """

    name: str
    module: str
    what: str = "output"
    number: int = 0
    key: str = ""
    function: str = ""


def parse_tap(name: str, network: nn.Module) -> Tap:
    """Return what a name of a stage stands for.

    Raises:
        ValueError: if the network has no such submodule, or torch no such function.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    if name in modules:
        return Tap(name, name)
    match = _NOTATION.fullmatch(name)
    module = match["module"] if match else name
    if module not in modules:
        close = get_close_matches(module, modules, n=4, cutoff=0.0)
        raise ValueError(f"{type(network).__name__} has no submodule {module!r}; the nearest are {', '.join(close)}")
    assert match is not None
    what, which = match["what"], match["which"]
    if what == "input" and which is None:
        return Tap(name, module, "input")
    if what == "output" and which is not None:
        return Tap(name, module, "part", key=which)
    if which is not None and which.isdecimal() and (what == "call" or _forms(what)):
        kind = "output" if what == "call" else "function"
        return Tap(name, module, kind, int(which), function="" if what == "call" else what)
    raise ValueError(
        f"stage {name!r} is not understood; after the colon stands input, call[N], output[N], or a function of torch "
        "and which of its calls, as in layer1:add[0]"
    )


@cache
def _forms(name: str) -> dict[Any, str]:
    return operators_named(name)


@cache
def function_name(function: Any) -> str | None:
    """Return the name by which a tap counts a function, whatever form of it is called; None if it has none."""
    full = getattr(function, "__name__", "")
    bare = full.strip("_")
    for name in (full, full.rstrip("_"), bare, bare[1:] if bare[:1] in ("i", "r") else ""):
        if name and not name.startswith("_") and function in _forms(name):
            return name
    return None


class StageTaps:
    """Run a network up to the last of its stages and return them.

    Hooks are on the network during a pass only, and each pass has its own: passes may run in several threads.

    Args:
        module: the network.
        stages: names, in the order in which their maps are returned.

    Raises:
        ValueError: if the network has no submodule of such a name.
    """

    def __init__(self, module: nn.Module, stages: Sequence[str]) -> None:
        self.names = list(stages)
        self.taps = [parse_tap(name, module) for name in self.names]

    def __call__(
        self, module: nn.Module, images: Tensor, on_read: Callable[[str, Any], None] | None = None
    ) -> list[Tensor]:
        """Return the maps.

        Args:
            module: the network, or a replica of it.
            images: `(B, C, *size)`.
            on_read: called with the name of each map and the map, once it has been computed.

        Raises:
            ValueError: if the forward pass does not compute one of them.
        """
        reading = _Reading(self.taps, images.ndim, on_read)
        with reading.hooks(module), reading.functions():
            try:
                module(images)
            except _AllStagesReached as reached:
                if reached.args[0] is not reading:
                    raise
        missing = [name for name in self.names if name not in reading.maps]
        if missing:
            raise ValueError(f"the forward pass of {type(module).__name__} does not call {', '.join(missing)}")
        return [reading.maps[name] for name in self.names]


class _AllStagesReached(Exception):
    """Ends a forward pass once every stage of a reading, its argument, has been read."""


def _exporting() -> bool:
    """Return whether `torch.export` follows the pass by running it: modules that it enters must be left in turn."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


class _Reading:
    """The maps of one pass."""

    def __init__(self, taps: Sequence[Tap], ndim: int, on_read: Callable[[str, Any], None] | None) -> None:
        self.taps, self.ndim, self.on_read = taps, ndim, on_read
        self.wanted = len({tap.name for tap in taps})
        self.maps: dict[str, Any] = {}
        self.thread = 0 if torch.compiler.is_compiling() else threading.get_ident()

    def elsewhere(self) -> bool:
        """Return whether another thread runs the network, whose maps are not this pass's."""
        return not torch.compiler.is_compiling() and threading.get_ident() != self.thread

    def keep(self, name: str, value: Any) -> None:
        """Keep a map, and end the pass if it was the last one."""
        if name not in self.maps:
            self.maps[name] = value
            if self.on_read is not None:
                self.on_read(name, value)
            if len(self.maps) == self.wanted and not _exporting():
                raise _AllStagesReached(self)

    @contextmanager
    def hooks(self, network: nn.Module) -> Iterator[None]:
        """Attach hooks to the modules whose inputs and outputs are read."""
        after: list[tuple[nn.Module, Any]] = []
        before: list[tuple[nn.Module, Any]] = []
        for tap in self.taps:
            part = network.get_submodule(tap.module)
            if tap.what == "input":
                before.append((part, _OnInput(self, tap)))
            elif tap.what != "function":
                after.append((part, _OnOutput(self, tap)))
        self.counters = [_Counter(self, tap) for tap in self.taps if tap.what == "function"]
        for counter in self.counters:
            part = network.get_submodule(counter.tap.module)
            for inner in part.modules():
                own = inner is part
                before.append((inner, counter.start if own else counter.descend))
                after.append((inner, counter.stop if own else counter.ascend))
        if torch.compiler.is_compiling():
            with _traced_hooks(before, after):
                yield
            return
        handles = []
        try:
            for part, hook in before:  # before others, which give opaque modules other inputs
                handles.append(part.register_forward_pre_hook(hook, prepend=True))
            for part, hook in after:
                handles.append(part.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def functions(self) -> Any:
        """Return the context in which calls of functions are counted."""
        return _CountCalls(self.counters) if self.counters else nullcontext()


@contextmanager
def _traced_hooks(before: list[tuple[nn.Module, Any]], after: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Attach hooks while Dynamo traces: it follows the assignment of attributes, and not the registering of hooks."""
    saved = []
    for name, hooks in (("_forward_pre_hooks", before), ("_forward_hooks", after)):
        for number, (part, hook) in enumerate(hooks):
            present = getattr(part, name)
            saved.append((part, name, present))
            own = {-1 - number: hook}
            setattr(part, name, {**own, **present} if name == "_forward_pre_hooks" else {**present, **own})
    try:
        yield
    finally:
        for part, name, present in reversed(saved):
            setattr(part, name, present)


class _OnInput:
    """A forward pre-hook that keeps the first map among the arguments."""

    def __init__(self, reading: _Reading, tap: Tap) -> None:
        self.reading, self.tap = reading, tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.reading.elsewhere():
            return
        for value in args:
            if isinstance(value, Tensor) and value.ndim == self.reading.ndim:
                self.reading.keep(self.tap.name, value)
                return


class _OnOutput:
    """A forward hook that keeps the output of one call, or a part of it."""

    def __init__(self, reading: _Reading, tap: Tap) -> None:
        self.reading, self.tap = reading, tap
        self.calls = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.reading.elsewhere():
            return
        number, self.calls = self.calls, self.calls + 1
        if number != self.tap.number:
            return
        if self.tap.what == "part":
            for key, value in output.items() if isinstance(output, dict) else enumerate(output):
                if str(key) == self.tap.key:
                    output = value
                    break
        self.reading.keep(self.tap.name, output)


class _Counter:
    """Counts the calls of a function directly in the forward pass of a module."""

    def __init__(self, reading: _Reading, tap: Tap) -> None:
        self.reading, self.tap = reading, tap
        self.forms = _forms(tap.function)
        self.running, self.depth, self.calls = False, 0, 0

    def start(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.reading.elsewhere():
            self.running = True

    def stop(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.reading.elsewhere():
            self.running = False

    def descend(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.reading.elsewhere():
            self.depth += 1

    def ascend(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.reading.elsewhere():
            self.depth -= 1

    def count(self, function: Any, result: Any) -> None:
        """Note a call, and keep its result if it is the one that is wanted."""
        if not self.running or self.depth or function not in self.forms:
            return
        if isinstance(result, Tensor) and result.ndim == self.reading.ndim:
            number, self.calls = self.calls, self.calls + 1
            if number == self.tap.number:
                self.reading.keep(self.tap.name, result)


class _CountCalls(TorchFunctionMode):
    """Shows the counters each function that the network calls, and its result."""

    def __init__(self, counters: Sequence[_Counter]) -> None:
        super().__init__()
        self.counters = counters

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for counter in self.counters:
            counter.count(func, out)
        return out
