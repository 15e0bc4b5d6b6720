"""What an objective is: a target at hidden patches, and how predictions are compared with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..sparse import PatchGrid
from ..utils.fields import NoSettings
from ..utils.specs import find_plugin


class Decoded(NamedTuple):
    """What a decoder makes of densified maps.

    Attributes:
        prediction: `(B, channels, *size / stride)`.
        maps: the decoder's own maps, each with the densified map of its scale, coarsest first: what its first block
            made of the deepest scale, up to the map that the prediction is made of. None of a network's own decoder.
        masks: of each image, which follow each other in the batch: so many of its images are the same.
        features: the encoder's deepest map as it comes: of visible patches, packed, or of whole images.
        at: where packed features lie; None of whole images.
        given: what came with the images, see :meth:`Objective.blank`; one an image, not one a mask.
    """

    prediction: Tensor
    maps: Sequence[Tensor] = ()
    masks: int = 1
    features: Tensor | None = None
    at: Any = None
    given: Any = None


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
        channels: of the prediction; 0 predicts nothing but from the decoder's maps, see :meth:`compare`.
        stride: pixels of the image for one position of the prediction, along each axis; the decoder ends there.
        reconstructs: whether predictions can be shown as images, see :meth:`to_pixels`.
        uses_maps: whether :meth:`compare` needs the decoder's maps beside the prediction.
        takes_whole: whether it can do without masks: without a decoder, by the encoder's deepest map of whole images.
        weight: of its loss, where it is one of several.
    """

    weight: float = 1.0

    settings_type: ClassVar[type[Any]] = NoSettings
    reconstructs: ClassVar[bool] = False
    uses_maps: ClassVar[bool] = False
    takes_whole: ClassVar[bool] = False

    def __init__(
        self, settings: Any, *, in_chans: int, patch_size: tuple[int, ...], loss_on: Literal["hidden", "all"] = "hidden"
    ) -> None:
        super().__init__()
        self.settings, self.in_chans, self.patch_size, self.loss_on = settings, in_chans, patch_size, loss_on
        self.channels = in_chans
        self.stride = (1,) * len(patch_size)

    def fit(self, strides: Sequence[tuple[int, ...]]) -> None:
        """Choose channels and stride of the prediction by the strides of the feature maps, highest resolution first.

        It is called once, before the decoder is built.
        """

    def attach(self, model: nn.Module) -> None:
        """Look at the whole model once, when it is built; for objectives that keep a copy of its encoder, say."""

    def is_weighted_alone(self, model: Any) -> bool:
        """Return whether the user has given a weight to the only objective of a model, where it changes nothing."""
        return model.objective is self and self.weight != Objective.weight

    def follow_loaded(self, model: nn.Module) -> None:
        """Begin from weights that were loaded into the encoder from elsewhere, as averaged copies must."""

    def compare(
        self,
        decoded: Decoded,
        images: Float[Tensor, "batch channel *size"],
        grid: PatchGrid,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of what was decoded; by default :meth:`loss`, or :meth:`loss_where_data` with `has_data`.

        Args:
            decoded: by the decoder.
            images: what the target is made of, normalized; each as often in succession as it has masks.
            grid: the visible patches.
            has_data: True where a pixel has data; everywhere if not given.
        """
        if has_data is None:
            return self.loss(decoded.prediction, self.target(images), grid)
        return self.loss_where_data(decoded.prediction, images, has_data, grid)

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

    def watch(self) -> dict[str, float]:
        """Return numbers to be written with the loss, by name."""
        return {}

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """Return what is going wrong by the numbers of :meth:`watch`, for the user; None as long as nothing is."""
        return None

    def blank(self, images: int, size: Sequence[int]) -> Any:
        """Return targets of blank images, tensors in a named tuple, for objectives whose targets come with the images.

        None if targets are made of the images, as most are.
        """
        return None

    def networks(self) -> Mapping[str, nn.Module]:
        """Return networks to be saved beside the encoder, in its form, by the name of their file (`teacher`)."""
        return {}


class Joined(Objective):
    """Several objectives at once, `--objective pixels+latents`: the sum of their losses, times their `weight`.

    At most one of them predicts (`channels` above 0); others compare the decoder's maps. Their settings are those of
    all, under one name each.
    """

    kinds: ClassVar[tuple[type[Objective], ...]]

    def __init__(self, settings: Any, **given: Any) -> None:
        super().__init__(settings, **given)
        self.parts = nn.ModuleList(kind(settings, **given) for kind in self.kinds)

    def fit(self, strides: Sequence[tuple[int, ...]]) -> None:
        """Let all choose, and predict what the one predicts that does.

        Raises:
            ValueError: if several do.
        """
        for part in self._objectives():
            part.fit(strides)
        predicting = [part for part in self._objectives() if part.channels]
        if len(predicting) > 1:
            names = " and ".join(type(part).__name__ for part in predicting)
            raise ValueError(f"--objective: {names} both need the decoder's prediction, and there is one; use either")
        chosen = (predicting or list(self._objectives()))[0]
        self.channels, self.stride = chosen.channels, chosen.stride

    def _objectives(self) -> list[Objective]:
        return list(self.parts)  # type: ignore[arg-type]

    def attach(self, model: nn.Module) -> None:
        """Let all look at the model."""
        for part in self._objectives():
            part.attach(model)

    def follow_loaded(self, model: nn.Module) -> None:
        """Let all begin from loaded weights."""
        for part in self._objectives():
            part.follow_loaded(model)

    def compare(
        self,
        decoded: Decoded,
        images: Float[Tensor, "batch channel *size"],
        grid: PatchGrid,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the sum of the losses, times their weights."""
        losses = [p.weight * p.compare(decoded, images, grid, has_data) for p in self._objectives()]
        return sum(losses[1:], losses[0])

    def _shown(self) -> Objective:
        return next((part for part in self._objectives() if part.channels), self._objectives()[0])

    def target(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch _ *_size"]:
        """Return the target of the objective that predicts."""
        return self._shown().target(images)

    def to_pixels(
        self, prediction: Float[Tensor, "batch _ *_size"], images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch channel *size"]:
        """Return predictions as images, as the objective does that predicts."""
        return self._shown().to_pixels(prediction, images)

    def after_step(self, model: nn.Module, progress: float) -> None:
        """Let all follow the model."""
        for part in self._objectives():
            part.after_step(model, progress)

    def watch(self) -> dict[str, float]:
        """Return the numbers of all."""
        return {name: value for part in self._objectives() for name, value in part.watch().items()}

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """Return the first warning."""
        return next((said for part in self._objectives() if (said := part.warning(watched))), None)

    def blank(self, images: int, size: Sequence[int]) -> Any:
        """Return the targets of blank images of the objective that is given some."""
        made = (part.blank(images, size) for part in self._objectives())
        return next((blank for blank in made if blank is not None), None)

    def networks(self) -> Mapping[str, nn.Module]:
        """Return the networks of all."""
        return {name: network for part in self._objectives() for name, network in part.networks().items()}


def find_objective(name: str) -> type[Objective]:
    """Return an objective's class by name: of a module here, `FILE.py:CLASS`, `MODULE:CLASS`, or an installed plug-in.

    Several names with `+` between them are a :class:`Joined` objective.

    Raises:
        ValueError: for an unknown name.
    """
    if "+" in name and ":" not in name:
        kinds = tuple(find_plugin(part, "sparkmim.objectives", Objective, "--objective") for part in name.split("+"))
        return _joined(kinds)
    return find_plugin(name, "sparkmim.objectives", Objective, "--objective")


@cache
def _joined(kinds: tuple[type[Objective], ...]) -> type[Joined]:
    """Return the class of several objectives at once, always the same one.

    Raises:
        ValueError: if an objective is named twice, or two have a setting of the same name.
    """
    types = [kind.settings_type for kind in kinds]
    names = [name for kind in types for name in getattr(kind, "__dataclass_fields__", {})]
    for given, what in ((kinds, "named"), (names, "a setting of several")):
        twice = next((value for value in given if list(given).count(value) > 1), None)
        if twice is not None:
            raise ValueError(f"--objective: {getattr(twice, '__name__', twice)} is {what} twice")
    title = "".join(kind.__name__ for kind in kinds)
    settings = make_dataclass(f"{title}Settings", [], bases=tuple(types), frozen=True, kw_only=True)
    reconstructs = any(kind.reconstructs for kind in kinds)
    uses_maps = any(kind.uses_maps for kind in kinds)
    members: dict[str, Any] = {"kinds": kinds, "settings_type": settings}
    members |= {"reconstructs": reconstructs, "uses_maps": uses_maps}
    members["takes_whole"] = all(kind.takes_whole for kind in kinds)
    return type(title, (Joined,), members)


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
