"""Clips of three kinds: folders of frames, arrays, and video files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..decoding.arrays import array_to_image
from ..decoding.encoded import CHANNELS, EncodedImage, UnreadableImage
from ..decoding.headers import npy_file_header
from ..decoding.images import EncodedFile, image_extensions
from ..sources.folder import is_junk
from .base import Clip, ClipSize

ARRAYS = (".npy",)

VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
)
"""Extensions of video files that FFmpeg reads."""

COLORS = (1, 3, 4)
"""Channels that gray frames serve for too."""

PIXELS = {1: "gray", 3: "rgb24", 4: "rgba"}
"""Formats of FFmpeg by the number of channels."""


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by value: `frame9` before `frame10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def is_frame(name: str) -> bool:
    """Return whether a file is a picture, as a frame of a clip is."""
    return os.path.splitext(name)[1].lower() in image_extensions() - {*ARRAYS, ".npz"} - VIDEOS


class FrameFolder(Clip):
    """The pictures of a folder, in the natural order of their names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _paths(self) -> list[Path]:
        try:
            names = [name for name in os.listdir(self._folder) if not is_junk(name) and is_frame(name)]
        except OSError as error:
            raise UnreadableImage(f"the folder of its frames cannot be read ({error.strerror})") from error
        if not names:
            raise UnreadableImage("the folder holds no frames any more")
        return [self._folder / name for name in sorted(names, key=lambda name: (natural(name), name))]

    def _open(self, index: int) -> EncodedImage:
        image = EncodedFile(self._paths[index])
        image.files = self.files
        return image

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        return {}

    def measure(self, channels: int) -> ClipSize:
        """Return the number of frames, and the size of the first."""
        if channels not in self._sizes:
            with self._of_frame(0):
                first = self._open(0)
                height, width = first.size(channels) or first.decode(channels).shape[1:]
            self._sizes[channels] = height, width
        return ClipSize(len(self._paths), *self._sizes[channels])

    def read(self, indices: Sequence[int], channels: int, reduction: int = 1) -> list[Tensor]:
        """Decode some frames, see :meth:`Clip.read`."""
        found = []
        for index in indices:
            with self._of_frame(index):
                found.append(self._open(index).decode(channels, reduction))
        return found

    @contextmanager
    def _of_frame(self, index: int) -> Iterator[None]:
        """Name the frame that cannot be read."""
        try:
            yield
        except UnreadableImage as error:
            raise UnreadableImage(f"{self._paths[index].name}: {error}") from error


