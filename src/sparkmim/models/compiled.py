"""Compile a model, having found out eagerly whether the compiled one computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..sparse import PatchGrid, UnsupportedOperation, require_compilable
from ..sparse.compilable import require_reference_compilable
from .masking import random_visible, require_count, require_mask, visible_patches
from .own_decoder import OwnDecoder, own_decoder_is_eager

FEW_IMAGES = 2
"""Of a batch, that the eager passes compute."""


class EagerFirst:
    """A compiled call that is checked before the first image of each shape.

    A compiler tells a network the sizes of packed patches where eagerly it reads those of whole maps, so what is
    refused eagerly would be computed. See :func:`~sparkmim.sparse.require_compilable`.

    Args:
        model: a SparK model.
        compiled: its compiled call.
    """

    def __init__(self, model: nn.Module, compiled: Callable[..., Any]) -> None:
        self.model: Any = model
        self.compiled = compiled
        self.checked: set[tuple[Any, ...]] = set()

    def __call__(self, images: Tensor, visible: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return what the compiled model does.

        Masks are counted, and copied to the images' device, before: in the graph, a mask on the CPU would be computed
        with there, and no CUDA graph could be made.

        Raises:
            UnsupportedOperation: if the network is refused, or decides by sizes.
            ValueError: if a mask does not fit the images, or shows another number of patches than `mask_ratio` says,
                which is part of the graph.
            TypeError: for a mask that is not a tensor.
        """
        key = (*images.shape[1:], images.dtype, self.model.training)
        if key not in self.checked:
            check_compilable(self.model, images)
            self.checked.add(key)
        if visible is not None:
            self._require_mask(images, visible)
            visible = visible.to(images.device, non_blocking=images.device.type != "cpu")
        self.model.masks_are_checked = True
        try:
            given = () if visible is None and not args else (visible, *args)
            return self.compiled(images, *given, **kwargs)
        finally:
            self.model.masks_are_checked = False

    def _require_mask(self, images: Tensor, visible: Tensor) -> None:
        shape = self.model.grid_shape(images.shape[2:])
        require_mask(visible, (len(images) * self.model.masks_of_each(images, visible), *shape))
        count = visible_patches(shape, self.model.mask_ratio)
        try:
            require_count(visible, count)
        except ValueError as error:
            raise ValueError(
                f"{error}: the mask's share differs from mask_ratio {self.model.mask_ratio}, and the number is part of "
                "the compiled graph; set model.mask_ratio to the masks', or do not compile"
            ) from error


def check_compilable(model: Any, images: Tensor) -> None:
    """Raise if a SparK model, compiled, would compute something else for images of this shape.

    Raises:
        UnsupportedOperation: if its network is refused, decides by sizes, or predicts by its own decoder.
        ValueError: if the images do not fit.
    """
    if isinstance(model.decoder, OwnDecoder):
        raise own_decoder_is_eager()
    if model.execution == "zero-out" or model.whole:
        return
    few = images[:FEW_IMAGES]
    shape = model.grid_shape(few.shape[2:])
    visible = random_visible(len(few), shape, model.mask_ratio, torch.Generator().manual_seed(0)).to(images.device)
    grid = PatchGrid(visible, visible_patches(shape, model.mask_ratio))
    if model.execution == "masked-dense":
        require_reference_compilable(grid, model.encoder, few, model.backbone)
        return
    require_compilable(grid, model.encoder, few, model.backbone)
    model.checked_eagerly = True


def require_checked(model: Any) -> None:
    """Raise if a model is being compiled whose network nobody has checked.

    Raises:
        UnsupportedOperation: with the way that checks it.
    """
    if not getattr(model, "checked_eagerly", False):
        raise UnsupportedOperation(
            "the network has not been checked before it is compiled, and a compiler tells it sizes of patches for those"
            " of maps; compile with model.compile(), which checks it, in place of torch.compile(model), or call "
            "sparkmim.models.compiled.check_compilable(model, images) before"
        )
