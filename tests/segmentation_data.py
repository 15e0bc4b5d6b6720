"""Tiny images and volumes with masks: bright shapes on a dark ground, whose classes their brightness tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers import TINY_FINETUNE

CLASSES = "name,index,color\nbackground,0,#000000\nbox,1,#ff0000\ndisk,2,#00ff00\n"

SEGMENT: dict[str, Any] = {
    **TINY_FINETUNE,
    "task": "segmentation",
    "model": f"{Path(__file__).absolute().with_name('segmentation_networks.py')}:network",
    "image_size": (32, 32),
    "batch_size": 4,
    "epochs": 2.0,
    "warmup_epochs": 0.5,
    "head": "unet",
    "decoder_width": 8,
}
"""Settings of a tiny run."""


def shapes(size: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return values from 0 to 255 and classes: 0, a box of 1, a ball of 2."""
    numbers = np.zeros(size, np.uint8)
    corner = [int(generator.integers(0, s // 2)) for s in size]
    numbers[tuple(slice(c, c + s // 3) for c, s in zip(corner, size, strict=True))] = 1
    center = [generator.uniform(0.3, 0.7) * s for s in size]
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    numbers[np.linalg.norm(places - center, axis=-1) < min(size) / 5] = 2
    values = np.array([40, 130, 220])[numbers] + generator.normal(0, 8, size)
    return values.clip(0, 255), numbers


def make_pairs(folder: Path, count: int = 6, size: tuple[int, int] = (36, 44), seed: int = 0) -> Path:
    """Write `images/*.png` and `masks/*.png`."""
    generator = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, numbers = shapes(size, generator)
        picture = np.repeat(values[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(numbers).save(folder / "masks" / f"{number}.png")
    return folder


def make_volumes(
    folder: Path,
    count: int = 4,
    size: tuple[int, int, int] = (18, 20, 16),
    affine: np.ndarray | None = None,
    seed: int = 0,
    names: tuple[str, str] = ("images", "labels"),
) -> Path:
    """Write NIfTI files of volumes and label maps."""
    from volume_files import write_nifti

    generator = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, numbers = shapes(size, generator)
        write_nifti(folder / names[0] / f"case{number}.nii.gz", values.astype(np.float32), affine)
        write_nifti(folder / names[1] / f"case{number}.nii.gz", numbers, affine)
    return folder
