"""Densify sparse features: fill the hidden positions of every scale with its mask token (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..sparse import CoarseExecution, CoarseGrid, PatchGrid, run
from ..sparse.autocast import layer_norm_in_own_precision
from ..utils.modules import CONV
from .decoder import BATCH_NORM, UNetDecoder
from .levels import Level
from .own_decoder import OwnDecoder
from .sparse_projection import project

INSTANCE_NORM: dict[int, type[Any]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
NORM = {"batch": BATCH_NORM, "instance": INSTANCE_NORM}


class Densify(nn.Module):
    """Densify one scale: normalize visible features, fill hidden positions with the mask token, project to the decoder.

    Source: the official `SparK.__init__` and `forward`, step 3.

    Args:
        channels: of the encoder's map.
        width: channels of the decoder at that scale.
        norm: "batch" or "layer", over visible positions; "instance" over those of each image, without parameters, as
            nnssl's.
        kernel_size: of the projection, 1 at the deepest scale and 3 at the others.
        dims: number of spatial dimensions.
    """

    def __init__(self, channels: int, width: int, norm: str, kernel_size: int, dims: int = 2) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, channels, *[1] * dims))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.norm: nn.Module = nn.LayerNorm(channels, eps=1e-6) if norm == "layer" else NORM[norm][dims](channels)
        self.proj: nn.Module
        if kernel_size == 1 and channels == width:
            self.proj = nn.Identity()
        else:
            self.proj = CONV[dims](channels, width, kernel_size, padding=kernel_size // 2)

    def forward(
        self, packed: Float[Tensor, "n channel *block"], grid: PatchGrid | CoarseGrid
    ) -> Float[Tensor, "batch width *size"]:
        """Return the dense map.

        Args:
            packed: features of the batch's n visible patches, `block` positions each; whole maps `(B, C, *size)` at
                scales whose positions hold several patches.
            grid: where the visible positions lie.
        """
        if isinstance(self.norm, nn.LayerNorm):
            packed = layer_norm(packed.movedim(1, -1), self.norm).movedim(-1, 1)
        elif isinstance(grid, PatchGrid) and isinstance(self.norm, nn.modules.instancenorm._InstanceNorm):
            packed = self._by_image(packed, grid)
        elif isinstance(grid, CoarseGrid):
            (packed,) = run(CoarseExecution(grid), self.norm, packed)
        else:
            packed = self.norm(packed)
        fill = self.mask_token.flatten()[: packed.shape[1]]  # a mask token that scales share is as wide as the widest
        return project(packed, fill, self.proj, grid)

    def _by_image(self, packed: Tensor, grid: PatchGrid) -> Tensor:
        """Return packed features normalized over the visible positions of each image."""
        rows = grid.by_image(packed).movedim(2, 1)  # (batch, channel, patch, *block)
        out: Tensor = F.instance_norm(rows.flatten(2), eps=self.norm.eps)  # type: ignore[arg-type]
        return out.reshape(rows.shape).movedim(1, 2).flatten(0, 1)


def layer_norm(x: Float[Tensor, "*shape channel"], norm: nn.LayerNorm) -> Float[Tensor, "*shape channel"]:
    """Return `norm(x)`, under autocast in its half precision where `x` is in it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype != torch.get_autocast_dtype(kind):
        out: Tensor = norm(x)
        return out
    return layer_norm_in_own_precision(F.layer_norm, x, norm.normalized_shape, (norm.weight, norm.bias, norm.eps))


def densify_norm_of(network: nn.Module, *, instance: bool = False) -> str:
    """Return the densify norm that suits a network: "batch" if it has batch norms, "layer" otherwise.

    Args:
        network: the encoder.
        instance: consider "instance" too, for a network of instance norms. (Not with the decoder "unet": runs of older
            versions have layer norms there.)
    """
    kinds = {"batch": nn.modules.batchnorm._BatchNorm, "instance": nn.modules.instancenorm._InstanceNorm}
    found = [name for name, kind in kinds.items() if any(isinstance(m, kind) for m in network.modules())]
    return next((name for name in found if name == "batch" or instance), "layer")


def build_densify(
    levels: Sequence[Level], decoder: UNetDecoder | OwnDecoder, norm: str, *, shared_mask_token: bool = False
) -> nn.ModuleList:
    """Build one :class:`Densify` per level, deepest first.

    The projection of one level takes no neighbors: the deepest's, as in the paper, and with the network's own decoder
    the finest's, as in nnssl.

    Args:
        levels: of the pyramid, deepest first.
        decoder: whose widths the maps are projected to.
        norm: "batch", "layer" or "instance".
        shared_mask_token: use one mask token, that of the widest level, for all of them.
    """
    dims = len(levels[0].stride)
    alone = len(levels) - 1 if isinstance(decoder, OwnDecoder) else 0
    modules = [
        Densify(level.channels, decoder.width_of(i), norm, 1 if i == alone else 3, dims)
        for i, level in enumerate(levels)
    ]
    if shared_mask_token:
        widest = max((densify.mask_token for densify in modules), key=Tensor.numel)
        for densify in modules:
            densify.mask_token = widest
    return nn.ModuleList(modules)
