"""Figures 1 and 3 of the paper for any network and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from ..checkpoints.encoder import load_trained_encoder, with_input
from ..data.decoding.encoded import UnreadableImage
from ..data.decoding.images import read_image
from ..data.normalize import Normalize
from ..data.views import EvaluationView
from ..models.masking import random_visible
from ..reporting.vanishing.drawing import draw_vanishing
from ..reporting.vanishing.measure import Vanishing, open_branches, vanishing


class VanishingFigure(NamedTuple):
    """The figure and its numbers.

    Attributes:
        network: name of the network.
        measured: the mask in each layer, and the input's values.
        picture: the figure.
    """

    network: str
    measured: Vanishing
    picture: Image.Image


def vanishing_figure(
    image: str | Path,
    *,
    model: str | None = None,
    encoder: str | Path = "none",
    image_size: int = 224,
    patch_size: int | None = None,
    mask_ratio: float = 0.6,
    seed: int = 0,
    stages: Sequence[str] = (),
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust: bool = False,
) -> VanishingFigure:
    """Draw how a mask vanishes under dense convolution and persists under sparse convolution.

    Args:
        image: a photograph.
        model: the network's name, for weights that do not record it.
        encoder: weights; see :func:`sparkmim.load_encoder`.
        image_size: side of the square view in pixels, rounded to a multiple of patch size and total stride.
        patch_size: side of a patch in pixels; the network's total stride by default.
        mask_ratio: share of patches to hide.
        seed: of the mask, and of random weights.
        stages: names of the submodules whose outputs are the feature maps; the recorded ones by default.
        in_chans: channels of the image, if not recorded.
        mean: mean of each channel; as recorded by default.
        std: standard deviation of each channel, likewise.
        trust: run the code of a network that the encoder's file names, where `model` does not.

    Raises:
        ValueError: for an invalid setting, an unreadable image, or an encoder that cannot be loaded.
        UnsupportedOperation: if the network does not work on visible patches.
    """
    image = Path(image)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"--mask-ratio {mask_ratio} is the share of patches to hide, between 0 and 1")
    if image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    if not image.is_file():
        raise ValueError(f"there is no file {image}; see --image")
    loaded = load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans, trust=trust)
    network = with_input(loaded, mean=mean, std=std)
    backbone = network.backbone
    if backbone.dims != 2:
        raise ValueError(f"{network.name} is a network for {backbone.dims} spatial axes; the figure is of images")
    if str(encoder) == "none":
        open_branches(backbone.module)
    patch = backbone.resolve_patch_size(patch_size)
    size = tuple(max(1, round(image_size / unit)) * unit for unit in backbone.size_divisor(patch))
    try:
        pixels = read_image(image, backbone.in_chans)
    except UnreadableImage as error:
        raise ValueError(f"{image} cannot be read: {error}") from error
    view = Normalize(network.data)(EvaluationView(replace(network.data, image_size=size))(pixels))
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    visible = random_visible(1, grid, mask_ratio, torch.Generator().manual_seed(seed))[0]
    found = vanishing(backbone, view, visible)
    picture = draw_vanishing(found, network.name, mean=network.data.mean, std=network.data.std)
    return VanishingFigure(network.name, found, picture)
