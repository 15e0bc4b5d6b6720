"""Decode .npy and TIFF files as arrays with any number of channels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

FULL_SCALE = 65535
"""The largest value of a 16-bit image."""

EXTENSIONS = (".npy", ".tif", ".tiff")


def decode_array(content: Path | bytes, extension: str, channels: int) -> Tensor:
    """Decode a file, given by its path or its bytes, to `(channels, H, W)`, see :func:`array_to_image`.

    Raises whatever numpy or tifffile do. TIFF files may refer to others beside them, and are opened by their path where
    they have one.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    array = np.load(file, allow_pickle=False) if extension == ".npy" else tifffile.imread(file)
    return array_to_image(array, channels)


def array_to_image(array: np.ndarray, channels: int) -> Tensor:
    """Convert an array to an image.

    Args:
        array: `(H, W)`, repeated for each channel; `(channels, H, W)`; or, if only that fits, `(H, W, channels)`.
        channels: the number of channels expected.

    Returns:
        `(channels, H, W)`: uint8 unchanged; unsigned 16-bit values as float32 with 65535 as 1; all others as float32
        without scaling.

    Raises:
        ValueError: if the shape does not fit, or values are not finite real numbers.
    """
    if array.ndim == 2:
        array = np.broadcast_to(array, (channels, *array.shape))
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape:
        raise ValueError(f"expected an array of {channels} channels, got one of shape {array.shape}; see --in-chans")
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array))
    if array.dtype.kind not in "buif":
        raise ValueError(f"expected real numbers, got values of type {array.dtype}")
    image = torch.from_numpy(array.astype(np.float32))
    if not image.isfinite().all():
        raise ValueError("expected finite values, got NaN or infinity")
    return image / FULL_SCALE if array.dtype.itemsize == 2 and array.dtype.kind == "u" else image
