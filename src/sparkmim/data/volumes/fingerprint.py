"""Measure volumes: their sizes, spacings and intensities, from which the preparation follows."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.io import open_own, parse_json, read_json, write_json
from ...utils.logging import log
from ...utils.text import printable
from ..decoding.encoded import UnreadableImage
from ..tables import named
from .base import Case
from .foreground import bounding_box, raw_foreground, without_holes
from .label_maps import looks_like_labels, spread
from .libraries import library
from .parallel import each
from .reading import Volume, read_volume
from .resampling import ANISOTROPIC

VERSION = 1
"""Of what is measured and how."""

LEVELS = (0.0, 0.1, 0.25, 0.5, *map(float, range(1, 100)), 99.5, 99.75, 99.9, 100.0)
"""Percentiles that are kept of each channel."""

LOW, MEDIAN, HIGH = LEVELS.index(0.5), LEVELS.index(50.0), LEVELS.index(99.5)

SAMPLED = 2**20
"""Most voxels of a volume that percentiles are taken of, drawn from the foreground."""

DIGITS = 7
"""Significant digits that are kept of a number."""

CT_LOWEST, CT_AIR, CT_HIGH = -3500.0, -200.0, 50.0
"""Hounsfield units: the least that scanners write outside of their circle; air or fat; tissue."""

BINS = 60
"""Bars of a histogram."""


@dataclass(frozen=True)
class Intensities:
    """Values of a channel over the foreground.

    Attributes:
        mean: average.
        std: standard deviation.
        quantiles: percentiles at :data:`LEVELS`.
        modality: `ct` if they look like Hounsfield units, else `mr`.
    """

    mean: float
    std: float
    quantiles: tuple[float, ...]
    modality: str

    @property
    def low(self) -> float:
        """Return the 0.5th percentile."""
        return self.quantiles[LOW]

    @property
    def median(self) -> float:
        """Return the 50th percentile."""
        return self.quantiles[MEDIAN]

    @property
    def high(self) -> float:
        """Return the 99.5th percentile."""
        return self.quantiles[HIGH]

    def standardized(self) -> Intensities:
        """Return the intensities in standard deviations from the mean."""
        std = self.std or 1.0
        return Intensities(0.0, 1.0, tuple((value - self.mean) / std for value in self.quantiles), self.modality)


@dataclass(frozen=True)
class CaseFingerprint:
    """What is measured of one volume.

    Attributes:
        name: of the case.
        shape: voxels along each axis, in RAS orientation.
        spacing: millimeters between them.
        foreground: voxels along each axis of the box around the foreground.
        channels: intensities of each channel.
        filled: voxels that were NaN.
        stored: order of the axes in the file, such as RAS; empty where an older version measured it.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    foreground: tuple[int, ...]
    channels: tuple[Intensities, ...]
    filled: int = 0
    stored: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CaseFingerprint:
        """Build it from what :func:`dataclasses.asdict` gives."""
        channels = tuple(
            Intensities(float(c["mean"]), float(c["std"]), tuple(map(float, c["quantiles"])), str(c["modality"]))
            for c in value["channels"]
        )
        sizes = [tuple(int(n) for n in value[key]) for key in ("shape", "foreground")]
        spacing = tuple(map(float, value["spacing"]))
        stored = str(value.get("stored", ""))
        return cls(str(value["name"]), sizes[0], spacing, sizes[1], channels, int(value["filled"]), stored)


