"""SparK: masked-image pretraining of a convolutional network (Tian et al., ICLR 2023, arXiv 2301.03580).

Hide most patches of an image, encode the visible ones with a sparse convolutional network, fill the gaps of every
scale with mask tokens, decode with a light UNet, and regress the normalized pixels of the hidden patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..objectives.base import Decoded, Objective, find_objective
from ..sparse import (
    CheckReport,
    CoarseGrid,
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    mask_at,
    require_triton,
    run,
)
from ..sparse.run import finished
from .backbone import Backbone
from .compiled import EagerFirst, require_checked
from .config import Decoder, DecoderBlock, DensifyNorm, Execution, LossOn, MaskShape
from .decoder import UNetDecoder, upsampling_steps
from .densify import build_densify, densify_norm_of
from .masking import MASKS, count_visible, require_count, require_mask, visible_patches
from .networks import dtype_of, require_full_precision
from .own_decoder import OwnDecoder, levels_of, own_decoder_is_eager, require_own_settings


class SparKOutput(NamedTuple):
    """The result of :class:`SparK`.

    Attributes:
        loss: scalar; for the paper's objective the mean squared error over hidden patches.
        prediction: `(B, C, H, W)`, per-patch normalized pixels, for visible patches too (other objectives:
            `(B, channels, *size / stride)`).
        visible: bool `(B, *grid)`, True = visible: the mask that was used. With several masks of an image, predictions
            and masks are as many, those of an image following each other.
    """

    loss: Tensor
    prediction: Tensor
    visible: Tensor


class SparK(nn.Module):
    """A backbone with the decoder, mask tokens and objective that pretrain it.

    Args:
        backbone: the network: a timm name, a module, or a :class:`~sparkmim.Backbone`. It is not changed: its
            parameters keep their names, under `encoder.`.
        mask_ratio: share of patches to hide. 0 takes whole images, for objectives that can do without masks: there is
            no decoder then, and the encoder is the ordinary network.
        mask_shape: "random" hides patches independently of each other, the paper's; "blocks" hides as many in blocks.
        masks_per_image: masks that are drawn of each image where none are given; the loss is the mean over all.
        patch_size: pixels of a patch, an int or one an axis; by default the network's total stride. It may be a
            multiple of that, or a divisor: maps whose positions hold several patches are then computed whole
            (docs/guides/small-patches.md).
        decoder: "unet" predicts by a light decoder that is discarded after pretraining, the paper's. "own" predicts by
            the decoder of a network that has one (a U-Net), which is pretrained with the encoder and stays in
            `encoder.state_dict()`; all its skips take part, and of its segmentation head only the input is used
            (docs/guides/own-decoder.md).
        decoder_width: channels of the decoder "unet" at the deepest scale, halved by each of its blocks.
        decoder_block: what the decoder "unet" is made of: "unet", the paper's blocks, or "convnext", cheaper ones.
        densify_norm: "batch", "layer" or "instance" (over the visible positions of an image, without parameters); by
            default batch norm if the network has batch norms, else layer norm; for `decoder="own"`, instance norm if it
            has instance norms.
        in_chans: channels of the images (for a :class:`~sparkmim.Backbone`, its own).
        levels: number of feature maps to pretrain with; by default the four deepest, for `decoder="own"` all, see
            :class:`~sparkmim.Backbone`.
        dims: number of spatial dimensions; by default that of most of the network's convolutions.
        hierarchy: False decodes from the deepest map alone (the paper's ablation).
        execution: "packed" computes visible patches only. "masked-dense" computes the same numbers the official way,
            at the price of the whole image. "zero-out" runs the ordinary network on images with hidden pixels set to
            zero, the baseline that the paper argues against.
        objective: what is predicted: "pixels" (the paper's), the name of another one, `FILE.py:CLASS`, or an
            :class:`~sparkmim.Objective`.
        loss_on: "hidden" compares hidden patches, "all" visible ones as well (the paper's ablation).
        shared_mask_token: one mask token for all scales (the paper's ablation) instead of one each. It is as wide
            as the widest map; a scale of fewer channels takes the first ones.
        triton: whether Triton kernels gather neighbors and compute depthwise convolutions of visible patches where they
            are on a GPU; None: once they have been found right there (docs/concepts/engine.md). May be changed at any
            time.

    Attributes:
        encoder: the backbone's module: `encoder.state_dict()` loads into the ordinary network.
        mask_ratio: share of patches to hide, may be changed at any time, but not from or to 0.
        whole: whether it was built for whole images.
        patch_size: pixels of a patch along each axis.
        unreached: names of the encoder's parameters that pretraining does not train (a classifier's, say); they keep
            their values and have `requires_grad` switched off.

    Raises:
        ValueError: for an argument out of range, a network without feature maps, or an unknown model name.
        ModuleNotFoundError: with `triton=True`, if Triton is not installed.

    Examples:
        >>> model = SparK("resnet50")
        >>> out = model(torch.randn(8, 3, 224, 224))
        >>> out.loss.backward()
    """

    def __init__(
        self,
        backbone: str | nn.Module | Backbone,
        *,
        mask_ratio: float = 0.6,
        mask_shape: MaskShape = "random",
        masks_per_image: int = 1,
        patch_size: int | tuple[int, ...] | None = None,
        decoder: Decoder = "unet",
        decoder_width: int = 768,
        decoder_block: DecoderBlock = "unet",
        densify_norm: DensifyNorm | None = None,
        in_chans: int = 3,
        levels: int | None = None,
        dims: int | None = None,
        hierarchy: bool = True,
        execution: Execution = "packed",
        objective: str | Objective = "pixels",
        loss_on: LossOn = "hidden",
        shared_mask_token: bool = False,
        triton: bool | None = None,
    ) -> None:
        super().__init__()
        require_one_of("decoder", decoder, get_args(Decoder))
        if isinstance(backbone, str):
            backbone = Backbone.create(backbone, in_chans=in_chans, levels=levels_of(levels, decoder))
        elif isinstance(backbone, nn.Module):
            backbone = Backbone(backbone, in_chans=in_chans, levels=levels_of(levels, decoder), dims=dims)
        elif levels not in (None, len(backbone.levels)):
            raise ValueError(
                f"levels={levels}, but the Backbone has {len(backbone.levels)} maps; give it to the Backbone"
            )
        if dims not in (None, backbone.dims):
            raise ValueError(f"dims={dims}, but the network takes images of {backbone.dims} spatial dimensions")
        dtype = require_full_precision(backbone.module)
        require_one_of("mask_shape", mask_shape, get_args(MaskShape))
        require_one_of("execution", execution, get_args(Execution))
        require_one_of("loss_on", loss_on, get_args(LossOn))
        if densify_norm is not None and densify_norm not in get_args(DensifyNorm):
            raise ValueError(f"densify_norm {densify_norm!r} is unknown; use 'batch', 'layer', 'instance' or None")
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio is the share of patches to hide, from 0 to below 1, not {mask_ratio}")
        self.whole = mask_ratio == 0
        if masks_per_image < 1:
            raise ValueError(f"masks_per_image is a number of masks, at least 1, not {masks_per_image}")
        self.mask_ratio, self.mask_shape, self.masks_per_image = mask_ratio, mask_shape, masks_per_image
        self.execution = execution
        if triton:
            require_triton()
        self.triton = triton
        self.backbone = backbone
        self.encoder = backbone.module
        self.patch_size = backbone.resolve_patch_size(patch_size)
        if isinstance(objective, str):
            kind = find_objective(objective)
            objective = kind(
                kind.settings_type(), in_chans=backbone.in_chans, patch_size=self.patch_size, loss_on=loss_on
            )
        self.objective = objective
        if self.whole:
            self._require_without_masks(decoder)
        objective.fit(backbone.strides)
        self.decoder: UNetDecoder | OwnDecoder | None = None
        if self.whole:
            self.used = [len(backbone.levels) - 1]
        elif decoder == "own":
            self.decoder = OwnDecoder(backbone, objective.channels, objective.stride)
            require_own_settings(hierarchy, decoder_width, decoder_block)
            self.used = list(self.decoder.plan.used)
        else:
            self.used = self._used_by_unet(objective.stride, hierarchy)
            steps = upsampling_steps([backbone.strides[i] for i in reversed(self.used)], objective.stride)
            self.decoder = UNetDecoder(
                steps, decoder_width, objective.channels, block=decoder_block, dims=backbone.dims
            )
        self.masks_are_checked = False  # before a compiled call, see EagerFirst
        self.levels = len(self.used)
        # After the decoder: optimizers keep their state by the order of parameters.
        self.densify = nn.ModuleList()
        if self.decoder is not None:
            norm = densify_norm or densify_norm_of(self.encoder, instance=decoder == "own")
            used = [backbone.levels[i] for i in reversed(self.used)]
            self.densify = build_densify(used, self.decoder, norm, shared_mask_token=shared_mask_token)
            if dtype != torch.get_default_dtype():
                self.decoder.to(dtype)
                self.densify.to(dtype)
        if isinstance(self.decoder, OwnDecoder):
            trained = self.decoder.plan.trained
            self.unreached = [n for n, p in self.encoder.named_parameters() if p.requires_grad and n not in trained]
        else:
            self.unreached = backbone.unreached_parameters(len(self.used))
        for name in self.unreached:
            self.encoder.get_parameter(name).requires_grad_(False)
        objective.attach(self)

    def _require_without_masks(self, decoder: Decoder) -> None:
        """Raise unless the objective can do without masks.

        Raises:
            ValueError: naming it, and what to use.
        """
        if not self.objective.takes_whole:
            name = type(self.objective).__name__.lower()
            raise ValueError(
                f"mask ratio 0 hides nothing, and the objective {name} predicts what is hidden; use a ratio above 0 "
                "(0.6 is the default), or --objective distill alone"
            )
        if decoder == "own":
            raise ValueError(
                "decoder own takes part where images are masked; use a mask ratio above 0, or decoder unet"
            )

    def _used_by_unet(self, end: Sequence[int], hierarchy: bool) -> list[int]:
        """Return which of the backbone's maps are decoded, the deepest ones.

        Raises:
            ValueError: if the prediction is coarser than all of them.
        """
        strides = self.backbone.strides
        used = range(len(strides)) if hierarchy else [len(strides) - 1]
        # Maps finer than the prediction have no place in the decoder.
        found = [i for i in used if all(s >= e for s, e in zip(strides[i], end, strict=True))]
        if not found:
            raise ValueError(
                f"the objective predicts at stride {end}, coarser than the deepest map {self.backbone.strides[-1]}"
            )
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but for another encoder: everything else was built for the one that there is.

        Raises:
            AttributeError: with what to do instead.
        """
        if name == "encoder" and "backbone" in self.__dict__ and value is not self.backbone.module:
            raise AttributeError(
                "the encoder of a SparK model cannot be replaced, as decoder and mask tokens fit its feature maps; "
                "load weights with model.encoder.load_state_dict(...), or build SparK(network) of the other network"
            )
        super().__setattr__(name, value)

    def forward(
        self,
        images: Float[Tensor, "batch channel *size"],
        visible: Bool[Tensor, "masks *grid"] | None = None,
        given: Any = None,
        *,
        generator: torch.Generator | None = None,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
        count: int | None = None,
    ) -> SparKOutput:
        """Mask, encode, densify, decode, compare.

        Args:
            images: `(B, C, H, W)`, any size divisible by the patch size and the network's total stride.
            visible: the masks, True = visible, with the same number of visible patches in every one; random ones if not
                given. There are one of each image, or `masks_per_image` of the first, then of the second, and so on.
                Masks on an accelerator are read back once, to count the patches, unless `count` is given.
            given: targets that come with the images, for objectives that make none of them (see `Objective.blank`).
            generator: where a random mask comes from.
            has_data: True where a pixel has data; `images` are 0 elsewhere, and the loss leaves that out. All have data
                if not given.
            count: number of visible patches in every mask of `visible`, where it is known. On an accelerator it is
                verified there, without waiting for it.

        Raises:
            ValueError: if the shape or dtype of the images, or the mask, does not fit.
        """
        decoded, images, grid, has_data = self._predict(images, visible, generator, has_data, count)
        # Compare: with the objective's target, the normalized pixels of the hidden patches.
        loss = self.objective.compare(decoded._replace(given=given), images, grid, has_data)
        return SparKOutput(loss, decoded.prediction, grid.visible)

    def _predict(
        self,
        images: Tensor,
        visible: Tensor | None,
        generator: torch.Generator | None,
        has_data: Tensor | None,
        count: int | None = None,
    ) -> tuple[Decoded, Tensor, PatchGrid, Tensor | None]:
        """Return what is made of masked images; they, their masks, and where they have data, each once a mask."""
        # Mask: hide a random share of the patches, in one way or in several.
        masks = self.masks_of_each(images, visible)
        if masks > 1:
            images = images.repeat_interleave(masks, 0)
            has_data = None if has_data is None else has_data.repeat_interleave(masks, 0)
        grid = self.mask(images, visible, generator, count)
        if self.whole:
            deepest = self.backbone.maps(self.encoder, images)[-1]
            return Decoded(deepest, masks=masks, features=deepest), images, grid, has_data
        if grid.visible.numel() == grid.patches:
            raise ValueError("the mask hides nothing, so there is nothing to predict")
        if isinstance(self.decoder, OwnDecoder):
            # The network's own decoder goes on, in the same pass, from the densified maps.
            decoded = Decoded(self.decoder(self._last_map(self.decoder, images, grid)))
        else:
            # Encode: only the visible patches, by the backbone as it is.
            features = self.encode_visible(images, grid)
            # Densify: fill the hidden places of every scale with that scale's mask token, deepest first.
            grids = self.grids(grid, images.shape[2:])
            maps = self._densified(features, grids)
            # Decode: from the deepest map up to the pixels.
            assert self.decoder is not None
            decoded = self.decoder.decode(maps) if self.objective.uses_maps else Decoded(self.decoder(maps))
            decoded = decoded._replace(features=features[-1], at=grids[-1])
        return decoded._replace(masks=masks), images, grid, has_data

    def masks_of_each(self, images: Tensor, visible: Tensor | None) -> int:
        """Return how many masks each image has: one, unless there are as many as this model draws."""
        if visible is None:
            return self.masks_per_image
        several = isinstance(visible, Tensor) and visible.ndim and len(visible) == self.masks_per_image * len(images)
        return self.masks_per_image if several else 1

    def mask(
        self,
        images: Float[Tensor, "batch channel *size"],
        visible: Bool[Tensor, "batch *grid"] | None = None,
        generator: torch.Generator | None = None,
        count: int | None = None,
    ) -> PatchGrid:
        """Return the visible patches of a batch: of the mask given, or of a random one; see :meth:`forward`.

        Raises:
            ValueError: for images or a mask that do not fit, see :meth:`forward`.
            TypeError: for a mask that is not a tensor.
        """
        if not torch.compiler.is_compiling():
            self._require_images(images)
        shape = self.grid_shape(images.shape[2:])
        if images.shape[1] != self.backbone.in_chans:
            raise ValueError(
                f"images of {images.shape[1]} channels do not fit a network for {self.backbone.in_chans}; see in_chans"
            )
        if visible is None:
            if count is not None:
                raise ValueError(
                    f"count={count} says how many patches of a given mask are visible, and none was given; a random "
                    "mask follows mask_ratio"
                )
            visible = MASKS[self.mask_shape](len(images), shape, self.mask_ratio, generator, images.device)
            return PatchGrid(visible, visible_patches(shape, self.mask_ratio))
        require_mask(visible, (len(images), *shape))
        if torch.compiler.is_compiling():  # the number must be known when the graph is made
            count = visible_patches(shape, self.mask_ratio)
            if not self.masks_are_checked:
                passes = (visible.flatten(1).sum(1) == count).all()
                torch._assert_async(passes, "the mask's share differs from mask_ratio")
        elif count is None:
            count = count_visible(visible)
        else:
            require_count(visible, count)
        return PatchGrid(visible.to(images.device, non_blocking=images.device.type != "cpu"), count)

    def _require_images(self, images: Tensor) -> None:
        dims, channels = self.backbone.dims, self.backbone.in_chans
        wanted = f"(batch, {channels}, {', '.join(('depth', 'height', 'width')[-dims:] if dims > 1 else ('length',))})"
        if images.ndim <= dims + 1:
            hint = "; images[None] makes a batch of one" if images.ndim == dims + 1 else ""
            raise ValueError(f"expected images of shape {wanted}, got {tuple(images.shape)}{hint}")
        if images.ndim > dims + 2:
            return  # grid_shape says which sizes would do
        if not len(images):
            raise ValueError(f"expected at least one image, of shape {wanted}, got {tuple(images.shape)}")
        dtype = dtype_of(self.encoder)
        if not images.is_floating_point():
            raise ValueError(
                f"expected images of {dtype}, got {images.dtype}; scale and normalize them, for example "
                "(images / 255 - mean) / std"
            )
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            raise ValueError(
                f"expected images of {dtype}, as the network's parameters are, got {images.dtype}; use "
                f"images.to({dtype})"
            )

    def grid_shape(self, size: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of patches along each axis of images of `size`.

        Raises:
            ValueError: if the patch size, or the network's total stride, does not divide it.
        """
        unit = self.backbone.size_divisor(self.patch_size)
        if len(size) != len(unit) or any(s % u for s, u in zip(size, unit, strict=True)):
            nearest = " x ".join(str(max(1, round(s / u)) * u) for s, u in zip(size, unit, strict=False))
            by, patch = " x ".join(map(str, unit)), " x ".join(map(str, self.patch_size))
            what = f"the patch size {by}" if by == patch else f"{by}, as patches of {patch} and the total stride need"
            raise ValueError(
                f"image size {' x '.join(map(str, size))} is not divisible by {what}; use {nearest}, for example"
            )
        return tuple(s // p for s, p in zip(size, self.patch_size, strict=True))

    def encode_visible(self, images: Float[Tensor, "batch channel *size"], grid: PatchGrid) -> list[Tensor]:
        """Return the feature maps of the visible patches, packed, highest resolution first.

        They are `(N, C_i, *patch_size / stride_i)`; maps of strides larger than a patch are whole,
        `(B, C_i, *size / stride_i)`, see :meth:`grids`.
        """
        maps_of = partial(self.backbone.maps, self.encoder)  # of the replica, where DataParallel runs replicas
        execution = self._execution(grid)
        if execution is None:
            return self._visible(maps_of(grid.unpack(grid.pack(images))), grid)
        return self._visible(run(execution, self.encoder, images, maps_of, self.backbone.unreached), grid)

    def _execution(self, grid: PatchGrid) -> SparseExecution | MaskedDenseExecution | None:
        """Return the execution of the encoder; None for the ordinary network."""
        if self.execution == "packed":
            if torch.compiler.is_compiling():
                require_checked(self)
            return SparseExecution(grid, triton=self.triton)
        return MaskedDenseExecution(grid) if self.execution == "masked-dense" else None

    def _visible(self, maps: Sequence[Tensor], grid: PatchGrid) -> list[Tensor]:
        """Return the visible patches of those of the backbone's maps that are decoded."""
        maps = [maps[i] for i in self.used]
        return list(maps) if self.execution == "packed" else [grid.at(m.shape[2:]).pack(m) for m in maps]

    def _densified(self, features: Sequence[Tensor], grids: Sequence[PatchGrid | CoarseGrid]) -> list[Tensor]:
        """Return densified maps, deepest first; features and grids come with the highest resolution first."""
        pairs = zip(self.densify, reversed(features), reversed(grids), strict=True)
        return [densify(feature, at) for densify, feature, at in pairs]

    def _last_map(self, decoder: OwnDecoder, images: Tensor, grid: PatchGrid) -> Tensor:
        """Return the last map of the network's own decoder."""
        if torch.compiler.is_compiling():
            raise own_decoder_is_eager()
        execution = self._execution(grid)
        grids = self.grids(grid, images.shape[2:])

        def densify(maps: Sequence[Tensor]) -> list[Tensor]:
            if execution is not None:
                maps = finished(execution, maps)
            if self.execution != "packed":
                maps = [at.pack(m) for at, m in zip(grids, maps, strict=True)]
            return self._densified(maps, grids)[::-1]

        found: list[Tensor] = []

        def through(inputs: Tensor) -> list[Tensor]:
            found.append(decoder.last_map(self.encoder, inputs, densify))
            return []  # it is a map of no patches

        if execution is None:
            through(grid.unpack(grid.pack(images)))
        else:
            run(execution, self.encoder, images, through)
        return found[0]

    def grids(self, grid: PatchGrid, size: Sequence[int]) -> list[PatchGrid | CoarseGrid]:
        """Return the visible part of each feature map of images of `size`, highest resolution first."""
        strides = [self.backbone.strides[i] for i in self.used]
        return [grid.at([s // t for s, t in zip(size, stride, strict=True)]) for stride in strides]

    def encode(
        self, images: Float[Tensor, "batch channel *size"], visible: Bool[Tensor, "batch *grid"]
    ) -> list[Float[Tensor, "batch _ *_size"]]:
        """Return the feature maps `(B, C_i, H / s_i, W / s_i)`, highest resolution first, zero where hidden."""
        grid = self.mask(images, visible)
        features = self.encode_visible(images, grid)
        grids = self.grids(grid, images.shape[2:])
        return [at.unpack(feature) for at, feature in zip(grids, features, strict=True)]

    def target(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch _ *_size"]:
        """Return what predictions are compared with: for the paper's objective the images, normalized per patch."""
        return self.objective.target(images)

    def reconstruct(
        self, images: Float[Tensor, "batch channel *size"], visible: Bool[Tensor, "batch *grid"] | None = None
    ) -> Float[Tensor, "batch channel *size"]:
        """Return images with their hidden patches predicted: the input where visible, the prediction where hidden.

        Predictions are denormalized with the statistics of the hidden patch itself, which the network never sees:
        a picture of what was learned, not of what could be restored.

        Raises:
            ValueError: for an objective whose predictions are not pixels.
        """
        if not self.objective.reconstructs:
            raise ValueError(f"predictions of {type(self.objective).__name__} are not pixels and cannot be shown")
        one = self.mask(images).visible if visible is None else visible
        decoded, images, grid, _ = self._predict(images, one, None, None)
        prediction = self.objective.to_pixels(decoded.prediction, images)
        return torch.where(mask_at(grid.visible, images.shape[2:]).unsqueeze(1), images, prediction)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the encoder's activations again in backward instead of keeping them, if the network supports it.

        Raises:
            ValueError: for a network without timm's `set_grad_checkpointing`, or whose own refuses.
        """
        if not hasattr(self.encoder, "set_grad_checkpointing"):
            raise ValueError(
                f"{type(self.encoder).__name__} has no set_grad_checkpointing; let it call torch.utils.checkpoint "
                "(use_reentrant=False) itself where that pays"
            )
        try:
            self.encoder.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, NotImplementedError) as error:  # how timm's networks say that they cannot
            raise ValueError(f"{type(self.encoder).__name__} cannot checkpoint activations ({error})") from error

    def set_memory_efficient(self, enable: bool = True) -> None:
        """Compute norms and activations of the decoder "unet" again in backward, the default, or keep them.

        Kept, they take one map more of each block, at 224 pixels and width 768 about 10 MB an image in half precision,
        and spare the time of computing them; the numbers are the same. Compiled, the compiler decides.

        Raises:
            ValueError: if they are to be kept in the network's own decoder, which keeps what it keeps.
        """
        if isinstance(self.decoder, OwnDecoder) and not enable:
            raise ValueError(
                "memory_efficient=False has no effect with decoder='own'; leave it out, or use decoder='unet'"
            )
        if isinstance(self.decoder, UNetDecoder):
            self.decoder.set_recompute(enable)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile calls of the model as `nn.Module.compile` does, checked eagerly before the first of each shape.

        `torch.compile(model)` cannot be checked so, and is refused; use this. Each shape of images is compiled anew,
        since the number of visible patches is part of the graph.

        Raises:
            ValueError: for `dynamic=True`.
        """
        if kwargs.get("dynamic"):
            raise ValueError(
                "dynamic=True has no graph, as the number of visible patches is part of it; leave dynamic out: each "
                "shape of images is compiled anew"
            )
        super().compile(*args, **{**kwargs, "dynamic": False})
        self._compiled_call_impl = EagerFirst(self, self._compiled_call_impl)  # type: ignore[arg-type, assignment]

    def check(self, image_size: int | Sequence[int], batch_size: int = 1, **settings: Any) -> CheckReport:
        """Check on a copy that the network works on visible patches, see :meth:`Backbone.check`.

        The constructor does not: call it once before a training written by hand.

        Args:
            image_size: of training, an int or one an axis.
            batch_size: images that training sees at a time.
            settings: of :func:`sparkmim.sparse.check`.
        """
        return self.backbone.check(self.patch_size, image_size=image_size, batch_size=batch_size, **settings)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"mask_ratio={self.mask_ratio}, patch_size={self.patch_size}, execution={self.execution!r}"


def require_one_of(name: str, value: str, options: Sequence[str]) -> None:
    """Raise unless a setting is one of its options.

    Raises:
        ValueError: naming the setting, its value and the options.
    """
    if value not in options:
        raise ValueError(f"{name} {value!r} is unknown; use one of {', '.join(options)}")
