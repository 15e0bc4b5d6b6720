"""Go on with a network's forward pass from densified maps: its own decoder computes on them.

A network with a decoder is called once. Until the last of its skips has been computed, it is the encoder, and what it
computes is remembered as the encoder's. Then the skips are densified, and from there on every function that the network
calls on a skip is given the densified map instead; a function called on anything else that the encoder has computed is
refused, as hidden places of it would never be filled. So nothing is computed twice, and the decoder is the network's
own code, however it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode, _push_mode

from ..sparse import UnsupportedOperation
from ..sparse.checkpointing import inside_checkpoint, recompute_under, switched_gradients
from ..sparse.layout import MARK
from ..sparse.nested import map_tensors, tensors_in
from .taps import StageTaps

TAG = "_sparkmim_encoder"
"""Attribute of tensors that the encoder has computed in a pass."""

Densified = Callable[[list[Tensor]], Sequence[Tensor]]
"""Returns the densified maps of the skips."""


class _Tag(NamedTuple):
    """By which pass, function and module a tensor was computed."""

    passing: object
    function: str
    module: str


class Continuation(TorchFunctionMode):
    """Replaces the skips of one pass by densified maps, once all of them have been computed.

    Args:
        skips: names of the maps, in the notation of :mod:`~sparkmim.models.taps`.
        densify: takes the maps in the order of `skips`.
        running: names of the modules whose forward pass is under way, if errors are to tell them.
    """

    def __init__(self, skips: Sequence[str], densify: Densified, running: Sequence[str] = ()) -> None:
        super().__init__()
        self.skips, self.densify, self.running = list(skips), densify, running
        self.maps: dict[str, Tensor] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """The skips and their densified maps, once there are any."""
        self.passing = object()
        self.grad_enabled = torch.is_grad_enabled()

    def run(self, network: nn.Module, images: Tensor, last: str) -> Tensor:
        """Return the map `last` of the decoder, where the pass ends.

        Raises:
            UnsupportedOperation: if the decoder uses more of the encoder than its skips.
        """
        self._tag(images, "", "")
        taps = StageTaps(network, [*self.skips, last])
        with self:
            *_, out = taps(network, images, self._read)
        return self._given(None, out)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.pairs:
            self._densify_if_complete()
        tensors = [t for t in tensors_in((args, kwargs)) if self._is_encoders(t)]
        if not tensors:
            return func(*args, **kwargs)
        if self.pairs:
            return self._decode(func, args, kwargs, tensors)
        out = func(*args, **kwargs)
        written = args[:1] if func is Tensor.__setitem__ else ()
        for tensor in tensors_in((out, written)):
            self._tag(tensor, getattr(func, "__name__", ""), self.running[-1] if self.running else "")
        return out

    # --- before: the encoder --------------------------------------------------------------------------------------

    def _tag(self, tensor: Tensor, function: str, module: str) -> None:
        setattr(tensor, TAG, _Tag(self.passing, function, module))

    def _is_encoders(self, tensor: Tensor) -> bool:
        """Return whether the encoder has computed a tensor in this pass."""
        tag = getattr(tensor, TAG, None)
        return tag.passing is self.passing if tag is not None else hasattr(tensor, MARK)

    def _read(self, name: str, value: Any) -> None:
        """Take note of a map that has been computed, and densify all of them if it was the last."""
        if name in self.skips:
            self.maps[name] = value
            self._densify_if_complete()

    def _densify_if_complete(self) -> None:
        """Densify the skips, but not within a checkpointed function: that would do so again in backward."""
        if len(self.maps) < len(set(self.skips)) or inside_checkpoint():
            return
        maps = [self.maps[name] for name in self.skips]
        with _outside_modes():
            self.pairs = list(zip(maps, self.densify(maps), strict=True))

    # --- after: the decoder ---------------------------------------------------------------------------------------

    def _decode(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Call a function with densified maps in place of the skips."""
        if len(tensors) == 1 and not self._is_skip(tensors[0]):
            out = func(*args, **kwargs)
            if next(tensors_in(out), None) is None:  # its size was asked for
                return out
        if torch.is_grad_enabled() != self.grad_enabled:
            why = switched_gradients(func)
            if why is not None:
                raise UnsupportedOperation(
                    f"the decoder's {getattr(func, '__name__', 'function')} is given a skip: {why}"
                )
        given = map_tensors(lambda tensor: self._given(func, tensor), (args, kwargs))
        recompute_under(self._again, func)
        return func(*given[0], **given[1])

    def _is_skip(self, tensor: Tensor) -> bool:
        return any(skip is tensor for skip, _ in self.pairs)

    def _given(self, func: Any, tensor: Tensor) -> Tensor:
        """Return what the decoder is given for a tensor.

        Raises:
            UnsupportedOperation: for one that the encoder has computed, and that is no skip.
        """
        for skip, dense in self.pairs:
            if skip is tensor:
                return dense
        if not self._is_encoders(tensor):
            return tensor
        tag = getattr(tensor, TAG, _Tag(None, "", ""))
        what = f"the result of {tag.function}" if tag.function else "the image itself"
        where = f" in module {tag.module!r}" if tag.module else ""
        by = f" ({func.__name__})" if hasattr(func, "__name__") else ""
        raise UnsupportedOperation(
            f"the decoder uses{by} {what}{where}, of shape {tuple(tensor.shape)}, which is computed before the last "
            f"skip and is none of them ({', '.join(self.skips)}), so that its hidden places would not be filled"
        )

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Enter the decoder's part again, for what a checkpoint computes again in backward."""
        with self:
            yield


@contextmanager
def _outside_modes() -> Iterator[None]:
    """Leave all torch function modes, and enter them again on exit."""
    modes = [_pop_mode() for _ in range(_len_torch_function_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
