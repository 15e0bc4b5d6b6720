"""Modules the engine does not trace into: run on the whole map, on rows, or on one number an image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .backward_hooks import MovedHooks, has_backward_hooks
from .execution import Execution
from .nested import map_tensors
from .strides import UNKNOWN, laid_out, note_of_tensor

_FALLBACK = "_sparkmim_dense_fallback"


def dense_fallback(module: nn.Module, enable: bool = True) -> nn.Module:
    """Have `module` run on the whole map when its network runs on visible patches.

    Its inputs are scattered into maps that are zero where hidden, it runs as it is, and of its outputs the visible
    positions are kept. Inside it hidden positions do count: as zeros at its entrance, and whatever its own layers make
    of them after that. It costs the time and memory of the dense module. A network that is never run on patches is
    not affected.

    Args:
        module: maps in, maps out, `(B, C, *size)`; other arguments are passed on.
        enable: False takes it back.
    """
    setattr(module, _FALLBACK, enable)
    return module


def is_dense_fallback(module: nn.Module) -> bool:
    """Return whether a module runs on the whole map."""
    return bool(module.__dict__.get(_FALLBACK, False))  # (torch looks far for attributes that modules lack)


class _Factor(NamedTuple):
    """How modules of a class draw what they multiply their input by; see :func:`random_factor`."""

    of_positions: bool
    unless: str


_FACTORS: dict[type[nn.Module], _Factor] = {}


def random_factor(kind: type[nn.Module], *, of_positions: bool = False, unless: str = "") -> type[nn.Module]:
    """Declare that modules of a class multiply their input by numbers that they draw themselves, in training mode.

    Stochastic depth that draws its noise in a tensor of the shape `(batch, 1, 1, 1)` needs no such declaration. One
    whose noise the engine cannot follow does, and so does DropBlock, which draws where on the whole map it drops: the
    module is given ones instead, and what it makes of them is the factor.

    Args:
        kind: a class whose modules take a map `(B, C, *size)` and return it times a factor.
        of_positions: whether the factor differs from position to position, `(B, C, *size)`. If not, it is one number an
            image, `(B, 1, ...)` or `(1, 1, ...)`.
        unless: an attribute which, where it is true, says that a module does something else (adding noise, say). Such
            a module is traced as any other.

    Examples:
        >>> sparkmim.sparse.random_factor(DropPath)
        >>> sparkmim.sparse.random_factor(DropBlock2d, of_positions=True)
    """
    _FACTORS[kind] = _Factor(of_positions, unless)
    return kind


def draws_positions(module: nn.Module) -> bool:
    """Return whether a module multiplies its input by numbers that it draws for positions of the whole map."""
    factor = _FACTORS.get(type(module))
    return factor is not None and factor.of_positions


def _factor_of(module: nn.Module) -> _Factor | None:
    factor = _FACTORS.get(type(module)) if module.training else None
    return None if factor is None or (factor.unless and getattr(module, factor.unless, False)) else factor


def attach_to_modules(execution: Execution, modules: Iterable[nn.Module]) -> list[RemovableHandle | MovedHooks]:
    """Give opaque modules of a network maps (or rows) they understand, and backward hooks traced tensors.

    Args:
        execution: under way.
        modules: of the network.

    Returns:
        What undoes it, by `remove()`.
    """
    handles: list[RemovableHandle | MovedHooks] = []
    synchronized = torch.distributed.is_available() and torch.distributed.is_initialized()
    eager = not torch.compiler.is_compiling()
    for module in modules:
        hooks = None
        if is_dense_fallback(module):
            hooks = _on_whole_map(execution)
        elif (factor := _factor_of(module)) is not None:
            hooks = _on_ones(execution, factor)
        elif synchronized and isinstance(module, nn.SyncBatchNorm):
            hooks = _on_rows(execution)
        if hooks is not None:
            before, after = map(_in_this_thread, hooks) if eager else hooks
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            # Other hooks, a backbone's among them, see the result.
            handles.append(module.register_forward_hook(after, prepend=True))
        if eager and has_backward_hooks(module):
            handles.append(MovedHooks(execution, module))
    return handles


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that leaves passes of other threads over the same module alone: they have hooks of their own."""
    thread = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == thread else None


def _on_whole_map(execution: Execution) -> tuple[Any, Any]:
    calls: list[_WholeMapCall] = []  # those under way

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        calls.append(_WholeMapCall(execution, execution.owner([*args, *kwargs.values()])))
        with torch._C.DisableTorchFunction():
            given: tuple[Any, Any] = map_tensors(calls[-1].whole_map, (args, kwargs))
        execution.opaque_calls += 1
        return given

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        execution.opaque_calls -= 1
        call = calls.pop()
        with torch._C.DisableTorchFunction():
            call.write_back()
            if call.owner is None:
                return output
            if isinstance(output, (tuple, list)):
                return type(output)([call.visible_part(part) for part in output])
            return call.visible_part(output)

    return before, after


