"""`sparkmim figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from .encoder_options import AS_RECORDED, Encoder


def command(
    kind: Annotated[Literal["vanishing"], tyro.conf.Positional],
    /,
    image: Path,
    output: Path,
    model: str | None = None,
    encoder: Path = Path("none"),
    image_size: int | None = None,
    patch_size: int | None = None,
    mask_ratio: float = 0.6,
    seed: int = 0,
    options: Encoder = AS_RECORDED,
) -> int:
    """Draw how a mask vanishes under dense convolution and persists under sparse convolution.

    The figure also shows how zeros shift the distribution of the input.

    Args:
        kind: vanishing (figures 1 and 3 of the paper).
        image: a photograph; of a network of 3-D convolutions a volume, such as a .nii.gz file.
        output: the PNG file to write.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record it.
        encoder: weights of the network: an encoder.safetensors, a run folder, another file, timm, or none (random).
        image_size: side of the view in pixels or voxels, rounded to a multiple of patch size and total stride; if not
            given 224 of a photograph, and what a volume has up to 96.
        patch_size: side of a patch in pixels; the network's total stride if not given.
        mask_ratio: share of patches to hide.
        seed: of the mask, and of random weights.
        options: of the encoder.
    """
    from ..utils.io import require_suffix, require_writable

    require_suffix(output, ".png")
    from ..diagnostics.vanishing import vanishing_figure
    from ..reporting.reconstructions import save_png

    require_writable(output)
    network, found, picture = vanishing_figure(
        image,
        model=model,
        **options.settings(),
        encoder=encoder,
        image_size=image_size,
        patch_size=patch_size,
        mask_ratio=mask_ratio,
        seed=seed,
    )
    save_png(picture, output)
    half = next((i for i, layer in enumerate(found.layers, start=1) if layer.dense_share > 0.5), None)
    last = found.layers[-1]
    print(f"{len(found.layers)} convolutions of {network}; hidden positions that visible ones have reached:")
    print(f"  dense   {last.dense_share:.0%} after the last" + (f", half after {half}" if half is not None else ""))
    print(f"  sparse  {last.sparse_share:.0%}")
    print("input values, mean and standard deviation:")
    for name, values in (("whole image", found.full), ("visible", found.shown), ("zeroed", found.zeroed)):
        print(f"  {name:<12}{values.mean:>z7.3f} {values.std:>7.3f}")
    print(f"figure: {output}")
    return 0
