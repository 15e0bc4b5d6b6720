"""What an objective is: a target at hidden patches, and how predictions are compared with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..sparse import PatchGrid
from ..utils.fields import NoSettings
from ..utils.specs import find_plugin


class Objective(nn.Module, ABC):
    """Decide what is predicted at hidden patches, and how predictions are compared with it.

    A subclass in a file is all it takes: in a module of `sparkmim.objectives`, where its name is the module's, or in a
    file of one's own (`--objective FILE.py:CLASS`). Fields of `settings_type`, a frozen dataclass with a default and a
    text below each field, are flags: `--objective.FIELD`. Submodules and buffers are saved and resumed with the model.

    Args:
        settings: an instance of `settings_type`.
        in_chans: channels of the images.
        patch_size: pixels of a patch along each axis.
        loss_on: "hidden" compares hidden patches, "all" visible ones as well.

    Attributes:
        channels: of the prediction.
        stride: pixels of the image for one position of the prediction, along each axis; the decoder ends there.
        reconstructs: whether predictions can be shown as images, see :meth:`to_pixels`.
    """

    settings_type: ClassVar[type[Any]] = NoSettings
    reconstructs: ClassVar[bool] = False

    def __init__(
        self, settings: Any, *, in_chans: int, patch_size: tuple[int, ...], loss_on: Literal["hidden", "all"] = "hidden"
    ) -> None:
        super().__init__()
        self.settings, self.in_chans, self.patch_size, self.loss_on = settings, in_chans, patch_size, loss_on
        self.channels = in_chans
        self.stride = (1,) * len(patch_size)

    def attach(self, model: nn.Module) -> None:
        """Look at the whole model once, when it is built; for objectives that keep a copy of its encoder, say."""

    @abstractmethod
    def target(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch _ *_size"]:
        """Return what predictions are compared with: `(B, channels, *size / stride)`, at least float32."""

    def loss(
        self, prediction: Float[Tensor, "batch _ *_size"], target: Float[Tensor, "batch _ *_size"], grid: PatchGrid
    ) -> Float[Tensor, ""]:
        """Return the squared error over hidden patches, or over all patches with `loss_on="all"`."""
        if self.loss_on == "all":
            return all_patch_loss(prediction, target)
        return hidden_patch_loss(prediction, target, grid.visible, grid.visible.numel() - grid.patches)

    def loss_where_data(
        self,
        prediction: Float[Tensor, "batch _ *_size"],
        images: Float[Tensor, "batch channel *size"],
        has_data: Bool[Tensor, "batch channel *size"],
        grid: PatchGrid,
    ) -> Float[Tensor, ""]:
        """Return the loss of images in which pixels without data are filled with 0, the mean.

        By default they count like others; the paper's objective leaves them out.

        Args:
            prediction: as in :meth:`loss`.
            images: normalized and filled, as in :meth:`target`.
            has_data: True where a pixel has data.
            grid: as in :meth:`loss`.
        """
        return self.loss(prediction, self.target(images), grid)

    def to_pixels(
        self, prediction: Float[Tensor, "batch _ *_size"], images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch channel *size"]:
        """Return predictions as images, for pictures of what was learned; `reconstructs` says whether that can be."""
        raise NotImplementedError

    def after_step(self, model: nn.Module, progress: float) -> None:
        """Follow the model after each update, as averaged copies do; `progress` is the share of the steps done."""


def find_objective(name: str) -> type[Objective]:
    """Return an objective's class by name: of a module here, `FILE.py:CLASS`, `MODULE:CLASS`, or an installed plug-in.

    Raises:
        ValueError: for an unknown name.
    """
    return find_plugin(name, "sparkmim.objectives", Objective, "--objective")


def patchify(images: Float[Tensor, "batch channel *size"], patch_size: Sequence[int]) -> Tensor:
    """Return a view of images with each spatial axis split in two: `(B, C, g1, p1, g2, p2, ...)`."""
    for axis in reversed(range(len(patch_size))):
        images = images.unflatten(axis + 2, (-1, patch_size[axis]))
    return images


def pixel_axes(dims: int) -> tuple[int, ...]:
    """Return the axes of :func:`patchify`'s result that lie within a patch: channels and positions."""
    return (1, *range(3, 3 + 2 * dims, 2))


def hidden_patch_loss(
    prediction: Float[Tensor, "batch channel *size"],
    target: Float[Tensor, "batch channel *size"],
    visible: Bool[Tensor, "batch *grid"],
    hidden: int,
    has_data: Bool[Tensor, "batch channel *size"] | None = None,
) -> Float[Tensor, ""]:
    """Return the squared error, averaged over each patch, then over hidden patches.

    With `has_data`, it is averaged over the pixels of a patch that have data, and over the hidden patches that have
    any; it is 0 if none has.

    Args:
        prediction: like `target`.
        target: of the hidden patches; what it is elsewhere does not count.
        visible: True = visible.
        hidden: the number of hidden patches of the batch, known without reading the device. (The official code divides
            by `hidden + 1e-8`, a relative difference of 1e-8 / hidden.)
        has_data: True where a pixel has data; everywhere if not given.
    """
    patch_size = [s // g for s, g in zip(target.shape[2:], visible.shape[1:], strict=True)]
    error = (prediction.to(target.dtype) - target).square()
    axes = pixel_axes(len(patch_size))
    if has_data is not None:
        known = patchify(has_data, patch_size)
        pixels = known.sum(axes)
        per_patch = (patchify(error, patch_size) * known).sum(axes) / pixels.clamp_min(1)
        counted = ~visible & (pixels > 0)
        return per_patch.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)
    per_patch = patchify(error, patch_size).mean(axes)
    return per_patch.masked_fill(visible, 0.0).sum() / hidden


def all_patch_loss(
    prediction: Float[Tensor, "batch channel *size"],
    target: Float[Tensor, "batch channel *size"],
    has_data: Bool[Tensor, "batch channel *size"] | None = None,
) -> Float[Tensor, ""]:
    """Return the squared error, averaged over all pixels with data, hidden or not (an ablation of the paper)."""
    if has_data is not None:
        error = (prediction.to(target.dtype) - target).square() * has_data
        return error.sum() / has_data.sum().clamp_min(1)
    return (prediction.to(target.dtype) - target).square().mean()
