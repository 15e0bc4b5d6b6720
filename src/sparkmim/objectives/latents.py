"""Feature maps of an averaged copy of the encoder at hidden positions, predicted from the decoder's coarse maps.

The target is what a teacher, whose weights are an exponential moving average of the encoder's, computes of the whole
image: its deepest maps, normalized at each position (as I-JEPA, arXiv 2301.08243, and CNN-JEPA, arXiv 2408.07514).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..sparse import PatchGrid, mask_at
from ..utils.modules import CONV
from .base import Decoded, Objective
from .settings import LatentsSettings

POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

WATCHED = 256
"""Images whose features are kept to see whether they collapse."""

FEWEST = 8
"""Images whose features tell something."""

LEAST_SPREAD = 0.05
"""Spread of features below which they have collapsed to one direction."""

LEAST_RANK = 2.0
"""Effective rank of features below which they have collapsed to a line."""


class Latents(Objective):
    """Regress the teacher's maps at hidden positions by a smooth L1 loss.

    The map of a scale is predicted by a 1x1 convolution of the decoder's next finer map, averaged to that scale.
    Without another objective the decoder ends there.

    Attributes:
        teacher: the averaged encoder; its batch norms have statistics of their own, of whole images.
        seen: `(WATCHED, C)`, the teacher's deepest map, averaged over positions, of the last images.
        count: how many images have been seen.
    """

    settings_type = LatentsSettings
    uses_maps = True
    settings: LatentsSettings
    seen: Tensor
    count: Tensor

    def __init__(self, settings: LatentsSettings, **given: Any) -> None:
        super().__init__(settings, **given)
        self.weight = settings.weight
        self.channels = 0
        self.factors: list[tuple[int, ...]] = []
        self._maps: Callable[[nn.Module, Tensor], Sequence[Tensor]] | None = None

    def fit(self, strides: Sequence[tuple[int, ...]]) -> None:
        """End the decoder one block above the finest of the predicted maps."""
        count = min(self.settings.stages, len(strides))
        self.stride = tuple(s // f for s, f in zip(strides[-count], map(least_factor, strides[-count]), strict=True))

    def attach(self, model: nn.Module) -> None:
        """Copy the encoder, and build a head for each predicted map.

        Raises:
            ValueError: with a network's own decoder, fewer feature maps than are to be predicted, or a weight beside
                no other objective.
        """
        spark: Any = model
        if self.is_weighted_alone(spark):
            raise ValueError(
                f"--objective.weight {self.weight:g} weights latents beside another objective, and has no effect on "
                "latents alone; leave it out, or use --objective pixels+latents"
            )
        steps = getattr(spark.decoder, "steps", None)
        if steps is None:
            raise ValueError("--objective latents predicts from the maps of --decoder unet; use that, or pixels")
        used = [spark.backbone.levels[i] for i in reversed(spark.used)]
        count = self.settings.stages
        if count > len(used):
            raise ValueError(f"--objective.stages {count}, but the network has {len(used)} feature maps; use fewer")
        starts = [next(i for i, step in enumerate(steps) if step.level == level) for level in range(count)]
        parameter = next(spark.encoder.parameters())
        self.factors = [steps[i].factor for i in starts]
        self.starts = starts
        conv = CONV[spark.backbone.dims]
        self.heads = nn.ModuleList(
            conv(spark.decoder.widths[start + 1], level.channels, 1)
            for start, level in zip(starts, used[:count], strict=True)
        ).to(parameter.dtype)
        self.teacher = Teacher(spark.encoder)
        self.register_buffer("seen", torch.zeros(WATCHED, used[0].channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._maps = spark.backbone.maps
        self._used = list(reversed(spark.used))[:count]

    def follow_loaded(self, model: nn.Module) -> None:
        """Make the teacher the encoder again."""
        spark: Any = model
        self.teacher.network.load_state_dict(spark.encoder.state_dict())

    def target(self, images: Float[Tensor, "batch channel *size"]) -> Any:
        """Return the teacher's maps, deepest first, normalized over channels at each position, float32."""
        assert self._maps is not None
        with torch.no_grad():
            maps = self._maps(self.teacher.network, images)
            found = [maps[i] for i in self._used]
            if self.training:
                pooled = found[0].flatten(2).mean(2).to(self.seen.dtype)[-WATCHED:]
                self.seen.copy_(torch.cat([self.seen[len(pooled) :], pooled]))
                self.count += len(pooled)
            return [normalize_positions(m) for m in found]

    def compare(
        self,
        decoded: Decoded,
        images: Float[Tensor, "batch channel *size"],
        grid: PatchGrid,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the smooth L1 error at hidden positions (or all), averaged over channels, positions and maps.

        Pixels without data are 0, the mean, in what the teacher sees; its maps have values everywhere.
        """
        losses = []
        targets = self.target(images[:: decoded.masks])  # the teacher sees each image once
        for target, start, factor, head in zip(targets, self.starts, self.factors, self.heads, strict=True):
            found = decoded.maps[start]
            target = target.repeat_interleave(decoded.masks, 0)
            predicted = head(POOL[len(factor)](found, factor)).to(target.dtype)
            error = F.smooth_l1_loss(predicted, target, reduction="none").mean(1)
            counted = torch.ones_like(error, dtype=torch.bool)
            if self.loss_on == "hidden":
                counted = ~mask_at(grid.visible, error.shape[1:])
            losses.append(error.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, model: nn.Module, progress: float) -> None:
        """Move the teacher towards the encoder: `teacher = m * teacher + (1 - m) * encoder`, m rising to 1."""
        spark: Any = model
        momentum = 1 - (1 - self.settings.momentum) * (1 + math.cos(math.pi * progress)) / 2
        own = dict(self.teacher.network.named_parameters())
        for name, parameter in spark.encoder.named_parameters():
            own[name].lerp_(parameter.detach().to(own[name].dtype), 1 - momentum)

    def watch(self) -> dict[str, float]:
        """Return how the teacher's features differ between images: `latent_spread` and `latent_rank`.

        The spread is the deviation of features of unit length, over that of directions drawn at random: 1 for those, 0
        where all are the same. The rank is the exponential of the entropy of the singular values of centered features
        (RankMe, arXiv 2210.02885). None are returned before `FEWEST` images have been seen.
        """
        count = min(int(self.count), WATCHED)
        if count < FEWEST:
            return {}
        rows = self.seen[-count:].double()
        spread = F.normalize(rows, dim=1).var(0, correction=0).sum().sqrt()
        values = torch.linalg.svdvals(rows - rows.mean(0))
        share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
        rank = torch.special.entr(share).sum().exp()
        return {"latent_spread": float(spread), "latent_rank": float(rank)}

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """Return that the features have collapsed, if they have."""
        spread, rank = watched.get("latent_spread", math.inf), watched.get("latent_rank", math.inf)
        if spread >= LEAST_SPREAD and rank >= LEAST_RANK:
            return None
        return (
            f"the teacher's features hardly differ between images (spread {spread:.3f}, rank {rank:.1f}): they have "
            "collapsed. Use --objective pixels+latents, a lower --lr, or a higher --objective.momentum"
        )

    def networks(self) -> Mapping[str, nn.Module]:
        """Return the teacher, whose features are the ones to use frozen."""
        return {"teacher": self.teacher.network}


class Teacher(nn.Module):
    """A copy of an encoder that is never trained, and has no noise: only its batch norms are in training mode."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(encoder).requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Set the mode of batch norms alone; stochastic depth and dropout stay off."""
        super().train(False)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return self


def normalize_positions(maps: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch channel *size"]:
    """Return maps whose channels have mean 0 and deviation 1 at each position, at least float32."""
    maps = maps if maps.dtype.itemsize >= torch.float32.itemsize else maps.float()
    centered = maps - maps.mean(1, keepdim=True)
    return centered * (centered.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def least_factor(n: int) -> int:
    """Return the least prime factor of a number, 1 of 1."""
    return next((f for f in range(2, n + 1) if n % f == 0), 1)
