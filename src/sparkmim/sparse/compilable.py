"""Find out, before a network is compiled, whether the compiled network computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..utils.modules import preserved_buffers
from .dense.execution import MaskedDenseExecution
from .errors import UnsupportedOperation
from .execution import Execution
from .grid import PatchGrid
from .packed import depthwise, gather
from .packed.execution import SparseExecution
from .run import FOUND_COMPILABLE, run
from .shared.beside import REFUSED

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value of a map, that is rounding."""


def require_compilable(
    grid: PatchGrid,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None = None,
) -> None:
    """Raise if a compiled network would compute something else than the network does.

    Dynamo tells a network the sizes of the tensors at hand, packed patches, where eagerly it reads those of the whole
    map. A network that only gives them back to functions computes the same; one that decides by them does not. So it
    runs eagerly in both ways, without gradients; its buffers and random numbers stay as they were. An attribute notes
    that it was, without which :func:`~sparkmim.sparse.run.run` refuses to be compiled.

    On a GPU Triton kernels are compared with PyTorch's operations as well, which while compiling would be too late.

    Args:
        grid: the visible patches.
        network: the module.
        images: `(B, C, *size)`.
        features: calls it and returns its feature maps, see :func:`~sparkmim.sparse.run.run`.

    Raises:
        UnsupportedOperation: for a network that decides by sizes, or that is refused eagerly.
    """
    told, execution = _maps(grid, network, images, features, plain=False)
    if execution.told.read and not _same_told_plain_sizes(told, grid, network, images, features):
        raise UnsupportedOperation(
            f"{type(network).__name__} decides by the sizes of its maps, which a compiler takes for those of patches: "
            "it cannot be compiled; uncompiled it works"
        )
    for verified in (gather.has_kernel, depthwise.are_verified):  # which a compiler cannot find out
        verified(None, images)
    setattr(network, FOUND_COMPILABLE, True)
    _note_refused(execution, network)


def require_reference_compilable(
    grid: PatchGrid,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None = None,
) -> None:
    """Raise if a network cannot be compiled in the masked-dense reference, found out in an eager run.

    Args:
        grid, network, images, features: as for :func:`require_compilable`.

    Raises:
        UnsupportedOperation: for a network with statistics of visible positions (batch norm, a mean over space) or
            mirroring padding, or that is refused eagerly.
    """
    execution = MaskedDenseExecution(grid)
    execution.counts_refused = True
    _without_traces(execution, network, images, features)
    if execution.picks_positions:
        raise UnsupportedOperation(
            f"{type(network).__name__} cannot be compiled with execution='masked-dense', which picks out visible "
            "positions by the values of the mask, for statistics or mirroring padding; uncompiled it works, and "
            "execution='packed' computes the same numbers"
        )
    _note_refused(execution, network)


def _note_refused(execution: Execution, network: nn.Module) -> None:
    if execution.beside is not None:
        noted = getattr(network, REFUSED, {})
        setattr(network, REFUSED, {**noted, network.training: execution.beside.refused})


def _same_told_plain_sizes(
    maps: list[Tensor],
    grid: PatchGrid,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None,
) -> bool:
    try:
        plain, _ = _maps(grid, network, images, features, plain=True)
    except (RuntimeError, TypeError, ValueError, LookupError):
        return True  # so would the compiled network raise, by itself
    return all(_same(a, b) for a, b in zip(maps, plain, strict=True))


def _maps(
    grid: PatchGrid,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None,
    plain: bool,
) -> tuple[list[Tensor], SparseExecution]:
    execution = SparseExecution(grid)
    execution.told.plain = plain
    execution.counts_refused = True
    return _without_traces(execution, network, images, features), execution


def _without_traces(
    execution: Execution,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None,
) -> list[Tensor]:
    """Run a network eagerly without gradients; its buffers and random numbers stay as they were."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.no_grad(), preserved_buffers(network), torch.random.fork_rng(devices):
        return run(execution, network, images, features)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = a.abs().max().item()
    return bool((a - b).abs().max().item() <= TOLERANCE * scale)
