"""Read signals from files: arrays, tables and sound."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.memory import host_memory
from ..decoding.encoded import UnreadableImage
from ..decoding.headers import NUMBERS, npy_file_header, opened_npz
from .settings import Layout
from .tables import read_columns

ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".tsv")
SOUND = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
"""Extensions of sound files, those that libsndfile reads."""

READABLE = frozenset((*ARRAYS, *TABLES, *SOUND))

SIGNAL_NAMES = ("signal", "signals", "data", "x")
"""Arrays of an .npz file that are read where it holds several, the first that is there."""

RATE_NAMES = ("rate", "fs", "sr", "sample_rate", "sampling_rate", "sampling_frequency")
"""Arrays of an .npz file that give the samples a second."""

LONGER = 4
"""Times that the axis of samples is at least as long as that of channels, where only lengths tell them apart."""

WHOLE = 1e-3
"""Share by which a rate may differ from a whole number, or from another rate, as times are rounded in files."""


class Recording(NamedTuple):
    """A file of a signal, opened.

    Attributes:
        channels: number of channels.
        samples: number of samples of each.
        rate: samples a second (Hz); None if the file does not say.
        read: returns the samples from one to another, `(C, samples)`, float32.
    """

    channels: int
    samples: int
    rate: float | None
    read: Callable[[int, int], np.ndarray]


def extension_of(name: str) -> str:
    """Return the extension of a file in lower case."""
    return os.path.splitext(name)[1].lower()


def open_recording(path: Path, channels: int | None, layout: Layout, time_column: str | None) -> Recording:
    """Open a file of a signal; samples are read when they are asked for, where the format allows it.

    Args:
        path: the file.
        channels: that it should have, which tells the axes of an array; None if that is not known.
        layout: axes of an array, see :class:`~sparkmim.data.signals.settings.SignalSettings`.
        time_column: heading of a table's column of the time.

    Raises:
        UnreadableImage: if it cannot be read, or its axes have no plain meaning.
        ValueError: if a library is missing.
    """
    extension = extension_of(path.name)
    with unreadable():
        if extension in SOUND:
            return _open_sound(path)
        if extension in TABLES:
            found = read_columns(path, time_column)
            return _of_array(found.values.T, plausible_rate(found.rate))
        if extension == ".npy":
            npy_file_header(path)
            return _of_array(channels_first(np.load(path, mmap_mode="r", allow_pickle=False), channels, layout), None)
        if extension == ".npz":
            array, rate = _read_archive(path)
            return _of_array(channels_first(array, channels, layout), plausible_rate(rate))
    raise UnreadableImage(
        f"expected a file of a signal ({', '.join(sorted(READABLE))}), got one that ends in {extension}"
    )


@contextmanager
def unreadable() -> Iterator[None]:
    """Raise :class:`UnreadableImage` for whatever a library raises on a broken file."""
    try:
        yield
    except (MemoryError, UnreadableImage):
        raise
    except (EOFError, zipfile.BadZipFile) as error:
        raise UnreadableImage(f"the file is truncated or damaged ({error}); copy it again") from error
    except Exception as error:
        if isinstance(error, ValueError) and isinstance(error.__cause__, ImportError):
            raise  # a library is missing
        text = " ".join(str(error).split())
        if "mmap length" in text:
            text = "the file is truncated: it is shorter than its header says"
        raise UnreadableImage(f"{type(error).__name__}: {text}") from error


def soundfile() -> Any:
    """Return the library that reads sound.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        cause = error if isinstance(error, ImportError) else ImportError(str(error))
        raise ValueError(f'sound files need soundfile ({error}): pip install "sparkmim[signals]"') from cause


def _open_sound(path: Path) -> Recording:
    library = soundfile()
    about = library.info(str(path))

    def read(start: int, stop: int) -> np.ndarray:
        with unreadable(), library.SoundFile(str(path)) as file:
            file.seek(start)
            values: np.ndarray = file.read(stop - start, dtype="float32", always_2d=True)
        if len(values) != stop - start:
            raise UnreadableImage(f"the file is truncated: it ends at sample {start + len(values)} of {about.frames}")
        return np.ascontiguousarray(values.T)

    return _checked(Recording(about.channels, about.frames, float(about.samplerate), read))


