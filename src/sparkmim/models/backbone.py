"""Any convolutional network as a pyramid of feature maps, its channels and strides measured, never typed in."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..sparse import CheckReport, check, random_factor
from .alignment import Alignment
from .stages import find_stages

random_factor(StochasticDepth)

LEVELS = 4
"""Feature maps that a pyramid keeps at most: the deepest ones (strides 4 to 32 for a ResNet), as in the paper."""

PROBE_SIZES = (224, 256, 240, 288, 360)
"""Image sizes tried for guessing the strides: one that they all divide is wanted."""

PROBE_SIZES_3D = (64, 96, 80, 112, 144)
"""Likewise for volumes."""

PROOF_PATCHES = 16
"""Patches in a row on which a guess is verified, for a map may divide an image that its stride does not. That many tell
strides apart that differ by a sixteenth."""


class Level(NamedTuple):
    """One map of a pyramid: its channels, and its stride along each spatial axis."""

    channels: int
    stride: tuple[int, ...]


class Backbone:
    """A network as a function from images to feature maps, finest first.

    Of all maps the network offers, the last of each resolution is kept, and of those the four deepest.

    Args:
        module: the network. One with timm's `forward_intermediates` offers its maps itself.
        stages: names of the submodules whose outputs are the maps; each must return one `(B, C, *size)` tensor. If not
            given, for a network without `forward_intermediates`, they are found by running it, see
            :func:`~sparkmim.models.stages.find_stages`.
        in_chans: channels of the images.

    Attributes:
        module: the network, untouched but for the hooks that read the outputs of `stages`.
        levels: channels and stride of each map, measured by running the network on blank images.
        dims: number of spatial dimensions.
        aligned: names of modules whose convolutions or poolings are given padding, by :class:`Alignment`, while this
            backbone runs; empty for a network whose maps are proportional to the image as they are.

    Raises:
        ValueError: if the network offers no maps, an unknown stage is named, or its maps are not proportional to the
            image and no padding makes them.

    Examples:
        >>> backbone = Backbone(torchvision.models.resnet18())
        >>> [level.channels for level in backbone.levels]
        [64, 128, 256, 512]
    """

    def __init__(self, module: nn.Module, stages: Sequence[str] | None = None, *, in_chans: int = 3) -> None:
        self.module = module
        self.in_chans = in_chans
        self.dims = _spatial_dims(module)
        self._taps: _Taps | None = None
        self._chosen: list[int] | None = None  # of all maps the network offers, those to keep, finest first
        self._alignment: Alignment | None = None
        try:
            self.levels = self._find_levels(stages)
        except _NotProportional as unpadded:
            self._alignment = Alignment()
            try:
                with self._alignment.noting(module):
                    self.levels = self._find_levels(stages)
            except _NotProportional:
                raise unpadded from None

    @classmethod
    def create(cls, name: str, *, in_chans: int = 3, pretrained: bool = False, **kwargs: Any) -> Backbone:
        """A timm network by name, without its classifier.

        Args:
            name: a timm model name.
            in_chans: channels of the images.
            pretrained: start from timm's weights.
            kwargs: passed on to `timm.create_model`.

        Raises:
            ValueError: for a name that timm does not know; the nearest names are suggested.
        """
        if not timm.is_model(name.split(".")[0]) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            close = get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
            hint = f"; did you mean {', '.join(close)}?" if close else "; timm.list_models() lists the names"
            raise ValueError(f"timm knows no model called {name!r}{hint}")
        return cls(
            timm.create_model(name, pretrained=pretrained, in_chans=in_chans, num_classes=0, **kwargs),
            in_chans=in_chans,
        )

    @property
    def aligned(self) -> list[str]:
        """Names of modules whose calls are given padding."""
        return [] if self._alignment is None else list(self._alignment.padded)

    @property
    def channels(self) -> list[int]:
        """Channels of each map."""
        return [level.channels for level in self.levels]

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Pixels of the image for one position of each map, along each axis."""
        return [level.stride for level in self.levels]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The feature maps `(B, C_i, *size / stride_i)` of images `(B, C, *size)`, finest first."""
        with nullcontext() if self._alignment is None else self._alignment:
            return self._maps(images)

    def _maps(self, images: Tensor) -> list[Tensor]:
        if self._taps is not None:
            maps = self._taps(self.module, images)
            return maps if self._chosen is None else [maps[i] for i in self._chosen]
        if self._chosen is None:
            return list(self.module.forward_intermediates(images, intermediates_only=True))  # type: ignore[operator]
        indices = sorted(self._chosen)
        maps = self.module.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, stop_early=True, intermediates_only=True
        )
        return [maps[indices.index(i)] for i in self._chosen]

    def _find_levels(self, stages: Sequence[str] | None) -> list[Level]:
        if stages is None and not hasattr(self.module, "forward_intermediates"):
            self._taps = _Taps(self.module, self._find_stages())
        elif stages is not None and self._taps is None:
            self._taps = _Taps(self.module, stages)
        return self._measure()

    def _find_stages(self) -> list[str]:
        """Names of the submodules that end a stage, seen by running the network."""
        sizes = ((64, 64, 64), (96, 128, 96)) if self.dims == 3 else ((224, 224), (256, 288))
        try:
            with probing(self.module), nullcontext() if self._alignment is None else self._alignment:
                images = [self.blank_image(size[: self.dims]) for size in sizes]
                return find_stages(self.module, *images)
        except (ValueError, RuntimeError, TypeError) as error:
            children = ", ".join(name for name, _ in self.module.named_children())
            raise _NotProportional(
                f"{type(self.module).__name__} does not offer its feature maps, and they cannot be found by running it "
                f"({error}); name the submodules that end its stages: sparkmim.Backbone(module, stages=[...]), of "
                f"{children}, or deeper ones"
            ) from error

    def _measure(self) -> list[Level]:
        tried: list[str] = []
        for extent in PROBE_SIZES_3D if self.dims == 3 else PROBE_SIZES:
            levels = self._measure_at((extent,) * self.dims, tried)
            if levels is None:
                continue
            patch = math.lcm(*[s for level in levels for s in level.stride])
            rows = [
                [(PROOF_PATCHES if a == axis else 2) * patch for a in range(self.dims)] for axis in range(self.dims)
            ]
            if all(self._measure_at(row, tried) == levels for row in rows):
                break
        else:
            raise _NotProportional(
                f"the feature maps of {type(self.module).__name__} are not proportional to the image "
                f"({'; '.join(tried)}), not even with padding for unpadded convolutions and poolings; patches cannot "
                "be aligned with them"
            )
        last = {level.stride: index for index, level in enumerate(levels)}
        self._chosen = sorted(last.values(), key=lambda index: levels[index].stride)[-LEVELS:]
        return [levels[index] for index in self._chosen]

    def _measure_at(self, size: Sequence[int], tried: list[str]) -> list[Level] | None:
        """All maps of an image of that size, None (and a line in `tried`) if they do not divide it."""
        with probing(self.module), torch.no_grad():
            maps = self(self.blank_image(size))
        shapes = [tuple(m.shape) for m in maps if isinstance(m, Tensor)]
        if len(shapes) != len(maps) or any(len(shape) != self.dims + 2 for shape in shapes):
            raise ValueError(f"a backbone must offer maps (B, C, *size); {type(self.module).__name__} gives {shapes}")
        if not shapes:
            raise ValueError(f"{type(self.module).__name__} offers no feature maps")
        extents = [shape[2:] for shape in shapes]
        tried.append(f"{' x '.join(map(str, size))} -> {', '.join(' x '.join(map(str, e)) for e in extents)}")
        if any(s % e for map_ in extents for s, e in zip(size, map_, strict=True)):
            return None
        strides = [tuple(s // e for s, e in zip(size, map_, strict=True)) for map_ in extents]
        return [Level(shape[1], stride) for shape, stride in zip(shapes, strides, strict=True)]

    def blank_image(self, size: Sequence[int]) -> Tensor:
        """A batch of one grey image of that size, of the network's dtype and device."""
        parameter = next(self.module.parameters())
        return torch.zeros(1, self.in_chans, *size, dtype=parameter.dtype, device=parameter.device)

    def resolve_patch_size(self, patch_size: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """Pixels of a patch along each axis: the network's total stride by default.

        Raises:
            ValueError: if patches and the positions of a map would straddle each other: along each axis the patch size
                must be a multiple or a divisor of the stride of every map.
        """
        total = self.strides[-1]
        if patch_size is None:
            return total
        size = (patch_size,) * self.dims if isinstance(patch_size, int) else tuple(patch_size)
        if len(size) == self.dims and all(
            p > 0 and (p % s == 0 or s % p == 0) for stride in self.strides for p, s in zip(size, stride, strict=True)
        ):
            return size
        strides = ", ".join(" x ".join(map(str, stride)) for stride in self.strides)
        raise ValueError(
            f"patch size {patch_size} is not a multiple of the network's total stride {' x '.join(map(str, total))}, "
            f"and not a divisor of it that fits the strides of all maps ({strides})"
        )

    def unit(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """What the size of images must be a multiple of, along each axis: of the patch size and the total stride."""
        return tuple(math.lcm(p, s) for p, s in zip(patch_size, self.strides[-1], strict=True))

    def check(self, patch_size: int | Sequence[int] | None = None, **settings: Any) -> CheckReport:
        """Whether the network works on visible patches: identity, crop, leak and oracle, on a copy.

        Args:
            patch_size: pixels of a patch; the total stride by default.
            settings: of :func:`sparkmim.sparse.check`.
        """
        other = copy.deepcopy(self)
        size = self.resolve_patch_size(patch_size)
        stride = self.strides[-1]
        return check(other.module, other, patch_size=size, stride=stride, in_chans=self.in_chans, **settings)

    def unreached_parameters(self, levels: int = LEVELS) -> list[str]:
        """Names of parameters that none of the deepest `levels` maps depends on (a classifier's, a last norm's)."""
        size = max(s for stride in self.strides for s in stride)
        with probing(self.module), torch.enable_grad():
            frozen = [p for p in self.module.parameters() if not p.requires_grad]
            maps = self(self.blank_image([2 * size] * self.dims).requires_grad_())
        reached = _leaves(maps[-levels:])
        skip = {id(p) for p in frozen}
        return [name for name, p in self.module.named_parameters() if id(p) not in reached and id(p) not in skip]

    def unreached_tensors(self) -> set[str]:
        """Names in the network's state dict that no map depends on: parameters, frozen or not, and the buffers of
        modules of which all parameters are among these."""
        frozen = [parameter for parameter in self.module.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_()
        parameters = set(self.unreached_parameters())
        for parameter in frozen:
            parameter.requires_grad_(False)
        own = {
            prefix: {name for name, _ in part.named_parameters(prefix)} for prefix, part in self.module.named_modules()
        }
        spare = tuple(f"{prefix}." for prefix, names in own.items() if names and names <= parameters)
        return parameters | {name for name in self.module.state_dict() if name.startswith(spare)}


class _NotProportional(ValueError):
    """Maps that patches cannot be followed through."""


class _Taps:
    """Reads the outputs of named submodules by forward hooks."""

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
        """Hook the named submodules; again where one was replaced since, as conversions of batch norm do."""
        for name in self.names:
            submodule = module.get_submodule(name)
            if self.hooked.get(name) is not submodule:
                submodule.register_forward_hook(_Tap(self, name))
                self.hooked[name] = submodule

    def __call__(self, module: nn.Module, images: Tensor) -> list[Tensor]:
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
    """A forward hook; an object, so that copies of a network have hooks of their own."""

    def __init__(self, taps: _Taps, name: str) -> None:
        self.taps, self.name = taps, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.taps.active:
            self.taps.outputs[self.name] = output
            if len(self.taps.outputs) == len(self.taps.names):
                raise _AllStagesReached


class _AllStagesReached(Exception):
    """Ends a forward pass of which nothing more is needed."""


def _spatial_dims(module: nn.Module) -> int:
    kernels = [p.ndim - 2 for p in module.parameters() if p.ndim > 2]
    if not kernels:
        raise ValueError(
            f"{type(module).__name__} has no convolution, so it offers no feature maps; wanted is a convolutional "
            "network"
        )
    return kernels[0]


@contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a probe, every submodule's own mode restored after it."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def _leaves(outputs: Sequence[Tensor]) -> set[int]:
    """Identities of the leaf tensors that outputs depend on, read off the autograd graph."""
    found: set[int] = set()
    seen: set[Any] = set()
    queue = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        queue.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found