@dataclass(frozen=True)
class Fingerprint:
    """What is measured of a set of volumes.

    Attributes:
        cases: of each volume that can be read, in order.
        unreadable: name and reason of each that cannot, or does not belong to the others.
    """

    cases: tuple[CaseFingerprint, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def channels(self) -> int:
        """Return the number of channels of each volume."""
        return len(self.cases[0].channels)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Return `ct` or `mr` for each channel, as most volumes look."""
        return tuple(
            Counter(case.channels[channel].modality for case in self.cases).most_common(1)[0][0]
            for channel in range(self.channels)
        )

    @property
    def modality(self) -> str:
        """Return `ct` or `mr`; of channels that differ, such as PET and CT, all of them: `mr+ct`."""
        return "+".join(dict.fromkeys(self.modalities))

    @cached_property
    def spacings(self) -> np.ndarray:
        """Return the spacing of each volume, `(N, 3)`, in millimeters."""
        return np.array([case.spacing for case in self.cases])

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """Return the median spacing along each axis."""
        return tuple(np.median(self.spacings, axis=0).tolist())

    @property
    def median_shape(self) -> tuple[int, ...]:
        """Return the median number of voxels of the box around the foreground along each axis."""
        return tuple(int(size) for size in np.median([case.foreground for case in self.cases], axis=0))

    @property
    def median_extent(self) -> tuple[float, ...]:
        """Return the median extent of the foreground along each axis, in millimeters."""
        extents = [np.array(case.foreground) * case.spacing for case in self.cases]
        return tuple(np.median(extents, axis=0).tolist())

    @property
    def target_spacing(self) -> tuple[float, ...]:
        """Return the spacing that nnU-Net chooses for its full resolution.

        It is the median; along an axis whose voxels are more than three times as long and three times as few, the tenth
        percentile, but no less than along the others.
        """
        target = np.array(self.median_spacing)
        sizes = np.array(self.median_shape)
        worst = int(target.argmax())
        others = [axis for axis in range(3) if axis != worst]
        largest = float(target[others].max())
        if target[worst] > ANISOTROPIC * largest and sizes[worst] * ANISOTROPIC < sizes[others].min():
            finer = float(np.percentile(self.spacings[:, worst], 10))
            target[worst] = finer if finer >= largest else largest + 1e-5
        return tuple(target.tolist())

    @property
    def foreground_share(self) -> float:
        """Return the median share of a volume that the box around its foreground takes."""
        return float(np.median([math.prod(case.foreground) / math.prod(case.shape) for case in self.cases]))

    @cached_property
    def intensities(self) -> tuple[Intensities, ...]:
        """Return the intensities of each channel over all volumes, each of which weighs the same."""
        return tuple(
            _pooled([case.channels[c] for case in self.cases], self.modalities[c]) for c in range(self.channels)
        )

    def histogram(self, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of voxels in each of 60 equal bins around the percentiles 0.5 and 99.5, and their edges.

        Values of MR are in standard deviations of each volume from its mean.
        """
        of_all = [case.channels[channel] for case in self.cases]
        if self.modalities[channel] == "mr":
            of_all = [part.standardized() for part in of_all]
        pooled = _pooled(of_all, self.modalities[channel])
        span = max(pooled.high - pooled.low, 1e-12)
        edges = np.linspace(pooled.low - 0.1 * span, pooled.high + 0.1 * span, BINS + 1)
        return np.diff(_shares_below(of_all, edges)), edges

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: if the file is none, or of another version.
        """
        try:
            return cls.from_json(read_json(path))
        except (KeyError, TypeError, OSError) as error:
            raise ValueError(f"{printable(str(path))} is not a fingerprint of volumes ({error})") from error

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fingerprint:
        """Build it from the content of a JSON file.

        Raises:
            ValueError: if it is of another version.
            KeyError, TypeError: if it is none.
        """
        if value["version"] != VERSION:
            raise ValueError(f"expected a fingerprint of version {VERSION}, got {value['version']}; measure it again")
        cases = tuple(CaseFingerprint.from_json(case) for case in value["cases"])
        return cls(cases, tuple((str(name), str(reason)) for name, reason in value["unreadable"]))


def measure(cases: Sequence[Case], workers: int = 0, cache: Path | None = None) -> Fingerprint:
    """Measure volumes in worker processes, and list those that cannot be read.

    Args:
        cases: the volumes.
        workers: processes; 0 measures in this one.
        cache: a file of lines to which what is measured is added, and from which it is taken the next time, as long as
            the files of a volume have the same names, sizes and times.

    Raises:
        ValueError: if no volume can be read, with the first reason.
    """
    library("nibabel")  # if it is missing, that is said before worker processes are started
    keys = [case_key(case) for case in cases]
    known = {} if cache is None else _read_cache(cache)
    left = [index for index, key in enumerate(keys) if key not in known]
    for index, result in zip(
        left, each(_measure_or_reason, [cases[i] for i in left], workers, "measuring"), strict=True
    ):
        known[keys[index]] = result
        if cache is not None and not isinstance(result, str):
            cache.parent.mkdir(parents=True, exist_ok=True)
            with open_own(cache, "a") as file:
                file.write(json.dumps({"version": VERSION, "key": keys[index], **asdict(result)}) + "\n")
    results = [known[key] for key in keys]
    readable = [result for result in results if not isinstance(result, str)]
    if not readable:
        reasons = [(case.name, result) for case, result in zip(cases, results, strict=True) if isinstance(result, str)]
        raise ValueError(
            f"none of the {len(cases)} volumes can be used; {printable(reasons[0][0])}: {reasons[0][1]}"
            if reasons
            else "there are no volumes to measure"
        )
    usual = Counter(len(result.channels) for result in readable).most_common(1)[0][0]
    unreadable = []
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, str):
            unreadable.append((case.name, result))
        elif len(result.channels) != usual:
            unreadable.append((case.name, f"it has {len(result.channels)} channels, most others have {usual}"))
    if unreadable:
        shown = "; ".join(f"{printable(name)}: {reason}" for name, reason in unreadable[:4])
        more = f" and {len(unreadable) - 4} more" if len(unreadable) > 4 else ""
        log.warning(f"{len(unreadable)} of {len(cases)} volumes cannot be used: {shown}{more}")
    filled = sum(result.filled > 0 for result in readable)
    if filled:
        log.warning(
            f"NaN in {filled} of {len(readable)} volumes is replaced by the smallest value of the channel, in "
            f"{named([case.name for case in readable if case.filled])}"
        )
    return Fingerprint(tuple(result for result in readable if len(result.channels) == usual), tuple(unreadable))


def measure_case(case: Case, volume: Volume) -> CaseFingerprint:
    """Measure one volume.

    Raises:
        UnreadableImage: if it looks like a label map.
    """
    values = volume.values
    if looks_like_labels(values):
        raise UnreadableImage(
            f"it looks like a label map: its voxels have {len(np.unique(values))} different whole numbers; name the "
            "folder of the images"
        )
    modalities = [guess_modality(channel) for channel in values]
    mask = raw_foreground(values, modalities)
    box = bounding_box(mask)
    mask = without_holes(mask[box], modalities)
    if not mask.any():
        mask[...] = True
    channels = tuple(_intensities(channel[box][mask], kind) for channel, kind in zip(values, modalities, strict=True))
    foreground = tuple(side.stop - side.start for side in box)
    spacing = tuple(_rounded(side) for side in volume.spacing)
    return CaseFingerprint(case.name, values.shape[1:], spacing, foreground, channels, volume.filled, volume.stored)


def guess_modality(values: np.ndarray) -> str:
    """Return `ct` if values look like Hounsfield units: whole numbers that reach from air to tissue. Else `mr`."""
    sample = spread(values.ravel(order="K"), SAMPLED)
    low, high = float(values.min()), float(np.percentile(sample, 99.5))
    whole = bool((sample == np.round(sample)).mean() > 0.5)  # a scanner's; resampled CT is not, and reaches air
    air = CT_LOWEST < low <= CT_AIR
    return "ct" if air and high >= CT_HIGH and (whole or low <= -900.0) else "mr"


def case_key(case: Case) -> str:
    """Return a digest of a volume's name and of the names, sizes and times of its files."""
    digest = hashlib.sha256(case.name.encode(errors="surrogateescape"))
    for path in case.files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            try:
                status = file.stat()
            except OSError:
                continue
            about = f"\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}"
            digest.update(about.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _measure_or_reason(case: Case) -> CaseFingerprint | str:
    try:
        return measure_case(case, read_volume(case))
    except UnreadableImage as error:
        return str(error)


def _read_cache(path: Path) -> dict[str, CaseFingerprint | str]:
    """Return what was measured, without lines that a crash left unfinished."""
    found: dict[str, CaseFingerprint | str] = {}
    try:
        with open_own(path, "r") as file:
            for line in file:
                try:
                    value = parse_json(line)
                    if value["version"] == VERSION:
                        found[str(value["key"])] = CaseFingerprint.from_json(value)
                except (ValueError, KeyError, TypeError):
                    continue
    except FileNotFoundError:
        pass
    return found


def _intensities(values: np.ndarray, modality: str) -> Intensities:
    quantiles = np.percentile(spread(values, SAMPLED), LEVELS)
    return Intensities(
        _rounded(float(values.mean(dtype=np.float64))),
        _rounded(float(values.std(dtype=np.float64))),
        tuple(map(_rounded, quantiles.tolist())),
        modality,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _pooled(parts: Sequence[Intensities], modality: str) -> Intensities:
    """Return the intensities of volumes together; percentiles by the mean of their distribution functions."""
    means, stds = np.array([part.mean for part in parts]), np.array([part.std for part in parts])
    mean = float(means.mean())
    std = math.sqrt(max(0.0, float((stds**2 + means**2).mean()) - mean**2))
    grid = np.unique(np.concatenate([part.quantiles for part in parts]))
    quantiles = np.interp(LEVELS, 100 * _shares_below(parts, grid), grid)
    return Intensities(_rounded(mean), _rounded(std), tuple(map(_rounded, quantiles.tolist())), modality)


def _shares_below(parts: Sequence[Intensities], grid: np.ndarray) -> np.ndarray:
    """Return the share of voxels below each value."""
    levels = np.array(LEVELS) / 100
    shares = np.zeros(len(grid))
    for part in parts:
        values, last = np.unique(part.quantiles[::-1], return_index=True)  # the highest level of each value
        shares += np.interp(grid, values, levels[::-1][last], left=0.0, right=1.0)
    return shares / len(parts)
