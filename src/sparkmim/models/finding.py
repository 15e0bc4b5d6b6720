"""Look for the stages of a network on images of several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import NamedTuple

from torch import Tensor, nn

from .alignment import Alignment
from .levels import HUGE_SIZES, NotProportionalError, suggested_size
from .probe import MustComputeError, Probe
from .stages import Findings, find_stages
from .steps import gains
from .trace import Size, Trace, record

FINDING_SIZES = {1: 8192, 2: 1024, 3: 1024}
"""Size of the image on which stages are looked for first, by number of dimensions. The deepest map must have as many
positions as its stride has pixels, and all maps must be the image's size divided by a stride."""

COMPUTED_FINDING_SIZES = {1: (4096, 6720, 32768), 2: (128, 224, 240, 512), 3: (32, 48, 64)}
"""Sizes for networks that must be computed, or that take no large images."""

COMPARED_POSITIONS = 8
"""Of the deepest map along each axis, where evaluation and training mode are compared."""


class _Passes(NamedTuple):
    """What a network computes of an image, and of one twice as large; and the id of the smaller image."""

    trace: Trace
    larger: Trace
    image: int


class StageFinder:
    """Finds the stages of a network by running it on blank images of several sizes.

    Args:
        module: the network.
        dims: number of spatial dimensions.
        probe: runs it.
    """

    def __init__(self, module: nn.Module, dims: int, probe: Probe) -> None:
        self.module, self.dims, self._probe = module, dims, probe
        self._alignment: Alignment | None = None
        self._meta_does = False  # whether an error on meta tensors turned out to be the network's own
        self._ran = False  # whether a pass has computed a map
        self._modes_differ = False  # whether maps have other sizes in training mode

    def find(self, full: bool, alignment: Alignment | None) -> tuple[Findings, str | None]:
        """Return the stages of the network, and how its forward pass ended if it did so in an error.

        Args:
            full: also a map of stride 1.
            alignment: pads what the network computes, if given.

        Raises:
            NotProportionalError: if there are none.
        """
        self._alignment = alignment
        best: tuple[Findings, _Passes, Size] | None = None
        error: Exception | None = None
        for extent in self._finding_sizes():
            size = (extent,) * self.dims
            try:
                passes = self._run_twice(extent)
            except MustComputeError:
                continue
            found = find_stages(*passes, size, full)
            error = error or passes.larger.error
            self._ran = self._ran or any(event.kind != "input" for event in passes.larger.events)
            if found.stages and (best is None or self._rank(found) > self._rank(best[0])):
                best = found, passes, size
            if found.stages and (found.unaligned or (found.last_fits and self._is_certain(found))):
                break
        if best is None:
            raise self._nothing_found(error, full) from error
        found, passes, size = best
        ended = passes.larger.error
        found = self._in_both_modes(found, passes, size, full)
        return found, None if ended is None else f"{type(ended).__name__}: {' '.join(str(ended).split())[:200]}"

    def _in_both_modes(self, found: Findings, passes: _Passes, size: Size, full: bool) -> Findings:
        """Return stages that the network also has in training mode: some pool the last map in evaluation mode alone.

        The modes are compared on a small image, as what runs in training mode alone may take long (a recurrence over
        positions). Blocks that it skips at random are no such difference: no size changes with them.

        Args:
            found: the stages in evaluation mode.
            passes: in which they were found.
            size: of the smaller image of these.
            full: also a map of stride 1.
        """
        if not found.strides:
            return found
        small = tuple(COMPARED_POSITIONS * stride for stride in found.strides[-1])
        try:
            (ordinary, _), (training, _) = self._run_to_end(small), self._run_to_end(small, training=True)
        except MustComputeError:
            return found
        sizes = {event.name: event.size for event in training.events}
        same = all(sizes.get(event.name, event.size) == event.size for event in ordinary.events)
        if same or training.error is not None:
            return found
        self._modes_differ = True
        left_out = {event.name for event in ordinary.events if sizes.get(event.name) != event.size}
        both = find_stages(*passes, size, full, left_out)
        return both if both.stages else found

    def used_on_tokens(self, size: Sequence[int]) -> list[str]:
        """Return the trainable parameters that are used on what grows with the image, and is not laid out as a map."""
        training = self._modes_differ
        try:
            trace, _ = self._run_to_end(size, training)
            larger, _ = self._run_to_end([2 * s for s in size], training)
        except MustComputeError:  # then the search runs once more, on tensors
            return []
        beside = trace.used_beside_maps(larger, self.dims)
        return [name for name, p in self.module.named_parameters() if p.requires_grad and name in beside]

    def _run_twice(self, extent: int) -> _Passes:
        """Return what the network computes of an image, and of one twice as large; and see :meth:`_run_to_end`."""
        trace, image = self._run_to_end((extent,) * self.dims)
        larger, _ = self._run_to_end((2 * extent,) * self.dims)
        return _Passes(trace, larger, image)

    def _is_certain(self, found: Findings) -> bool:
        """Return whether no other strides give maps of the sizes that were found."""
        return found.smallest > 2 if self._probe.computes else found.smallest >= max(map(max, found.strides))

    def _rank(self, found: Findings) -> tuple[bool, bool, int]:
        return found.last_fits and self._is_certain(found), found.last_fits, len(found.stages)

    def _finding_sizes(self) -> Iterator[int]:
        if not self._probe.computes:
            yield FINDING_SIZES[self.dims]
        if not self._probe.computes:
            huge = HUGE_SIZES[self.dims]
            with suppress(MustComputeError):
                trace, larger, _ = self._run_twice(huge)
                suggested = suggested_size(gains(trace, larger, huge))
                yield from [suggested] * (suggested > 0)
        yield from COMPUTED_FINDING_SIZES[self.dims]

    def _nothing_found(self, error: Exception | None, full: bool) -> NotProportionalError:
        """Return the error for a network in which no stages are found."""
        name = type(self.module).__name__
        children = ", ".join(child for child, _ in self.module.named_children())
        if isinstance(error, TypeError) and f"{name}.forward()" in str(error):
            return NotProportionalError(
                f"{name} does not run on images alone ({error}); expected a network whose forward pass takes one "
                "tensor of images: wrap it in a module whose forward calls it with what else it needs, or pass the "
                f"part of it that takes images, of {children}"
            )
        reason = error or (
            f"no submodule of {name} gives a feature map (1, C, *size) of an image"
            + ("" if full else ", but for maps of stride 1, which levels=1 admits")
        )
        more = ""
        if error is not None and not self._ran:
            more = (
                "; it fails before it computes a map, so if it takes images of one size alone, pass the part that maps"
            )
        return NotProportionalError(
            f"{name} does not offer its feature maps, and they cannot be found by running it ({reason}); name the "
            f"submodules that end its stages: sparkmim.Backbone(module, stages=[...]), of {children}, or deeper ones"
            + more
        )

    def _run_to_end(self, size: Sequence[int], training: bool = False) -> tuple[Trace, int]:
        """Run the network on a blank image; return what it computes, and the id of the image in the autograd graph."""

        def use(image: Tensor, names: Mapping[int, str]) -> tuple[Trace, int]:
            assert image.grad_fn is not None
            source = image.grad_fn.next_functions[0][0].variable  # type: ignore[union-attr]
            with nullcontext() if self._alignment is None else self._alignment:
                return record(self.module, lambda: self.module(image), self.dims, names), id(source)

        trace, image = self._probe(size, use, training)
        if training:
            return trace, image
        if trace.error is not None and not self._probe.computes and not self._meta_does:
            small = (COMPUTED_FINDING_SIZES[self.dims][0],) * self.dims
            on_meta, computed = (found for found, _ in self._probe.run_both(small, use))
            self._meta_does = len(computed.events) <= len(on_meta.events)
            self._probe.computes = not self._meta_does
            if self._probe.computes:
                raise MustComputeError(f"{type(self.module).__name__} needs real tensors ({trace.error})")
        return trace, image
