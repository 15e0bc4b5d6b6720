"""`sparkmim figure`: pictures of the paper's argument."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ..checkpoints.encoder import load_network
from ..data.decoding.encoded import UnreadableImage
from ..data.decoding.images import read_image
from ..data.normalize import Normalise
from ..data.views import evaluation_view
from ..models.masking import random_visible
from ..reporting.reconstructions import save_png
from ..reporting.vanishing.drawing import draw_vanishing
from ..reporting.vanishing.measure import open_branches, vanishing
from ..utils.io import require_writable


def figure(
    kind: Annotated[Literal["vanishing"], tyro.conf.Positional],
    /,
    image: Path,
    output: Path,
    model: str | None = None,
    encoder: Path = Path("none"),
    image_size: int = 224,
    patch_size: int | None = None,
    mask_ratio: float = 0.6,
    seed: int = 0,
) -> int:
    """Draw how a mask dissolves under dense convolution and stays under sparse, and what zeros do to the input.

    Args:
        kind: vanishing (figures 1 and 3 of the paper).
        image: a photograph.
        output: the PNG file to write.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION.
        encoder: weights of the network: an encoder.safetensors, a run folder, another file, timm, or none (random).
        image_size: pixels of the square view, brought to a multiple of patch size and total stride.
        patch_size: pixels of a patch; the network's total stride if not given.
        mask_ratio: share of patches to hide.
        seed: of the mask, and of random weights.
    """
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output} is not a .png file")
    if not 0 < mask_ratio < 1:
        raise ValueError(f"--mask-ratio {mask_ratio} is the share of patches to hide, between 0 and 1")
    if image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    if not image.is_file():
        raise ValueError(f"there is no file {image}; see --image")
    require_writable(output)
    network = load_network(encoder, model, seed)
    backbone = network.backbone
    if backbone.dims != 2:
        raise ValueError(f"{network.name} is a network for {backbone.dims} spatial axes; the figure is of images")
    if str(encoder) == "none":
        open_branches(backbone.module)
    patch = backbone.resolve_patch_size(patch_size)
    size = tuple(max(1, round(image_size / u)) * u for u in backbone.unit(patch))
    try:
        pixels = read_image(image, backbone.in_chans)
    except UnreadableImage as error:
        raise ValueError(f"{image} cannot be read: {error}") from error
    view = Normalise(network.data)(evaluation_view(replace(network.data, image_size=size))(pixels))
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    visible = random_visible(1, grid, mask_ratio, torch.Generator().manual_seed(seed))[0]
    found = vanishing(backbone, view, visible)
    save_png(draw_vanishing(found, network.name, mean=network.data.mean, std=network.data.std), output)
    half = next((i for i, layer in enumerate(found.layers, start=1) if layer.dense_share > 0.5), None)
    last = found.layers[-1]
    print(f"{len(found.layers)} convolutions of {network.name}; hidden positions that visible pixels have reached:")
    print(f"  dense   {last.dense_share:.0%} after the last" + (f", half after {half}" if half is not None else ""))
    print(f"  sparse  {last.sparse_share:.0%}")
    print("input values, mean and deviation:")
    for name, values in (("whole image", found.full), ("visible", found.shown), ("zeroed", found.zeroed)):
        print(f"  {name:<12}{values.mean:>z7.3f} {values.std:>7.3f}")
    print(f"figure: {output}")
    return 0
