"""Run a network under an execution."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from ..utils.modules import modules_of, preserved_buffers
from .backward_hooks import MovedHooks
from .checkpointing import note_shapes_at_hand
from .compiling import compiled_parts_eager, show_functions_to_modes
from .errors import NOT_TRACED, WAYS_OUT, UnsupportedOperation, path_of_running_module
from .execution import Execution
from .extent import MEASURED, Extent
from .overrides import attach_to_modules
from .shared.beside import Beside
from .traceable import scripted_functions

FOUND_COMPILABLE = "_sparkmim_compilable"
"""Attribute of networks that :func:`~sparkmim.sparse.compilable.require_compilable` has seen."""


def run(
    execution: Execution,
    network: nn.Module,
    images: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]] | None = None,
    unreached: Collection[str] | None = None,
) -> list[Tensor]:
    """Return the feature maps of `images` under an execution, each `(batch, C_i, *space_i)`.

    Args:
        execution: answers what the network calls.
        network: the module, whose parts errors name.
        images: `(B, C, *size)`, the size divisible by the grid.
        features: calls the network and returns its feature maps; by default `network`, which must then return one map
            or a list of them.
        unreached: names of the network's parameters that no map depends on; by default `features.unreached`, if it has
            that. What is computed beside the maps, with these or without any, may call functions that have no rule.

    Raises:
        UnsupportedOperation: for an operation without a rule, with the path of the module that calls it. Compiled, also
            for a network on packed patches that :func:`~sparkmim.sparse.require_compilable` has not seen.
    """
    if torch.compiler.is_compiling():
        if execution.packs and not getattr(network, FOUND_COMPILABLE, False):
            raise UnsupportedOperation(
                f"{type(network).__name__} has not been checked before it is compiled, and a compiler tells it sizes "
                "of patches for those of maps; call sparkmim.sparse.require_compilable(grid, network, images) before"
            )
        show_functions_to_modes()
        modules = list(network.modules())
    else:
        modules = modules_of(network)
        own = [module._parameters.values() for module in modules if module._parameters]
        execution.note_constants(p for p in chain.from_iterable(own) if p is not None)  # results of functional_call
        execution.reenter = partial(_again, network)
        note_shapes_at_hand()
    if unreached is None:
        unreached = () if features is None or isinstance(features, nn.Module) else getattr(features, "unreached", ())
    if unreached:
        beside = Beside(network, unreached, counting=execution.counts_refused)
        if beside.refused or not execution.compiling:
            execution.beside = beside
    features = network if features is None else features
    execution.grad_enabled = torch.is_grad_enabled()
    handles = attach_to_modules(execution, modules)
    try:
        inputs = execution.prepare(images)
        with compiled_parts_eager(), execution:
            maps = features(inputs)
        for handle in handles:
            if isinstance(handle, MovedHooks):
                handle.require_finished()
        maps = [maps] if isinstance(maps, Tensor) else maps
        if execution.beside is not None:
            execution.beside.require_none_kept(execution)
        return finished(execution, maps)
    except (UnsupportedOperation, TypeError) as error:
        if isinstance(error, TypeError) and Extent.__name__ not in str(error):
            raise
        path = None if torch.compiler.is_compiling() else path_of_running_module(error, network)
        if isinstance(error, TypeError):  # torch itself takes no sizes of a map where it wants a tensor
            error = UnsupportedOperation(f"{MEASURED} ({str(error).splitlines()[0]}). {WAYS_OUT}")
        message = f"{error}{_scripted_ones(error, network)}"
        raise UnsupportedOperation(f"in module '{path}': {message}" if path else message) from None
    finally:
        for handle in handles:
            handle.remove()


def _scripted_ones(error: Exception, network: nn.Module) -> str:
    """Return a sentence that names the scripted functions of a network, if an error is of what is not traced."""
    if torch.compiler.is_compiling() or NOT_TRACED not in str(error):
        return ""
    names = ", ".join(scripted_functions(network))
    return (
        f" It calls scripted functions, which may be the reason: {names}; call what they were made of." if names else ""
    )


def finished(execution: Execution, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps that a network has computed under an execution, checked, as values that are free to be used.

    Raises:
        UnsupportedOperation: for one that does not descend from the input, or is not yet complete.
    """
    return [(execution.owner([m]) or execution).finish(m, f"feature map {i}") for i, m in enumerate(maps)]


@contextmanager
def _again(network: nn.Module, execution: Execution) -> Iterator[None]:
    """Enter an execution of `network` again, for what a checkpoint computes again in backward.

    Running statistics stay as they are: the first pass has updated them.
    """
    handles = attach_to_modules(execution, modules_of(network))
    try:
        with preserved_buffers(network), compiled_parts_eager(), execution:
            yield
    finally:
        for handle in handles:
            handle.remove()