class _WholeMapCall:
    """One call of a module on whole maps: its maps, and the whole ones that the module is given in their place.

    Args:
        execution: under way.
        owner: whose maps the module was given, if any.
    """

    def __init__(self, execution: Execution, owner: Execution | None) -> None:
        self.execution, self.owner = execution, owner
        self.known = True  # how the ordinary network's maps lie in memory
        self.given: list[tuple[Tensor, Tensor, int | None]] = []  # a map, the whole one, and the version of that

    def whole_map(self, value: Tensor) -> Tensor:
        """Return a map as whole images, the same for the same map; other tensors as they are."""
        for own, whole, _ in self.given:
            if own is value:
                return whole
        whole = self.execution.whole_map(value)
        if whole is value:
            return value
        note = self.execution.memory.noted(value)
        self.known = self.known and note != UNKNOWN
        whole = laid_out(whole, note)
        self.given.append((value, whole, _version_of(whole)))
        return whole

    def write_back(self) -> None:
        """Have what the module wrote into its arguments stand in the maps that it was called with."""
        for own, whole, version in self.given:
            if version is None or whole._version != version:
                owner = self.execution.owner([own])
                assert owner is not None
                own.copy_(owner.visible_part(whole))

    def visible_part(self, output: Any) -> Tensor:
        """Return the visible part of an output; an argument that is returned is the map that the module was given."""
        assert self.owner is not None
        for own, whole, _ in self.given:
            if whole is output:
                return own
        found: Tensor = self.execution.returned(self.owner.visible_part(output))
        if torch.compiler.is_compiling():
            return found
        return self.execution.memory.note(found, note_of_tensor(output) if self.known else UNKNOWN)


def _version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written; None in inference mode, where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _owner(execution: Execution, x: Any) -> Execution | None:
    """Return whose map a module is given; None for a tensor without values (`shared/beside.py`), which it is left."""
    beside = execution.beside
    if beside is not None and beside.without_values(execution, x) is not None:
        return None
    return execution.owner([x])


def _on_ones(execution: Execution, factor: _Factor) -> tuple[Any, Any]:
    """Draw a factor for each image, or for each position of the whole map: what the module makes of ones."""
    calls: list[tuple[Execution | None, Tensor, Tensor]] = []  # those under way: whose map it is, the map, and the ones

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, *others = args
        owner = _owner(execution, x)
        if owner is None:
            calls.append((None, x, x))
            execution.opaque_calls += 1
            return args, kwargs
        layout = owner.require_map(None, x)
        owner.require_no_padding(layout, None)
        with torch._C.DisableTorchFunction():
            size = [owner.extent_of_whole(layout, a, x.shape[a]) if factor.of_positions else 1 for a in layout.space]
            ones = x.new_ones(execution.grid_shape[0], x.shape[1] if factor.of_positions else 1, *size)
        calls.append((owner, x, ones))
        execution.opaque_calls += 1
        return (ones, *others), kwargs

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        execution.opaque_calls -= 1
        owner, x, ones = calls.pop()
        if owner is None:
            return output
        if output is ones and not torch.compiler.is_compiling() and ones._version == 0:
            return x  # nothing is dropped
        layout = owner.require_map(None, x)
        with torch._C.DisableTorchFunction():
            if factor.of_positions:
                drawn = owner.visible_part(output)
            else:
                drawn = owner.mark(owner.all_rows(output, 0), layout.per_image(0))
            multiply = torch.Tensor.mul_ if output is ones else torch.mul
            out: Tensor = owner.answer(multiply, (x, drawn), {})
            return out

    return before, after


def _on_rows(execution: Execution) -> tuple[Any, Any]:
    """Run synchronized batch norm on rows: its autograd function is not traced, but means what batch norm means."""
    calls: list[tuple[Execution | None, Tensor]] = []  # those under way: whose map it is, and the map

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x,) = args
        owner = _owner(execution, x)
        calls.append((owner, x))
        if owner is None:
            return args, kwargs
        layout = owner.layout(x)
        assert layout is not None
        with torch._C.DisableTorchFunction():
            rows = owner.visible_rows(x, layout) if layout.is_map else owner.one_row_per_image(x, layout.batch)
        return (rows,), kwargs

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        owner, x = calls.pop()
        if owner is None:
            return output
        layout = owner.layout(x)
        assert layout is not None
        with torch._C.DisableTorchFunction():
            out = owner.from_visible_rows(output, x, layout) if layout.is_map else owner.all_rows(output, layout.batch)
        return owner.mark(out, layout)

    return before, after