def _read_archive(path: Path) -> tuple[np.ndarray, float | None]:
    """Return the array of an .npz file that is the signal, and its rate."""
    with opened_npz(path) as archive:
        arrays = archive.headers()
        single = [name for name in RATE_NAMES if name in arrays and arrays[name].size == 1]
        rates = [float(archive.array(name).reshape(-1)[0]) for name in single]
        names = [name for name, held in arrays.items() if held.size > 1 and held.dtype.kind in NUMBERS]
        chosen = names if len(names) == 1 else [name for name in SIGNAL_NAMES if name in names][:1]
        if not chosen:
            found = ", ".join(archive.names[:4]) or "none"
            raise UnreadableImage(
                f"expected one array, or one named {' or '.join(SIGNAL_NAMES)} among several, got {found}"
            )
        held = arrays[chosen[0]]
        if (needed := held.size * held.dtype.itemsize) > (free := host_memory()):
            raise UnreadableImage(
                f"its {needed / 1e9:,.0f} GB of samples do not fit into {free / 1e9:,.0f} GB of memory"
            )
        return archive.array(chosen[0]), rates[0] if rates else None


def channels_first(array: np.ndarray, channels: int | None, layout: Layout) -> np.ndarray:
    """Return an array as `(C, samples)`.

    Args:
        array: `(samples,)`, or two axes in an order that the other arguments or the lengths tell.
        channels: that it should have, None if that is not known.
        layout: the order, or auto.

    Raises:
        UnreadableImage: if the order is not certain.
    """
    shape = " x ".join(map(str, array.shape))
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"expected real numbers, got values of type {array.dtype}")
    if array.ndim == 1:
        return array[None]
    if array.ndim != 2:
        raise UnreadableImage(
            f"expected the samples of one signal, or channels by samples, got {shape or 'a number'}; save each signal "
            "as a file of its own"
        )
    if layout != "auto":
        return array if layout == "channels-first" else array.T
    if channels is not None and channels in array.shape:
        if array.shape[0] == array.shape[1]:
            raise UnreadableImage(
                f"{shape} values may be channels by samples or samples by channels; say which by --layout "
                "channels-first or channels-last"
            )
        return array if array.shape[0] == channels else array.T
    short, long = sorted(array.shape)
    if long < LONGER * short:
        raise UnreadableImage(
            f"{shape} values may be channels by samples or samples by channels; give --in-chans, or say which by "
            "--layout channels-first or channels-last"
        )
    return array if array.shape[0] == short else array.T


def plausible_rate(rate: float | None) -> float | None:
    """Return a rate, a whole one if it is as good as one, since times in files are rounded.

    Raises:
        UnreadableImage: if it is not a finite number above 0.
    """
    if rate is None:
        return None
    if not 0 < rate < math.inf:
        raise UnreadableImage(f"its sampling rate is {rate:g}, not a number of samples a second above 0")
    return float(round(rate)) if same_rate(rate, round(rate)) else float(f"{rate:.6g}")


def same_rate(one: float, other: float) -> bool:
    """Return whether two rates differ by no more than rounding."""
    return abs(one - other) <= WHOLE * max(one, other)


def _of_array(array: np.ndarray, rate: float | None) -> Recording:
    """Return an array `(C, samples)`, perhaps mapped into memory, as a recording."""

    def read(start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            return np.array(array[:, start:stop], dtype=np.float32, order="C")

    return _checked(Recording(len(array), array.shape[1], rate, read))


def _checked(recording: Recording) -> Recording:
    if recording.samples < 2 or recording.channels < 1:
        raise UnreadableImage(f"it has {recording.channels} channels of {recording.samples} samples")
    return recording
