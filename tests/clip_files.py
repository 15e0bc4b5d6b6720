"""Small clips of every kind, whose gray values tell the number of the frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEP = 5
"""Gray values from one frame to the next."""


def frames(count: int = 24, height: int = 40, width: int = 48, first: int = 20) -> np.ndarray:
    """Return frames of one gray value each, `(T, H, W, 3)`, uint8."""
    values = (first + STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).copy()


def textured(count: int = 12, height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    """Return frames of a pattern that moves, `(T, H, W, 3)`, uint8."""
    generator = np.random.default_rng(seed)
    whole = Image.fromarray(generator.integers(0, 256, (8, 16, 3), dtype=np.uint8))
    pattern = np.asarray(whole.resize((width + 2 * count, height), Image.Resampling.BICUBIC))
    return np.stack([pattern[:, 2 * n : 2 * n + width] for n in range(count)])


def write_frames(folder: Path, values: np.ndarray, extension: str = "png") -> Path:
    """Write numbered pictures without leading zeros: the tenth is sorted after the ninth."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(values, start=1):
        Image.fromarray(frame).save(folder / f"frame{number}.{extension}")
    return folder


def write_video(path: Path, values: np.ndarray, *, codec: str = "mpeg4", rate: int = 10, gop: int = 8) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = values.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", gop, 4_000_000
        for frame in values:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
