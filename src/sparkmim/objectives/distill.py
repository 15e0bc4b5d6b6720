"""Features of a frozen teacher, computed once for each image and sampled at each crop, regressed by the encoder.

Positions: 0.9 of the cosine distance and 0.1 of the smooth L1 error (AM-RADIO, arXiv 2312.06709). Images: the
cross-entropy of similarities to a queue of the teacher's vectors (SEED, arXiv 2101.04731; LightlyTrain).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..sparse import PatchGrid
from ..utils.modules import CONV
from .base import Decoded, Objective
from .latents import POOL, least_factor
from .settings import DistillSettings

COSINE = 0.9
"""Share of the cosine distance in the loss of a position; the rest is the smooth L1 error."""


class TeacherTargets(NamedTuple):
    """What a teacher makes of the views of a batch.

    Attributes:
        maps: `(B, channels, *size)`, its map at the positions of the student's deepest one.
        pooled: `(B, channels)`, its vector of the whole image.
    """

    maps: Tensor
    pooled: Tensor


class Distill(Objective):
    """Regress a frozen teacher's maps and vectors, of whole images or of masked ones.

    The student's deepest map is brought to the teacher's channels by a 1x1 convolution, its mean to those of the
    teacher's vector by a linear layer. Of masked images the map of visible patches is compared where it is, and all
    positions are predicted from the decoder's first map.

    Attributes:
        queue: `(settings.queue, channels)`, the teacher's vectors of images before, of length 1, the newest last. With
            several processes they are those of the first.
        filled: how many of them have been set.
    """

    settings_type = DistillSettings
    uses_maps = True
    takes_whole = True
    settings: DistillSettings
    queue: Tensor
    filled: Tensor

    def __init__(self, settings: DistillSettings, **given: Any) -> None:
        super().__init__(settings, **given)
        if 0 in settings.channels:
            raise ValueError("--objective distill takes a teacher; name it with --teacher")
        self.weight = settings.weight
        self.channels = 0
        self._grid: tuple[int, ...] = ()

    def fit(self, strides: Sequence[tuple[int, ...]]) -> None:
        """End the decoder one block above the deepest map."""
        self.stride = tuple(s // least_factor(s) for s in strides[-1])

    def attach(self, model: nn.Module) -> None:
        """Build the heads.

        Raises:
            ValueError: with a network's own decoder, or a weight beside no other objective.
        """
        spark: Any = model
        if self.is_weighted_alone(spark):
            raise ValueError(
                f"--objective.weight {self.weight:g} weights the distillation beside another objective, and has no "
                "effect on it alone; leave it out, or use --objective pixels+distill"
            )
        deepest = spark.backbone.levels[-1]
        self._stride = deepest.stride
        maps, pooled = self.settings.channels
        conv = CONV[spark.backbone.dims]
        dtype = next(spark.encoder.parameters()).dtype
        self.head = conv(deepest.channels, maps, 1).to(dtype)
        self.pooled_head = nn.Linear(deepest.channels, pooled).to(dtype) if self.settings.pooled else None
        self.hidden_head = None
        if not spark.whole:
            steps = getattr(spark.decoder, "steps", None)
            if steps is None:
                raise ValueError("--objective distill of masked images predicts from the maps of --decoder unet")
            self.factor = steps[0].factor
            self.hidden_head = conv(spark.decoder.widths[1], maps, 1).to(dtype)
        self.register_buffer("queue", torch.zeros(self.settings.queue, pooled))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def blank(self, images: int, size: Sequence[int]) -> TeacherTargets:
        """Return targets of zeros, for blank images."""
        grid = [s // t for s, t in zip(size, self._stride, strict=True)]
        maps, pooled = self.settings.channels
        return TeacherTargets(torch.zeros(images, maps, *grid), torch.zeros(images, pooled))

    def target(self, images: Float[Tensor, "batch channel *size"]) -> Any:
        """Raise: targets come with the images.

        Raises:
            ValueError: always.
        """
        raise ValueError("targets of a distillation come with the images, and are not made of them")

    def compare(
        self,
        decoded: Decoded,
        images: Float[Tensor, "batch channel *size"],
        grid: PatchGrid,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of positions, and that of images times its weight.

        Raises:
            ValueError: if no targets came with the images.
        """
        if decoded.given is None or decoded.features is None:
            raise ValueError("--objective distill needs the teacher's maps: call model(images, visible, targets)")
        maps, pooled = (part.repeat_interleave(decoded.masks, 0) for part in decoded.given)
        features, at = decoded.features, decoded.at
        if at is None:
            loss = position_loss(self.head(features), maps)
            mean = features.flatten(2).mean(2)
        else:
            assert self.hidden_head is not None
            visible = position_loss(self.head(at.unpack(features)), maps, at.visible)
            predicted = self.hidden_head(POOL[len(self.factor)](decoded.maps[0], self.factor))
            loss = (visible + position_loss(predicted, maps)) / 2
            shown = at.visible.unsqueeze(1).to(features.dtype)
            mean = (at.unpack(features) * shown).flatten(2).sum(2) / shown.flatten(2).sum(2)
        if self.pooled_head is None:
            return loss
        if self.training:
            self._remember(decoded.given.pooled)
        return loss + self.settings.pooled * similarity_loss(
            self.pooled_head(mean), pooled, self.queue, self.filled, self.settings.temperature
        )

    @torch.no_grad()
    def _remember(self, pooled: Tensor) -> None:
        """Append vectors to the queue; the oldest ones leave it."""
        new = F.normalize(pooled.to(self.queue.dtype), dim=1)[-len(self.queue) :]
        self.queue.copy_(torch.cat([self.queue[len(new) :], new]))
        self.filled.copy_((self.filled + len(new)).clamp_max(len(self.queue)))


