"""Figures 1 and 3 of the paper for any network and image or volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.encoder import TrainedEncoder, load_trained_encoder, with_input
from ..data.crops import CropView
from ..data.decoding.encoded import UnreadableImage
from ..data.decoding.images import read_image
from ..data.normalize import Normalize
from ..data.views import EvaluationView
from ..data.volumes.opening import cases_at
from ..data.volumes.settings import PrepareSettings
from ..data.volumes.unprepared import UnpreparedVolumes
from ..models.factory import orientation_of, require_image_size
from ..models.masking import random_visible
from ..reporting.vanishing.drawing import draw_vanishing
from ..reporting.vanishing.measure import Vanishing, open_branches, vanishing
from ..utils.orientation import RAS, axes_of

PIXELS, VOXELS = 224, 96
"""Side of a view of an image, and the longest of a volume, if none is asked for."""


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
    image_size: int | None = None,
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
        image: a photograph, or a volume for a network of 3-D convolutions. A volume is prepared as the encoder records,
            or by default settings.
        model: the network's name, for weights that do not record it.
        encoder: weights; see :func:`sparkmim.load_encoder`.
        image_size: side of the view in pixels or voxels, rounded to a multiple of patch size and total stride; by
            default 224 of a photograph, and what a volume has up to 96. Beyond the volume is the mean.
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
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    if not image.exists():
        raise ValueError(f"there is no file {image}; see --image")
    loaded = load_trained_encoder(encoder, model, seed, stages=stages, in_chans=in_chans, trust=trust)
    network = with_input(loaded, mean=mean, std=std)
    backbone = network.backbone
    if backbone.dims == 1:
        raise ValueError(f"{network.name} is a network of signals; the figure is of images and volumes")
    if str(encoder) == "none":
        open_branches(backbone.module)
    patch = backbone.resolve_patch_size(patch_size)
    look = _look_at_image if backbone.dims == 2 else _look_at_volume
    try:
        network, view = look(network, image, image_size, backbone.size_divisor(patch))
    except UnreadableImage as error:
        raise ValueError(f"{image} cannot be read: {error}") from error
    size = view.shape[1:]
    require_image_size(backbone, backbone.module, network.name, backbone.in_chans, size)
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    visible = random_visible(1, grid, mask_ratio, torch.Generator().manual_seed(seed))[0]
    found = vanishing(backbone, view, visible)
    if backbone.dims == 3:  # drawn as axial slices
        found = found.reordered(axes_of(RAS, _orientation(network)))
    picture = draw_vanishing(found, network.name, mean=network.data.mean, std=network.data.std)
    return VanishingFigure(network.name, found, picture)


def _look_at_image(
    network: TrainedEncoder, image: Path, side: int | None, unit: Sequence[int]
) -> tuple[TrainedEncoder, Tensor]:
    """Return the network and the normalized view `(C, H, W)` of a photograph.

    Raises:
        UnreadableImage: if it cannot be read.
    """
    size = tuple(max(1, round((side or PIXELS) / u)) * u for u in unit)
    pixels = read_image(image, network.backbone.in_chans)
    return network, Normalize(network.data)(EvaluationView(replace(network.data, image_size=size))(pixels))


def _orientation(network: TrainedEncoder) -> str:
    """Return the order of the axes of volumes that a network takes."""
    return orientation_of(network.name) if network.volumes is None else network.volumes.orientation


def _look_at_volume(
    network: TrainedEncoder, image: Path, side: int | None, unit: Sequence[int]
) -> tuple[TrainedEncoder, Tensor]:
    """Return the network with the statistics of its input, and the normalized central view `(C, *size)` of a volume.

    Raises:
        UnreadableImage: if it cannot be read.
        ValueError: if the path names several volumes or none.
    """
    cases = cases_at(image, "--image", network.backbone.in_chans)
    if len(cases) > 1:
        raise ValueError(f"--image {image} holds {len(cases)} volumes; name the file of one")
    source = UnpreparedVolumes(cases, network.volumes or PrepareSettings(orientation=_orientation(network)))
    if not network.statistics_known:  # default settings normalize
        nothing, one = (0.0,) * network.backbone.in_chans, (1.0,) * network.backbone.in_chans
        network = network._replace(data=replace(network.data, mean=nothing, std=one), statistics_known=True)
    wanted = (side,) * len(unit) if side else tuple(min(VOXELS, extent) for extent in source.open(0).shape[1:])
    least = 1 if side else 2  # units: instance norm refuses a map of one position
    size = tuple(max(least, (round if side else int)(w / u)) * u for w, u in zip(wanted, unit, strict=True))
    pixels = CropView(replace(network.data, image_size=size)).look(source, 0, network.backbone.in_chans)
    return network, Normalize(network.data)(pixels)
