"""What pretraining needs to know of all kinds of data: typical sizes, and lines of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.clips.opening import Clips
from ..data.kinds import Kind
from ..data.signals.source import Signals
from ..data.sources.base import ImageSource, whole_of
from ..data.volumes.opening import prepared_as
from . import volumes
from .config import PretrainConfig
from .volumes import median_extents as median_extents_of_volumes

FRAMES = 16
"""Frames of a view where none are asked for, brought to a multiple of the network's stride: those of R3D and I3D."""


def of_signals(source: ImageSource) -> Signals:
    """Return the signals that a source is, or is a part of."""
    whole = whole_of(source)
    assert isinstance(whole, Signals)
    return whole


def of_clips(source: ImageSource) -> Clips:
    """Return the clips that a source is, or is a part of."""
    whole = whole_of(source)
    assert isinstance(whole, Clips)
    return whole


def kind_in(config: PretrainConfig) -> Kind:
    """Return what a configuration's images are, by the axes of its views."""
    axes = len(config.data.image_size)
    if axes == 3:
        return "volumes" if config.clips.frames is None else "clips"
    return "signals" if axes == 1 else "images"


def kind_of_source(source: ImageSource, axes: int) -> Kind:
    """Return what a source holds, for a network of some spatial axes."""
    whole = whole_of(source)
    if isinstance(whole, Signals):
        return "signals"
    if isinstance(whole, Clips):
        return "clips"
    return "images" if axes == 2 else "volumes"


def median_extents(source: ImageSource) -> tuple[int, ...]:
    """Return the median size along each axis: voxels, samples, or frames and pixels."""
    whole = whole_of(source)
    if isinstance(whole, Signals):
        return tuple(int(extent) for extent in np.median(whole.lengths, axis=0))
    if isinstance(whole, Clips):
        return tuple(int(extent) for extent in np.median(whole.extents, axis=0))
    return median_extents_of_volumes(source)


def preparation_of(source: ImageSource) -> dict[str, dict[str, Any]]:
    """Return what was done to data, by their kind, as an encoder's file records it; empty for images."""
    whole = whole_of(source)
    if isinstance(whole, (Signals, Clips)):
        return {"signals" if isinstance(whole, Signals) else "clips": whole.preparation.as_json()}
    prepared = prepared_as(source)
    return {} if prepared is None else {"volumes": prepared.as_json()}


def is_normalized(source: ImageSource) -> bool:
    """Return whether a source's values have mean 0 and deviation 1 as they are read."""
    whole = whole_of(source)
    if isinstance(whole, Signals):
        return whole.preparation.amplitude == "signal"
    return volumes.is_normalized(source)


def described(source: ImageSource) -> dict[str, str]:
    """Return the lines of the plan on how volumes, signals or clips are read; none for images."""
    whole = whole_of(source)
    if isinstance(whole, Signals):
        how, (length,) = whole.preparation, median_extents(source)
        rate = "no sampling rate given" if how.rate is None else f"{how.rate:g} Hz"
        seconds = "" if how.rate is None else f", {length / how.rate:.3g} s"
        parts = [
            f"{rate}{' (resampled)' * how.resample}",
            f"{length:,} samples{seconds} (median)",
            "each channel standardized by itself" if how.amplitude == "signal" else "standardized by those of the set",
        ]
        unread = whole.survey.unreadable
        parts += [f"{len(unread)} of the {len(unread) + len(whole.survey.names)} looked into cannot be opened"] * bool(
            unread
        )
        return {"signals": "; ".join(parts)}
    if isinstance(whole, Clips):
        frames, height, width = median_extents(source)
        stride = whole.preparation.frame_stride
        rates = [size.rate for size in whole.sizes if size.rate is not None]
        parts = [
            f"{frames * stride} frames of {height} x {width} pixels (median)",
            *([f"{np.median(rates):.4g} frames a second"] if rates else []),
            *([f"one of {stride} frames seen"] if stride > 1 else []),
        ]
        return {"clips": "; ".join(parts)}
    return volumes.described(source)


def with_frames(chosen: Mapping[str, Any], source: Clips, unit: int) -> dict[str, Any]:
    """Return the user's choices with the number of frames of a view, in `frames` and as the first of `image_size`.

    Without a choice they are about 16, or as many as most clips have if those are fewer.

    Args:
        chosen: fields that the user has set; `image_size` is one number (height and width), two, or three with frames.
        source: the clips.
        unit: frames of which a view must have a multiple.

    Raises:
        ValueError: if `frames` and `image_size` disagree.
    """
    size, frames = chosen.get("image_size", ()), chosen.get("frames")
    if len(size) == 3:
        if frames not in (None, size[0]):
            raise ValueError(
                f"--frames {frames} and --image-size {' '.join(map(str, size))}, whose first number is that of frames, "
                "disagree; leave one of them out"
            )
        return {**chosen, "frames": size[0]}
    if frames is None:
        there = min(FRAMES, median_extents(source)[0])
        frames = max(1, round(there / unit)) * unit
    return with_size({**chosen, "frames": frames}, frames)


def with_size(chosen: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """Return the user's choices with `image_size`, if it is among them, as frames, height and width."""
    size = chosen.get("image_size", ())
    if len(size) not in (1, 2):
        return dict(chosen)
    return {**chosen, "image_size": (frames, *(size * 2 if len(size) == 1 else size))}
