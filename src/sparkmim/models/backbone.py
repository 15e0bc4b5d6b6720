"""Wrap a convolutional network as a pyramid of feature maps whose channels and strides are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import DropBlock2d, DropBlock3d, StochasticDepth

from ..sparse import CheckReport, check, random_factor
from ..sparse.traceable import require_traceable
from ..utils.copies import copied
from ..utils.modules import eval_mode, preserved_attributes
from .alignment import Alignment
from .levels import MAX_LEVELS, Level, NotProportionalError, measure_levels, pyramid
from .stages import find_stages
from .taps import StageTaps

random_factor(StochasticDepth)
for drop_block in (DropBlock2d, DropBlock3d):
    random_factor(drop_block, of_positions=True)
random_factor(timm.layers.DropBlock2d, of_positions=True, unless="with_noise")

MOST_CHECKED_IMAGES = 128
"""Of a batch of training that a check compares: as many small images take as long as ten of 224 pixels."""


class Backbone:
    """Wrap a convolutional network and return its feature maps, highest resolution first.

    Of all maps the network offers, the last of each resolution is kept, and of those the four deepest.

    Args:
        module: the network. One with timm's `forward_intermediates` offers its maps itself.
        stages: names of the submodules whose outputs are the maps; each must return one `(B, C, *size)` tensor. If not
            given, for a network without `forward_intermediates`, they are found by running it, see
            :func:`~sparkmim.models.stages.find_stages`.
        in_chans: channels of the images.

    Attributes:
        module: the network, unchanged except for the hooks that read the outputs of `stages`.
        levels: channels and stride of each map, measured by running the network on blank images.
        dims: number of spatial dimensions.
        aligned: names of the modules whose convolutions or poolings :class:`Alignment` pads while this backbone runs;
            empty for a network whose maps are proportional to the image as they are.

    Raises:
        ValueError: if the network offers no maps or holds scripted modules, an unknown stage is named, or its maps are
            not proportional to the image and no padding makes them so.

    Examples:
        >>> backbone = Backbone(torchvision.models.resnet18())
        >>> [level.channels for level in backbone.levels]
        [64, 128, 256, 512]
    """

    def __init__(self, module: nn.Module, stages: Sequence[str] | None = None, *, in_chans: int = 3) -> None:
        if isinstance(stages, str):
            raise ValueError(f"stages takes a sequence of names, not {stages!r}; write [{stages!r}]")
        require_traceable(module)
        self.module = module
        self.in_chans = in_chans
        self.dims = _spatial_dims(module)
        self._taps: StageTaps | None = None
        self._chosen: list[int] | None = None  # indices of the kept maps among all that the network offers
        self._alignment: Alignment | None = None
        try:
            self.levels = self._find_levels(stages)
        except NotProportionalError as unpadded:
            self._alignment = Alignment()
            try:
                with self._alignment.record_padded(module):
                    self.levels = self._find_levels(stages)
            except NotProportionalError:
                raise unpadded from None

    @classmethod
    def create(cls, name: str, *, in_chans: int = 3, pretrained: bool = False, **kwargs: Any) -> Backbone:
        """Create a timm network by name, without its classifier.

        Args:
            name: a timm model name.
            in_chans: channels of the images.
            pretrained: load timm's weights.
            kwargs: passed on to `timm.create_model`.

        Raises:
            ValueError: for a name that timm does not know; the error suggests the nearest names.
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
            self._taps = StageTaps(self.module, self._find_stages())
        elif stages is not None and self._taps is None:
            self._taps = StageTaps(self.module, stages)
        with eval_mode(self.module), preserved_attributes(self.module), torch.no_grad():
            levels = measure_levels(lambda size: self(self.blank_image(size)), self.dims, type(self.module).__name__)
        self._chosen = pyramid(levels)
        return [levels[index] for index in self._chosen]

    def _find_stages(self) -> list[str]:
        """Return the names of the submodules that end a stage, found by running the network."""
        sizes = ((64, 64, 64), (96, 128, 96)) if self.dims == 3 else ((224, 224), (256, 288))
        try:
            with (
                eval_mode(self.module),
                preserved_attributes(self.module),
                nullcontext() if self._alignment is None else self._alignment,
            ):
                images = [self.blank_image(size[: self.dims]) for size in sizes]
                return find_stages(self.module, *images)
        except (ValueError, RuntimeError, TypeError) as error:
            children = ", ".join(name for name, _ in self.module.named_children())
            raise NotProportionalError(
                f"{type(self.module).__name__} does not offer its feature maps, and they cannot be found by running it "
                f"({error}); name the submodules that end its stages: sparkmim.Backbone(module, stages=[...]), of "
                f"{children}, or deeper ones"
            ) from error

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

    def size_divisor(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Return what image sizes must be a multiple of: the least common multiple of patch size and total stride."""
        return tuple(math.lcm(p, s) for p, s in zip(patch_size, self.strides[-1], strict=True))

    def check(
        self,
        patch_size: int | Sequence[int] | None = None,
        *,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 1,
        **settings: Any,
    ) -> CheckReport:
        """Check on a copy that the network works on visible patches: identity, crop, leak and oracle on small images.

        Args:
            patch_size: pixels of a patch; the total stride by default.
            image_size: of training, an int or one an axis: with nothing hidden, feature maps of one such image are
                compared too. A network may compute something else on large images than on small ones.
            batch_size: images that training sees at a time. With more than one, feature maps of as many small images
                are compared too, up to 128.
            settings: of :func:`sparkmim.sparse.check`.

        Raises:
            ValueError: for an image size that the patch size or the total stride does not divide.
        """
        other = copied(self)
        size = self.resolve_patch_size(patch_size)
        shapes: list[tuple[int, ...]] = []
        if image_size is not None:
            shapes.append((1, *((image_size,) * self.dims if isinstance(image_size, int) else image_size)))
        if batch_size > 1:
            shapes.append((min(batch_size, MOST_CHECKED_IMAGES), *[2 * s for s in self.size_divisor(size)]))
        settings = {"stride": self.strides[-1], "in_chans": self.in_chans, "shapes": shapes} | settings
        return check(other.module, other, patch_size=size, **settings)

    def unreached_parameters(self, levels: int = MAX_LEVELS) -> list[str]:
        """Return the names of trainable parameters that none of the deepest `levels` maps depends on.

        These are a classifier's, or a last norm's.
        """
        size = max(s for stride in self.strides for s in stride)
        with eval_mode(self.module), preserved_attributes(self.module), torch.enable_grad():
            frozen = [p for p in self.module.parameters() if not p.requires_grad]
            maps = self(self.blank_image([2 * size] * self.dims).requires_grad_())
        reached = _leaves(maps[-levels:])
        skip = {id(p) for p in frozen}
        return [name for name, p in self.module.named_parameters() if id(p) not in reached and id(p) not in skip]

    def unreached_tensors(self) -> set[str]:
        """Return the names in the network's state dict that no map depends on.

        These are parameters, frozen or not, and the buffers of modules whose parameters are all among them.
        """
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


def _spatial_dims(module: nn.Module) -> int:
    kernels = [p.ndim - 2 for p in module.parameters() if p.ndim > 2]
    if not kernels:
        raise ValueError(
            f"{type(module).__name__} has no convolution, so it offers no feature maps; expected a convnet"
        )
    return kernels[0]


def _leaves(outputs: Sequence[Tensor]) -> set[int]:
    """Return the ids of the leaf tensors that the outputs depend on, read from the autograd graph."""
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