def position_loss(
    predicted: Float[Tensor, "batch channel *size"],
    target: Float[Tensor, "batch channel *size"],
    counted: Bool[Tensor, "batch *size"] | None = None,
) -> Float[Tensor, ""]:
    """Return 0.9 of the cosine distance and 0.1 of the smooth L1 error, averaged over positions.

    Args:
        predicted: maps.
        target: the teacher's, in any precision.
        counted: positions that count; all if not given.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, target = predicted.to(dtype), target.to(dtype)
    cosine = 1 - F.cosine_similarity(predicted, target, dim=1)
    error = COSINE * cosine + (1 - COSINE) * F.smooth_l1_loss(predicted, target, reduction="none").mean(1)
    if counted is None:
        return error.mean()
    return error.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)


def similarity_loss(
    predicted: Float[Tensor, "batch channel"],
    target: Float[Tensor, "batch channel"],
    queue: Float[Tensor, "queue channel"],
    filled: Tensor,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the divergence of the student's similarities to a queue from the teacher's.

    Args:
        predicted: vectors of images.
        target: the teacher's, in any precision.
        queue: vectors of length 1, the newest last.
        filled: how many of them have been set, a scalar; the loss is 0 while there are none.
        temperature: by which cosine similarities are divided.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    known = torch.arange(len(queue), device=queue.device) >= len(queue) - filled.clamp_min(1)
    with torch.autocast(predicted.device.type, enabled=False):
        vectors = queue.to(dtype).T

        def log_shares(of: Tensor) -> Tensor:
            similarities = F.normalize(of.to(dtype), dim=1) @ vectors / temperature
            return similarities.masked_fill(~known, -torch.finfo(dtype).max).log_softmax(1)

        student, teacher = log_shares(predicted), log_shares(target)
        each = (teacher.exp() * (teacher - student)).masked_fill(~known, 0.0).sum(1)
    return each.mean() * (filled > 0)


def is_distilled(objective: str) -> bool:
    """Return whether an objective's name, or a sum of names, has this one in it."""
    return "distill" in objective.split("+") if ":" not in objective else False
