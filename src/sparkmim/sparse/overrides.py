"""Modules the engine does not trace into: run on the whole map, on rows, or on one number an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .execution import Execution, map_tensors

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


_FACTORS: set[type[nn.Module]] = set()


def random_factor(kind: type[nn.Module]) -> type[nn.Module]:
    """Declare that modules of a class multiply each image by a number that they draw themselves, in training mode.

    Stochastic depth that draws its noise from a tensor of the input needs no such declaration. One that draws it by
    `torch.empty(len(x), 1, 1, 1)`, as torchvision's, does: samples are patches there. It is then given ones, one an
    image, and what it makes of them is the factor.

    Args:
        kind: a class whose modules take a map `(B, C, *size)` and return that times `(B, 1, ...)` or `(1, 1, ...)`.
    """
    _FACTORS.add(kind)
    return kind


def attach_to_opaque_modules(execution: Execution, network: nn.Module) -> list[RemovableHandle]:
    """Give opaque modules of `network` maps (or rows) they understand, until the handles are removed."""
    handles: list[RemovableHandle] = []
    synchronized = torch.distributed.is_available() and torch.distributed.is_initialized()
    for module in network.modules():
        if getattr(module, _FALLBACK, False):
            before, after = _on_whole_map(execution)
        elif type(module) in _FACTORS and module.training:
            before, after = _on_ones(execution)
        elif synchronized and isinstance(module, nn.SyncBatchNorm):
            before, after = _on_rows(execution)
        else:
            continue
        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, prepend=True),  # other hooks, a backbone's among them, see the result
        ]
    return handles


def _on_whole_map(execution: Execution) -> tuple[Any, Any]:
    owners: list[Execution | None] = []  # of each call under way, whose maps it was given, if any

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        owner = execution.owner([*args, *kwargs.values()])
        owners.append(owner)
        with torch._C.DisableTorchFunction():
            return (args, kwargs) if owner is None else map_tensors(execution.whole_map, (args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        owner = owners.pop()
        if owner is None:
            return output
        with torch._C.DisableTorchFunction():
            if isinstance(output, (tuple, list)):
                return type(output)([execution.returned(owner.visible_part(part)) for part in output])
            return execution.returned(owner.visible_part(output))

    return before, after


def _on_ones(execution: Execution) -> tuple[Any, Any]:
    """Draw one factor per image: what the module makes of ones."""
    calls: list[tuple[Execution | None, Tensor]] = []  # those under way: whose map it is, and the map

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, *others = args
        owner = execution.owner([x])
        calls.append((owner, x))
        if owner is None:
            return args, kwargs
        owner.require_no_padding(owner.require_map(None, x), None)
        with torch._C.DisableTorchFunction():
            return (x.new_ones(execution.grid_shape[0], *[1] * (x.ndim - 1)), *others), kwargs

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        owner, x = calls.pop()
        if owner is None:
            return output
        layout = owner.require_map(None, x)
        with torch._C.DisableTorchFunction():
            factor = owner.mark(owner.all_rows(output, 0), layout.per_image(0))
            out: Tensor = owner.answer(torch.mul, (x, factor), {})
            return out

    return before, after


def _on_rows(execution: Execution) -> tuple[Any, Any]:
    """Run synchronized batch norm on rows: its autograd function is not traced, but means what batch norm means."""
    calls: list[tuple[Execution | None, Tensor]] = []  # those under way: whose map it is, and the map

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x,) = args
        owner = execution.owner([x])
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
