"""Images that are no pictures: arrays of any number of channels, from `.npy` and TIFF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

FULL_SCALE = 65535
"""The largest value of a 16-bit image."""

KINDS = (".npy", ".tif", ".tiff")


def read_array(path: Path, channels: int) -> Tensor:
    """An array of a file as `(channels, H, W)`, see :func:`array_to_image`. Raises whatever its decoder does."""
    if path.suffix.lower() == ".npy":
        return array_to_image(np.load(path, allow_pickle=False), channels)
    return array_to_image(tifffile.imread(path), channels)


def array_to_image(array: np.ndarray, channels: int) -> Tensor:
    """An array as an image.

    Args:
        array: `(H, W)`, repeated for each channel; `(channels, H, W)`; or, if only that fits, `(H, W, channels)`.
        channels: how many there must be.

    Returns:
        `(channels, H, W)`: uint8 as it is; unsigned 16-bit numbers as float32, 65535 being 1; all others as they are,
        in float32.

    Raises:
        ValueError: if the shape does not fit, or values are not finite real numbers.
    """
    if array.ndim == 2:
        array = np.broadcast_to(array, (channels, *array.shape))
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape:
        raise ValueError(f"an array of shape {array.shape} is no image of {channels} channels; see --in-chans")
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array))
    if array.dtype.kind not in "buif":
        raise ValueError(f"numbers of type {array.dtype} are no pixels")
    image = torch.from_numpy(array.astype(np.float32))
    if not image.isfinite().all():
        raise ValueError("values that are not finite")
    return image / FULL_SCALE if array.dtype.itemsize == 2 and array.dtype.kind == "u" else image