class ArrayClip(Clip):
    """An array `(T, H, W)`, `(T, H, W, C)` or `(C, T, H, W)` in an .npy file, of which single frames are read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _array(self) -> np.ndarray:
        try:
            npy_file_header(self._path)
            array: np.ndarray = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise UnreadableImage(f"the file is truncated, damaged or not an array ({error})") from error
        if array.ndim not in (3, 4) or 0 in array.shape:
            by = " x ".join(map(str, array.shape))
            raise UnreadableImage(f"expected (T, H, W), (T, H, W, C) or (C, T, H, W), got an array of {by}")
        return array

    def _frames_first(self, channels: int) -> np.ndarray:
        """Return the array as `(T, H, W)` or `(T, H, W, C)`, as the number of channels tells.

        Raises:
            UnreadableImage: if neither the first nor the last axis is of channels.
        """
        array = self._array
        if array.ndim == 3:
            return array
        known = {channels, 1} if channels in COLORS else {channels}
        if array.shape[3] in known:  # no frame is as narrow as that
            return array
        if array.shape[0] in known:
            return np.moveaxis(array, 0, 3)
        by = " x ".join(map(str, array.shape))
        raise UnreadableImage(
            f"expected (T, H, W, C) or (C, T, H, W) of {channels} channels, got an array of {by}; {CHANNELS}"
        )

    def measure(self, channels: int) -> ClipSize:
        """Return the size by the header."""
        frames, height, width = self._frames_first(channels).shape[:3]
        return ClipSize(frames, height, width)

    def read(self, indices: Sequence[int], channels: int, reduction: int = 1) -> list[Tensor]:
        """Read some frames, see :meth:`Clip.read`."""
        array = self._frames_first(channels)
        return [array_to_image(np.array(array[index]), channels, self.files) for index in indices]


class VideoFile(Clip):
    """A video file. FFmpeg seeks to the key frame before those that are wanted, and decodes from there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the file and its first stream of pictures."""
        av = library()
        try:
            with av.open(str(self._path.absolute()), options={"format_whitelist": FORMATS}) as container:
                if not container.streams.video:
                    raise UnreadableImage("the file holds no pictures")
                stream = container.streams.video[0]
                stream.thread_count = 1  # each worker process has a core
                yield container, stream
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnreadableImage(f"the file is truncated, damaged or of an unknown format ({error})") from error

    def measure(self, channels: int) -> ClipSize:
        """Return the length by the header, as time where it gives no number of frames, and the size of the first."""
        with self._opened() as (container, stream):
            rate, count = _rate(stream), stream.frames
            if not count and container.format.name not in INDEXED:  # its length is a guess by the first bytes
                count = sum(packet.size > 0 for packet in container.demux(stream))
                container.seek(0)
            elif not count:
                count = max(1, round(_seconds(container, stream) * rate))
            for frame in container.decode(stream):
                size = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
                return ClipSize(count, *size, float(rate))
        raise UnreadableImage("no frame can be decoded; the file is truncated or damaged")

    def read(self, indices: Sequence[int], channels: int, reduction: int = 1) -> list[Tensor]:
        """Decode some frames, see :meth:`Clip.read`.

        A frame is shown from its time on until the next one's: where some are missing the one before stands in.
        """
        if channels not in PIXELS:
            raise UnreadableImage(f"a video has 1, 3 or 4 channels, not {channels}; {CHANNELS}")
        wanted = list(indices)
        found: dict[int, Tensor] = {}
        with self._opened() as (container, stream):
            rate, base, begin = _rate(stream), stream.time_base, stream.start_time or 0
            if wanted[0] > 0 and container.format.name in INDEXED:
                # A frame before, since times are rounded.
                container.seek(begin + int((wanted[0] - 1) / rate / base), stream=stream)
            last: Tensor | None = None
            for frame in container.decode(stream):
                place = len(found) if frame.pts is None else round(float((frame.pts - begin) * base * rate))
                while wanted and last is not None and place > wanted[0]:
                    found[wanted.pop(0)] = last
                if not wanted:
                    break
                if last is None or place >= wanted[0] - 1:
                    last = _pixels(frame, channels)
                if place >= wanted[0]:
                    found[wanted.pop(0)] = last
                if not wanted:
                    break
        if last is None:
            raise UnreadableImage(f"no frame can be decoded at frame {indices[0]}; the file is truncated or damaged")
        for index in wanted:  # the length of some files is rounded up
            if index - max(found, default=indices[0] - 1) > TOLERATED:
                raise UnreadableImage(f"it ends before frame {index}; the file is truncated or damaged")
            found[index] = last
        return [found[index] for index in indices]


INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
"""Formats, by FFmpeg's names, that know where their key frames are; others are decoded from the start, since there
FFmpeg does not hit a time exactly."""

FORMATS = ",".join([
    *sorted(INDEXED), "mpeg", "mpegvideo", "mpegts", "asf", "flv", "live_flv", "ogg", "m4v", "h264", "hevc", "obu",
    "ivf", "mxf", "dv", "mjpeg", "nut", "yuv4mpegpipe", "wav", "mp3", "flac", "aac",
])  # fmt: skip
"""Formats that are read, whatever a file is called, of sound too, so that it is named as the reason. Lists of other
files (HLS, DASH, concat) are not: FFmpeg would open those, wherever they are."""

TOLERATED = 2
"""Frames by which a file may end before its header says."""


def _seconds(container: Any, stream: Any) -> float:
    """Return the length of a stream, or of the whole file where that is not known."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1e6)
    raise UnreadableImage("the file does not give its length; write it anew (ffmpeg -i IN -c copy OUT)")


def _rate(stream: Any) -> Any:
    """Return the frames a second, a fraction."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UnreadableImage(
            "the file does not give its number of frames a second; write it anew (ffmpeg -r RATE -i IN OUT)"
        )
    return rate


def _pixels(frame: Any, channels: int) -> Tensor:
    """Return a frame as an upright image; cameras record how they were held."""
    upright = np.rot90(frame.to_ndarray(format=PIXELS[channels]), frame.rotation // 90 % 4)
    pixels = torch.from_numpy(np.ascontiguousarray(upright))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def library() -> Any:
    """Return the library that reads video.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise ValueError(f'video files need PyAV ({error}): pip install "sparkmim[video]"') from error


def open_clip(path: Path) -> Clip:
    """Return the clip of a folder or a file, unread."""
    extension = os.path.splitext(path.name)[1].lower()
    if path.is_dir():
        return FrameFolder(path)
    return ArrayClip(path) if extension in ARRAYS else VideoFile(path)
