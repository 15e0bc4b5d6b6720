"""Signals below a folder, read part by part as crops need them.

How they are found, what they must have in common and what is done to each:

1. :func:`open_signals` lists the files and looks into up to 256 of them, spread over the set: :class:`Survey`.
2. What follows from the settings and the survey is a :class:`SignalPreparation`, which the encoder's file records.
3. A :class:`Signal` reads a crop, resampled and normalized. Whatever is wrong with one file makes it an unreadable
   image, which is listed and replaced as those of other kinds are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ...utils.text import printable
from ..decoding.encoded import Croppable, UnreadableImage
from ..sources.folder import Files
from ..statistics import Moments, spread_indices
from .reading import Recording, open_recording, same_rate
from .resampling import length_at, ratio_of, read_at
from .settings import Amplitude, Layout, SignalSettings

SURVEYED = 256
"""Signals that are looked into before a run."""

PIECE = 2**20
"""Samples that are examined at a time."""

REMEMBERED = 2**20
"""Values of a signal from which on what was found of it is kept, so that it is not read as a whole for each crop."""


@dataclass(frozen=True)
class SignalPreparation:
    """What is done to each signal of a set.

    Attributes:
        rate: samples a second (Hz); None if the files do not say.
        resample: bring signals of other rates to it; else they are refused.
        amplitude: how values are normalized.
        layout: axes of arrays.
        time_column: heading of a table's column of the time.
    """

    rate: float | None
    resample: bool
    amplitude: Amplitude
    layout: Layout
    time_column: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SignalPreparation:
        """Build it from the content of a file.

        Raises:
            ValueError: if it is none.
        """
        try:
            rate, column = value["rate"], value["time_column"]
            found = cls(rate, bool(value["resample"]), value["amplitude"], value["layout"], column)
            sound = rate is None or (isinstance(rate, (int, float)) and 0 < rate < math.inf)
            sound = sound and found.amplitude in get_args(Amplitude) and found.layout in get_args(Layout)
            if not sound or not (column is None or isinstance(column, str)):
                raise ValueError("its values cannot be")
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks what signals were prepared by ({error})") from error
        return found


class Survey(NamedTuple):
    """What some signals of a set are like.

    Attributes:
        names: of those that could be opened.
        channels: of each.
        rates: samples a second of each, None where a file does not say.
        lengths: samples of each, as they are.
        unreadable: name and reason of each that could not be opened.
    """

    names: list[str]
    channels: list[int]
    rates: list[float | None]
    lengths: list[int]
    unreadable: list[tuple[str, str]]

    @property
    def usual_channels(self) -> int:
        """Return the number of channels of most."""
        return Counter(self.channels).most_common(1)[0][0]


class Facts(NamedTuple):
    """Mean and deviation of each channel of a signal, `(C, 1)`, or why the signal is of no use."""

    mean: np.ndarray
    std: np.ndarray
    reason: str | None = None


class Signal(Croppable):
    """A signal, of which crops are read.

    Args:
        path: of its file.
        preparation: what is done to it.
        channels: that it should have; None if that is not known.
        facts: what was found of long signals, by path.
    """

    def __init__(
        self, path: Path, preparation: SignalPreparation, channels: int | None, facts: dict[Path, Facts]
    ) -> None:
        self._path, self._how, self._channels, self._known = path, preparation, channels, facts

    @cached_property
    def _recording(self) -> Recording:
        recording = open_recording(self._path, self._channels, self._how.layout, self._how.time_column)
        require_rate(recording.rate, self._how)
        return recording

    @cached_property
    def _ratio(self) -> Any:
        rate, wanted = self._recording.rate, self._how.rate
        return ratio_of(1.0, 1.0) if rate is None or wanted is None else ratio_of(rate, wanted)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(C, samples)`, at the rate that signals are brought to."""
        return self._recording.channels, length_at(self._recording.samples, self._ratio)

    @cached_property
    def _facts(self) -> Facts:
        facts = self._known.get(self._path)
        if facts is None:
            facts = examine(self._recording)
            if self._recording.channels * self._recording.samples >= REMEMBERED:
                self._known[self._path] = facts
        if facts.reason is not None:
            raise UnreadableImage(facts.reason)
        return facts

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Read the samples from one to another, see :meth:`Croppable.crop`."""
        samples = self.shape[1]
        if len(start) != 1 or len(stop) != 1 or not 0 <= start[0] < stop[0] <= samples:
            raise ValueError(f"expected a crop within {samples} samples, got {tuple(start)} to {tuple(stop)}")
        facts = self._facts
        values = read_at(self._recording, self._ratio, start[0], stop[0])
        if self._how.amplitude == "signal":
            values = (values - facts.mean) / facts.std
        return torch.from_numpy(values.astype(np.float32, copy=False))


class Signals(Files):
    """Files of signals below a folder.

    Args:
        root: the folder.
        names: paths below it.
        preparation: what is done to each signal.
        channels: that signals have; None if that is not known.
        survey: of some of them.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        preparation: SignalPreparation,
        channels: int | None,
        survey: Survey,
    ) -> None:
        super().__init__(root, names)
        self.preparation, self.channels, self.survey = preparation, channels, survey
        self._facts: dict[Path, Facts] = {}

    def open(self, index: int) -> Signal:
        """Return a signal; its file is opened when something of it is wanted."""
        return Signal(self.root / self.name(index), self.preparation, self.channels, self._facts)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of samples of the signals that were looked into, once they are resampled, `(N, 1)`."""
        wanted = self.preparation.rate
        pairs = zip(self.survey.lengths, self.survey.rates, strict=True)
        return np.array(
            [[n if rate is None or wanted is None else length_at(n, ratio_of(rate, wanted))] for n, rate in pairs]
        )


def examine(recording: Recording) -> Facts:
    """Return the mean and the deviation of each channel; the deviation of a constant one is 1.

    Raises:
        UnreadableImage: if the file cannot be read.
    """
    moments = Moments(recording.channels)
    nothing = np.zeros((recording.channels, 1), np.float32)
    for start in range(0, recording.samples, PIECE):
        piece = recording.read(start, min(recording.samples, start + PIECE))
        if not np.isfinite(piece).all():
            channel, place = (int(axis[0]) for axis in np.nonzero(~np.isfinite(piece)))
            value = piece[channel, place]
            return Facts(
                nothing,
                nothing,
                f"channel {channel} is {value} at sample {start + place}; fill such values (numpy.interp), or cut the "
                "signal there",
            )
        moments.add(torch.from_numpy(piece))
    mean, std = moments.mean, (moments.squares / moments.count).sqrt()
    constant = std <= 1e-6 * mean.abs()
    if constant.all():
        return Facts(nothing, nothing, f"it is constant: all of its samples are {float(mean[0]):g}")
    std = torch.where(constant, torch.ones_like(std), std)
    return Facts(mean.float().numpy()[:, None], std.float().numpy()[:, None])


def require_rate(rate: float | None, how: SignalPreparation) -> None:
    """Raise unless a signal's rate is the one that is wanted, or can be brought to it.

    Raises:
        UnreadableImage: with the remedy.
    """
    if how.rate is None:
        return
    if rate is None:
        raise UnreadableImage(
            f"its file does not give its sampling rate, and signals of {how.rate:g} Hz are wanted; save it as .npz "
            "with an array `rate`, as .wav, or as .csv with a column of the time"
        )
    if not how.resample and not same_rate(rate, how.rate):
        raise UnreadableImage(f"it is sampled at {rate:g} Hz, others at {how.rate:g} Hz; resample them by --rate")


def survey_signals(
    root: Path, names: Sequence[str], settings: SignalSettings | SignalPreparation, channels: int | None
) -> Survey:
    """Look into up to 256 signals, spread over a set: channels, rates and lengths.

    Raises:
        ValueError: if none can be opened, with the first reason.
    """
    found = Survey([], [], [], [], [])
    for index in spread_indices(SURVEYED, len(names)):
        name = names[index]
        try:
            recording = open_recording(root / name, channels, settings.layout, settings.time_column)
        except UnreadableImage as error:
            found.unreadable.append((name, str(error)))
            continue
        found.names.append(name)
        found.channels.append(recording.channels)
        found.rates.append(recording.rate)
        found.lengths.append(recording.samples)
    if not found.names:
        name, reason = found.unreadable[0]
        raise ValueError(f"none of {len(found.unreadable)} signals tried can be read; {printable(name)}: {reason}")
    return found


def prepare_signals(settings: SignalSettings, survey: Survey) -> SignalPreparation:
    """Return what follows from settings for the signals of a set.

    Raises:
        ValueError: if signals have several rates and are not resampled, or are to be resampled and their files do not
            give their rates.
    """
    silent = next((name for name, rate in zip(survey.names, survey.rates, strict=True) if rate is None), None)
    given = [(name, rate) for name, rate in zip(survey.names, survey.rates, strict=True) if rate is not None]
    if settings.rate is not None and silent is not None:
        raise ValueError(
            f"--rate {settings.rate:g}: {printable(silent)} does not give the rate it is sampled at; save it as .npz "
            "with an array `rate`, as .wav, or as .csv with a column of the time, or leave --rate out"
        )
    rate = settings.rate
    if rate is None and given:
        rate = Counter(found for _, found in given).most_common(1)[0][0]
        first = next(name for name, found in given if found == rate)
        other = next(((name, found) for name, found in given if not same_rate(found, rate)), None)
        if other is not None:
            raise ValueError(
                f"signals are sampled at several rates: {printable(first)} at {rate:g} Hz, {printable(other[0])} at "
                f"{other[1]:g} Hz. Resample them by --rate {min(rate, other[1]):g}, or name a folder of one rate"
            )
        if silent is not None:
            raise ValueError(
                f"{printable(first)} is sampled at {rate:g} Hz, and {printable(silent)} does not give its rate; name a "
                "folder of files that all do, or all do not"
            )
    return SignalPreparation(rate, settings.rate is not None, settings.amplitude, settings.layout, settings.time_column)


def as_learned(preparation: SignalPreparation) -> SignalPreparation:
    """Return how other signals are prepared for a network: resampled to the rate that it has learned from."""
    return replace(preparation, resample=True)
