"""Wrap a convolutional network as a pyramid of feature maps whose channels and strides are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import DropBlock2d, DropBlock3d, StochasticDepth

from ..sparse import CheckReport, check, random_factor
from ..sparse.effort import affordable
from ..sparse.traceable import require_traceable
from ..utils.axes import per_axis
from ..utils.copies import copied
from ..utils.logging import log
from ..utils.text import counted
from .alignment import Alignment
from .dataflow import leaves
from .finding import StageFinder
from .levels import (
    COMPUTED_SIZES,
    MAX_LEVELS,
    PROBE_SIZES,
    Level,
    NotProportionalError,
    SomeSizesError,
    measure_levels,
    pyramid,
)
from .networks import spatial_dims
from .probe import MadeParametersError, Probe, Result
from .steps import proportional
from .taps import StageTaps
from .trace import Trace, record
from .user_code import code_of

random_factor(StochasticDepth)
for drop_block in (DropBlock2d, DropBlock3d):
    random_factor(drop_block, of_positions=True)
random_factor(timm.layers.DropBlock2d, of_positions=True, unless="with_noise")

MOST_CHECKED_IMAGES = 128
"""Of a batch of training that a check compares: as many small images take as long as ten of 224 pixels."""


Levels = int | Literal["all"] | None
"""Number of feature maps to keep: None for up to four."""


class _Reading(NamedTuple):
    """A way to read maps from a network, and what is known of them; see the attributes of :class:`Backbone`."""

    taps: StageTaps | None
    alignment: Alignment | None
    offered: int
    chosen: list[int]
    levels: list[Level]
    unaligned: str | None
    lost: str | None
    overlooked: list[str]
    unreached: frozenset[str]
    ended: str | None


class _Pass(NamedTuple):
    """A pass over the network: all that it computes, the maps, and the parameters that each of them depends on."""

    trace: Trace
    maps: list[Any]
    reached: list[set[str]]


class Backbone:
    """Wrap a convolutional network and return its feature maps, highest resolution first.

    Of all maps the network offers, the last of each resolution is kept, and of those the four deepest, or as many as
    asked for. Nothing is computed to find them: the network runs on tensors without values (device `meta`) where it
    can, and is left as it was.

    Args:
        module: the network. One with timm's `forward_intermediates` offers its maps itself.
        stages: names of the submodules whose outputs are the maps, or of other maps in the notation of
            :mod:`~sparkmim.models.taps`; each must be one `(B, C, *size)` tensor. If not given, for a network without
            `forward_intermediates`, they are found by running it, see :mod:`~sparkmim.models.stages`.
        in_chans: channels of the images.
        levels: number of maps to keep. By default the four deepest, without a map of stride 1; if given, such a map may
            be among them. "all" keeps every map of a network that goes up again (a U-Net), and of others the default.
        dims: number of spatial dimensions; by default that of most of the network's convolutions.

    Attributes:
        module: the network, unchanged. It carries hooks during a forward pass only.
        levels: channels and stride of each map, measured by running the network on blank images.
        stages: names of the maps; empty for a network that offers them itself.
        dims: number of spatial dimensions.
        aligned: names of the modules whose convolutions or poolings :class:`Alignment` pads while this backbone runs;
            empty for a network whose maps are proportional to the image as they are.
        overlooked: names of the trainable parameters that a pass uses before its last map, or after it on all its
            positions (tokens, maps with channels last), but none of the maps depends on: they would not be trained.
        unreached: names of all parameters that none of the maps depends on: a classifier's, of an auxiliary one too.
            What is computed with these alone may be what has no meaning on visible patches.
        notes: what is unusual, in sentences: padding that is added, parameters that are overlooked, a forward pass that
            ends in an error. They are logged as warnings too.

    Raises:
        ValueError: if the network offers no maps, an unknown stage is named, its maps are not proportional to the image
            and no padding makes them so, it has scripted or lazy parts, or fewer maps than `levels`.

    Examples:
        >>> backbone = Backbone(torchvision.models.resnet18())
        >>> [level.channels for level in backbone.levels]
        [64, 128, 256, 512]
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[str] | None = None,
        *,
        in_chans: int = 3,
        levels: Levels = None,
        dims: int | None = None,
    ) -> None:
        if isinstance(stages, str):
            raise ValueError(f"stages takes a sequence of names, not {stages!r}; write [{stages!r}]")
        if not (levels is None or levels == "all" or (isinstance(levels, int) and levels >= 1)):
            raise ValueError(f"levels is a number of feature maps, at least 1, not {levels!r}; 'all' takes all")
        if dims not in (None, 1, 2, 3):
            raise ValueError(f"dims is the number of spatial dimensions, 1, 2 or 3, not {dims}")
        require_traceable(module)
        self.module = module
        self.in_chans = in_chans
        self.dims = spatial_dims(module) if dims is None else dims
        self._probe = Probe(module, in_chans)
        self._finder = StageFinder(module, self.dims, self._probe)
        self._verified: tuple[int, ...] = ()  # size of an image that the network runs on
        self._taps: StageTaps | None = None
        self._chosen: list[int] | None = None  # indices of the kept maps among all that the network offers
        self._alignment: Alignment | None = None
        self.levels: list[Level] = []
        reading = self._read_plain_or_padded(stages, levels)
        self._use(reading)
        self.overlooked, self.unreached = reading.overlooked, reading.unreached
        self.notes = self._notes(reading)
        for note in self.notes:
            log.warning(note)

    @classmethod
    def create(
        cls, name: str, *, in_chans: int = 3, pretrained: bool = False, levels: Levels = None, **kwargs: Any
    ) -> Backbone:
        """Create a timm network by name, without its classifier.

        Args:
            name: a timm model name.
            in_chans: channels of the images.
            pretrained: load timm's weights.
            levels: number of maps to keep, see :class:`Backbone`.
            kwargs: passed on to `timm.create_model`.

        Raises:
            ValueError: for a name that timm does not know (the error suggests the nearest names), or a network without
                feature maps of images of any size.
        """
        module = cls.create_module(name, in_chans=in_chans, pretrained=pretrained, **kwargs)
        with code_of(name):
            return cls(module, in_chans=in_chans, levels=levels)

    @staticmethod
    def create_module(name: str, *, in_chans: int = 3, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Return a timm network by name, without its classifier; see :meth:`create`."""
        if not timm.is_model(name.split(".")[0]) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            close = get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
            hint = f"; did you mean {', '.join(close)}?" if close else "; timm.list_models() lists the names"
            raise ValueError(f"timm knows no model called {name!r}{hint}")
        module: nn.Module = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, num_classes=0, **kwargs)
        return module

    @property
    def stages(self) -> list[str]:
        """Names of the maps; empty for a network that offers them itself."""
        if self._taps is None:
            return []
        return [self._taps.names[i] for i in self._chosen or range(len(self._taps.names))]

    @property
    def aligned(self) -> list[str]:
        """Names of the modules whose calls are padded."""
        return [] if self._alignment is None else list(self._alignment.padded)

    @property
    def channels(self) -> list[int]:
        """Channels of each map."""
        return [level.channels for level in self.levels]

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Stride of each map along each axis: pixels of the image per position."""
        return [level.stride for level in self.levels]

    def __call__(self, images: Float[Tensor, "batch channel *size"]) -> list[Float[Tensor, "batch _ *_size"]]:
        """Return the feature maps `(B, C_i, *size / stride_i)`, highest resolution first."""
        return self.maps(self.module, images)

    def maps(self, module: nn.Module, images: Tensor) -> list[Tensor]:
        """Return the feature maps of `module`, which is the network or a replica of it."""
        with nullcontext() if self._alignment is None else self._alignment:
            if self._taps is not None:
                maps = self._taps(module, images)
                return maps if self._chosen is None else [maps[i] for i in self._chosen]
            if self._chosen is None:
                return list(module.forward_intermediates(images, intermediates_only=True))  # type: ignore[operator]
            indices = sorted(self._chosen)
            maps = module.forward_intermediates(  # type: ignore[operator]
                images, indices=indices, stop_early=True, intermediates_only=True
            )
            return [maps[indices.index(i)] for i in self._chosen]

    # --- how the maps are read ------------------------------------------------------------------------------------

    def _use(self, reading: _Reading) -> None:
        self._taps, self._alignment, self._chosen = reading.taps, reading.alignment, reading.chosen
        self.levels = reading.levels

    def _read_plain_or_padded(self, stages: Sequence[str] | None, levels: Levels) -> _Reading:
        """Return how maps are read: with padding where only that gives maps of each resolution."""
        plain: _Reading | NotProportionalError
        try:
            plain = self._read(stages, levels, None)
        except NotProportionalError as error:
            plain = error
        if isinstance(plain, _Reading) and not plain.unaligned:
            return plain
        alignment = Alignment()
        try:
            with alignment.record_padded(self.module):
                padded = self._read(stages, levels, alignment)
        except Exception as error:  # NotProportionalError, or the network's own where it cuts off its padding
            if isinstance(plain, _Reading):
                return plain
            raise plain from (None if isinstance(error, NotProportionalError) else error)
        if isinstance(plain, NotProportionalError):
            return padded if alignment.padded else padded._replace(alignment=None)
        better = padded.offered >= plain.offered and not padded.unaligned and (padded.ended is None or plain.ended)
        return padded if better and alignment.padded else plain

    def _read(self, stages: Sequence[str] | None, count: Levels, alignment: Alignment | None) -> _Reading:
        """Find the maps, measure them and choose among them.

        Raises:
            NotProportionalError: if their sizes are not the image's divided by a stride.
        """
        self._taps, self._alignment, self._chosen = None, alignment, None
        ended = None
        unaligned: str | None = None
        rises = stages is not None
        if stages is not None:
            self._taps = StageTaps(self.module, stages)
        elif not hasattr(self.module, "forward_intermediates"):
            found, ended = self._finder.find(full=count is not None, alignment=alignment)
            self._taps = StageTaps(self.module, found.stages)
            unaligned, rises = found.unaligned, found.rises
        name = type(self.module).__name__
        passes: dict[tuple[int, ...], _Pass] = {}

        def run(size: Sequence[int]) -> list[Any]:
            passes[tuple(size)] = self._run_to_last_stage(size)
            return passes[tuple(size)].maps

        sizes = PROBE_SIZES[:5] if unaligned else self._probe_sizes()  # no size helps where only padding does
        try:
            everything = measure_levels(run, self.dims, name, sizes, lambda: self._probe.computes)
        except Exception as error:
            if isinstance(error, (NotProportionalError, SomeSizesError, MadeParametersError)):
                raise
            if not self._probe.failed_for_meta(
                lambda image, _: self(image), (COMPUTED_SIZES[self.dims][0],) * self.dims
            ):
                raise
            passes.clear()
            everything = measure_levels(run, self.dims, name, COMPUTED_SIZES[self.dims], lambda: True)
        chosen = self._choose(everything, count, rises)
        if isinstance(count, int) and len(chosen) < count:
            raise ValueError(
                f"levels={count}, but {name} has maps of {len(chosen)} resolutions"
                + (f" ({', '.join(self._taps.names)})" if self._taps is not None else "")
            )
        size = tuple(passes)[-1]
        if count == "all":
            chosen = [index for index in chosen if passes[size].reached[index]]  # not the image itself
        self._chosen = chosen
        self.levels = [everything[index] for index in chosen]
        if alignment is not None:
            alignment.padded.clear()  # while stages were looked for, the classifier ran too
        astray = self._unaligned(passes[size].trace, size)
        used = passes[size].trace.used.difference(*[passes[size].reached[index] for index in chosen])
        overlooked = [n for n, p in self.module.named_parameters() if p.requires_grad and n in used]
        reached = set().union(*[passes[size].reached[index] for index in chosen])
        if not reached:
            raise ValueError(
                f"no feature map of {name} depends on any of its parameters, so nothing would be trained; does its "
                "forward pass run under torch.no_grad() or torch.inference_mode()?"
            )
        if stages is None and self._taps is not None and not self._probe.computes:
            overlooked += [n for n in self._finder.used_on_tokens(size) if n not in reached and n not in used]
        offered = len({level.stride for level in everything})
        self._verified = size
        lost = None if astray else unaligned
        unreached = frozenset(name for name, _ in self.module.named_parameters()) - reached
        return _Reading(
            self._taps, alignment, offered, chosen, self.levels, unaligned or astray, lost, overlooked, unreached, ended
        )

    def _unaligned(self, trace: Trace, size: tuple[int, ...]) -> str | None:
        """Return the first convolution or pooling before the last map whose own map is not aligned, if there is one."""
        try:
            larger = self._run_to_last_stage([2 * s for s in size])
        except Exception:  # a network that takes no larger images
            return None
        return proportional(trace, larger.trace, size).unaligned

    @staticmethod
    def _choose(levels: list[Level], count: Levels, rises: bool) -> list[int]:
        """Return which of all maps are kept, see :class:`Backbone`; `rises` says whether the network goes up again."""
        if count != "all":
            return pyramid(levels, MAX_LEVELS if count is None else count)
        everything = pyramid(levels, len(levels))
        if rises:
            return everything
        return [index for index in everything if math.prod(levels[index].stride) > 1][-MAX_LEVELS:]

    def _probe_sizes(self) -> Iterator[int]:
        """Yield the sizes on which levels are measured, fewer once the network turns out to be computed."""
        for size in PROBE_SIZES:
            if not self._probe.computes:
                yield size
        if self._probe.computes:
            yield from COMPUTED_SIZES[self.dims]

    def _run_to_last_stage(self, size: Sequence[int]) -> _Pass:
        """Run the network on a blank image, record what it computes and return its maps."""

        def use(image: Tensor, names: Mapping[int, str]) -> _Pass:
            maps: list[Any] = []
            trace = record(self.module, lambda: maps.extend(self(image)), self.dims, names)
            if trace.error is not None:
                raise trace.error
            found = [leaves([m]) if isinstance(m, Tensor) else set() for m in maps]
            reached = [{name for key, name in names.items() if key in ids} for ids in found]
            return _Pass(trace, [m.detach() if isinstance(m, Tensor) else m for m in maps], reached)

        return self._probe(size, use)

    def _notes(self, reading: _Reading) -> list[str]:
        name = type(self.module).__name__
        notes = []
        if reading.ended is not None:
            notes.append(
                f"the forward pass of {name} ends in an error ({reading.ended}), as of a classifier of images of one "
                f"size; the maps before that are used: {', '.join(self.stages)}"
            )
        if self.aligned:
            notes.append(
                f"padding is added to {_some(self.aligned, 'module')} of {name}, because patches must be aligned with "
                "its maps: away from the border they are the unpadded network's on a shifted image"
            )
        if reading.lost is not None and reading.alignment is None:
            notes.append(
                f"the map of {reading.lost.split(':')[0] or name} is not the image's size divided by a stride, and no "
                "padding of both sides makes it so: patches are not aligned with it, and what follows it is not trained"
            )
        if self.overlooked:
            notes.append(
                f"no feature map of {name} depends on {_some(self.overlooked, 'parameter')} that it uses before the "
                "last one or on all its positions after it, so they are not trained; name other stages to have them "
                "trained, each a map (batch, channel, *space)"
            )
        return notes

    def blank_image(self, size: Sequence[int]) -> Float[Tensor, "1 channel *size"]:
        """Return a batch of one image of zeros, of the network's dtype and device."""
        parameter = next(self.module.parameters())
        return torch.zeros(1, self.in_chans, *size, dtype=parameter.dtype, device=parameter.device)

    def resolve_patch_size(self, patch_size: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """Return the pixels of a patch along each axis: the network's total stride by default.

        Raises:
            ValueError: if a position of some map would straddle two patches: along each axis the patch size must be a
                multiple or a divisor of the stride of every map.
        """
        total = self.strides[-1]
        if patch_size is None:
            return total
        size = per_axis((patch_size,) if isinstance(patch_size, int) else tuple(patch_size), self.dims)
        if len(size) == self.dims and all(
            p > 0 and (p % s == 0 or s % p == 0) for stride in self.strides for p, s in zip(size, stride, strict=True)
        ):
            return size
        strides = ", ".join(" x ".join(map(str, stride)) for stride in self.strides)
        raise ValueError(
            f"patch size {patch_size} is not a multiple of the network's total stride {' x '.join(map(str, total))}, "
            f"and not a divisor of it that fits the strides of all maps ({strides})"
        )

    def size_divisor(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Return what image sizes must be a multiple of: the least common multiple of patch size and total stride."""
        return tuple(math.lcm(p, s) for p, s in zip(patch_size, self.strides[-1], strict=True))

    def check(
        self,
        patch_size: int | Sequence[int] | None = None,
        *,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 1,
        quick: bool = False,
        **settings: Any,
    ) -> CheckReport:
        """Check on a copy that the network works on visible patches: identity, crop, leak and oracle on small images.

        Args:
            patch_size: pixels of a patch; the total stride by default.
            image_size: of training, an int or one an axis: with nothing hidden, feature maps of one such image are
                compared too. A network may compute something else on large images than on small ones.
            batch_size: images that training sees at a time. With more than one, feature maps of as many small images
                are compared too, up to 128.
            quick: check networks of volumes that would take minutes in less precision or on fewer patches, and in
                float64 if that fails; see :mod:`sparkmim.sparse.effort`.
            settings: of :func:`sparkmim.sparse.check`.

        Raises:
            ValueError: for an image size that the patch size or the total stride does not divide, or a network that has
                no values, or cannot be copied.
        """
        other = self._copied_for_check()
        size = self.resolve_patch_size(patch_size)
        shapes: list[tuple[int, ...]] = []
        if image_size is not None:
            shapes.append((1, *((image_size,) * self.dims if isinstance(image_size, int) else image_size)))
        if batch_size > 1:
            shapes.append((min(batch_size, MOST_CHECKED_IMAGES), *[2 * s for s in self.size_divisor(size)]))
        network: dict[str, Any] = {"patch_size": size, "stride": self.strides[-1], "in_chans": self.in_chans}
        given = {**network, "shapes": shapes, **settings}
        less = affordable(other.module, other, **network) if quick else {}
        report = check(other.module, other, **given, **less)
        if less and not report.passed:  # rounding may have been too much; more patches may be too much for the memory
            other = self._copied_for_check()
            report = check(other.module, other, **given, **{**less, "dtype": torch.float64})
        return report

    def _copied_for_check(self) -> Backbone:
        name = type(self.module).__name__
        if any(p.device.type == "meta" for p in self.module.parameters()):
            raise ValueError(
                f"parameters of {name} are on the device meta and have no values to check; use "
                "network.to_empty(device='cpu'), and initialize or load them"
            )
        other = copied(self)
        patched = next((n for n, part in other.module.named_modules() if "forward" in vars(part)), None)
        if patched is None:
            return other
        other._probe = Probe(other.module, self.in_chans)
        other._probe.computes = self._probe.computes
        with suppress(Exception):  # a network that mixes the copy's parameters with its own
            if other._reached(None) == self._reached(None):
                return other
        raise ValueError(
            f"a copy of {name} would call the network itself, because the forward method of "
            f"{f'its module {patched!r}' if patched else 'the module'} was replaced by a function that is bound to it; "
            "replace it in a subclass, or by types.MethodType(function, module) (and compile by module.compile())"
        )

    def unreached_parameters(self, levels: int | None = None) -> list[str]:
        """Return the names of trainable parameters that none of the deepest `levels` maps (all of them) depends on.

        These are a classifier's, or a last norm's.
        """
        reached = self._reached(levels)
        return [name for name, p in self.module.named_parameters() if name not in reached and p.requires_grad]

    def unreached_tensors(self) -> set[str]:
        """Return the names in the network's state dict that no map depends on.

        These are parameters, frozen or not, and the buffers of modules whose parameters are all among them.
        """
        parameters = {name for name, _ in self.module.named_parameters()} - self._reached(None)
        own = {
            prefix: {name for name, _ in part.named_parameters(prefix)} for prefix, part in self.module.named_modules()
        }
        spare = tuple(f"{prefix}." for prefix, names in own.items() if names and names <= parameters)
        return parameters | {name for name in self.module.state_dict() if name.startswith(spare)}

    def _reached(self, levels: int | None) -> set[str]:
        """Return the names of the parameters that one of the deepest `levels` maps depends on."""

        def use(image: Tensor, names: Mapping[int, str]) -> set[str]:
            found = leaves(self(image)[-(levels or 0) :])
            return {name for key, name in names.items() if key in found}

        return self.probe(use)

    def probe(self, use: Callable[[Tensor, Mapping[int, str]], Result]) -> Result:
        """Return what `use` makes of a blank image large enough for all maps, see :mod:`~sparkmim.models.probe`.

        Args:
            use: takes an image, and the name of each parameter by its id. Nothing is computed if that can be avoided.
        """
        pixels = max(s for stride in self.strides for s in stride)
        if not self._probe.computes:
            return self._probe(self._verified, use)
        try:
            return self._probe([2 * pixels] * self.dims, use)
        except RuntimeError:  # a network that pools by 4 in a block needs larger images
            return self._probe([8 * pixels] * self.dims, use)


def _some(names: Sequence[str], what: str, most: int = 8) -> str:
    """Return a number of things, and the names of the first ones."""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{counted(len(names), what)} ({shown})"
