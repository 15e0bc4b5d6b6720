"""Record every map that a network computes, and how a later pass can read it: in the notation of `stages`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..sparse.nested import tensors_in
from .dataflow import Node
from .probe import needs_values
from .taps import function_name

Size = tuple[int, ...]


class Event(NamedTuple):
    """A map at the moment when it is given to a module, returned by one, or computed by a function.

    Attributes:
        name: in the notation of `stages` (:mod:`~sparkmim.models.taps`).
        kind: "output" or "input" of a module, "part" (of an output that holds several maps), "function" result.
        module: the module that was called, or in whose forward pass the function was.
        number: how many calls of the module came before.
        size: spatial size.
        channels: of the map.
        node: of the autograd graph.
        within: the modules that were running, outermost first.
        given: spatial size of the map that the module was given, of an output.
        function: name of the function.
        unchanged: whether an output is the input itself (of an identity).
    """

    name: str
    kind: str
    module: str
    number: int
    size: Size
    channels: int
    node: Node
    within: tuple[str, ...]
    given: Size | None = None
    function: str = ""
    unchanged: bool = False


class Trace(NamedTuple):
    """One pass over a network.

    Attributes:
        events: in the order of time.
        used: names of the parameters that functions were called on.
        calls: how often each module was called.
        error: what ended the pass early.
        results: shape of the tensor that a function returned, by the parameter that it was called on last.
    """

    events: list[Event]
    used: set[str]
    calls: Counter[str]
    error: Exception | None = None
    results: Mapping[str, Size] = MappingProxyType({})

    def used_beside_maps(self, larger: Trace, dims: int) -> set[str]:
        """Return the parameters with which something is computed that grows with the image, and is not a map.

        Tokens are such, and maps with channels last.

        Args:
            larger: of an image twice as large.
            dims: number of spatial dimensions.
        """
        return {
            name for name, shape in self.results.items() if _grows_unlike_maps(shape, larger.results.get(name), dims)
        }


def _grows_unlike_maps(small: Size, large: Size | None, dims: int) -> bool:
    if large is None or len(large) != len(small) or math.prod(large) < 2 * math.prod(small):
        return False
    is_map = len(small) == dims + 2 and all(b == 2 * a for a, b in zip(small[2:], large[2:], strict=True))
    return not is_map


class _Frame:
    """The forward pass of a module that is under way."""

    def __init__(self, name: str, number: int, given: Any, node: Node, size: Size | None) -> None:
        self.name, self.number, self.given, self.node, self.size = name, number, given, node, size
        self.functions: Counter[str] = Counter()


class Recorder(TorchFunctionMode):
    """Records what a network computes from an image while active; see :func:`record`."""

    def __init__(self, dims: int, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.dims, self.parameters = dims, parameters
        self.events: list[Event] = []
        self.used: set[str] = set()
        self.results: dict[str, Size] = {}
        self.calls: Counter[str] = Counter()
        self.frames: list[_Frame] = []

    def is_map(self, value: Any) -> bool:
        """Return whether a value is shaped like a map of one image."""
        shaped = isinstance(value, Tensor) and value.ndim == self.dims + 2
        return shaped and value.shape[0] == 1 and value.shape[1] > 0

    def add(self, value: Tensor, name: str, kind: str, frame: _Frame, **more: Any) -> None:
        """Record a map that belongs to a call of a module."""
        within = tuple(f.name for f in self.frames if f.name)
        shape = tuple(value.shape)
        self.events.append(
            Event(name, kind, frame.name, frame.number, shape[2:], shape[1], value.grad_fn, within, **more)
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        names = [self.parameters[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self.parameters]
        self.used.update(names)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.results.update(dict.fromkeys(names, tuple(out.shape)))
        if self.frames and self.is_map(out):
            name = function_name(func)
            if name is not None:
                frame = self.frames[-1]
                self.add(
                    out,
                    f"{frame.name}:{name}[{frame.functions[name]}]",
                    "function",
                    frame,
                    given=next((tuple(t.shape[2:]) for t in tensors_in(args) if self.is_map(t)), None),
                    function=name,
                )
                frame.functions[name] += 1
        return out

    def enter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Return the hook that runs before a module."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            given = next((a for a in args if self.is_map(a)), None)
            node, size = (None, None) if given is None else (given.grad_fn, tuple(given.shape[2:]))
            frame = _Frame(name, self.calls[name], given, node, size)
            self.calls[name] += 1
            if given is not None and name:
                self.add(given, f"{name}:input", "input", frame)
            self.frames.append(frame)

        return hook

    def leave(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """Return the hook that runs after a module, even where it fails, or a hook before it does."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.frames and self.frames[-1].name == name:
                self.returned(self.frames.pop(), output)

        return hook

    def returned(self, frame: _Frame, output: Any) -> None:
        """Record what a module returns."""
        if self.is_map(output):
            unchanged = output is frame.given and output.grad_fn is frame.node
            name = frame.name if frame.number == 0 else f"{frame.name}:call[{frame.number}]"
            self.add(output, name, "output", frame, given=frame.size, unchanged=unchanged)
        elif isinstance(output, (list, tuple, dict)):
            items = output.items() if isinstance(output, dict) else enumerate(output)
            for key, part in items:
                if self.is_map(part):
                    self.add(part, f"{frame.name}:output[{key}]", "part", frame)


@contextmanager
def _hooks(recorder: Recorder, module: nn.Module) -> Iterator[None]:
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):  # which takes no hooks, and hides what it calls
            continue
        handles.append(part.register_forward_pre_hook(recorder.enter(name)))
        handles.append(part.register_forward_hook(recorder.leave(name), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(module: nn.Module, run: Callable[[], Any], dims: int, parameters: Mapping[int, str]) -> Trace:
    """Run a network and record its maps.

    A pass that ends in an error gives what came before it.

    Args:
        module: the network.
        run: runs it on an image.
        dims: number of spatial dimensions.
        parameters: names of parameters by id.
    """
    recorder = Recorder(dims, parameters)
    error: Exception | None = None
    with _hooks(recorder, module), recorder:
        try:
            run()
        except Exception as raised:
            if needs_values(raised):
                raise
            error = raised
    return Trace(recorder.events, recorder.used, recorder.calls, error, recorder.results)
