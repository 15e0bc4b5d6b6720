"""Densify sparse features: fill the hidden positions of every scale with its mask token (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..sparse import CoarseExecution, CoarseGrid, PatchGrid, run
from .decoder import BATCH_NORM, CONV, UNetDecoder
from .levels import Level
from .sparse_projection import project


class Densify(nn.Module):
    """Densify one scale: normalize visible features, fill hidden positions with the mask token, project to the decoder.

    Source: the official `SparK.__init__` and `forward`, step 3.

    Args:
        channels: of the encoder's map.
        width: channels of the decoder at that scale.
        norm: "batch" or "layer", over visible positions.
        kernel_size: of the projection, 1 at the deepest scale and 3 at the others.
        dims: number of spatial dimensions.
    """

    def __init__(self, channels: int, width: int, norm: str, kernel_size: int, dims: int = 2) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, channels, *[1] * dims))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.norm: nn.Module = BATCH_NORM[dims](channels) if norm == "batch" else nn.LayerNorm(channels, eps=1e-6)
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
            packed = self.norm(packed.movedim(1, -1)).movedim(-1, 1)
        elif isinstance(grid, CoarseGrid):
            (packed,) = run(CoarseExecution(grid), self.norm, packed)
        else:
            packed = self.norm(packed)
        fill = self.mask_token.flatten()[: packed.shape[1]]  # a mask token that scales share is as wide as the widest
        return project(packed, fill, self.proj, grid)


def densify_norm_of(network: nn.Module) -> str:
    """Return the densify norm that suits a network: "batch" if it has batch norms, "layer" otherwise."""
    return "batch" if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()) else "layer"


def build_densify(
    levels: Sequence[Level], decoder: UNetDecoder, norm: str, *, shared_mask_token: bool = False
) -> nn.ModuleList:
    """Build one :class:`Densify` per level, deepest first.

    Args:
        levels: of the pyramid, deepest first.
        decoder: whose widths the maps are projected to.
        norm: "batch" or "layer".
        shared_mask_token: use one mask token, that of the widest level, for all of them.
    """
    dims = len(levels[0].stride)
    modules = [
        Densify(level.channels, decoder.width_of(i), norm, 1 if i == 0 else 3, dims) for i, level in enumerate(levels)
    ]
    if shared_mask_token:
        widest = max((densify.mask_token for densify in modules), key=Tensor.numel)
        for densify in modules:
            densify.mask_token = widest
    return nn.ModuleList(modules)
