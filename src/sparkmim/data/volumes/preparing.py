"""Prepare volumes: cropped to the foreground, normalized, resampled, and kept in a store that is read by crops.

The order is nnU-Net's: crop, normalize, resample.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ...utils.io import SUFFIX, write_atomically
from ...utils.logging import log
from ...utils.memory import host_memory
from ...utils.orientation import EXPECTED, RAS, axes_of, is_orientation
from ...utils.text import counted, printable, verb
from ..decoding.encoded import UnreadableImage
from ..tables import named
from .base import Case
from .fingerprint import CaseFingerprint, Fingerprint, Intensities, case_key, measure
from .foreground import bounding_box, raw_foreground, without_holes
from .geometry import cropped, in_orientation, resampled, spacing_of
from .libraries import library
from .parallel import each
from .reading import Volume, read_volume
from .resampling import new_shape, resample, separate_axis
from .settings import PrepareSettings as PrepareSettings
from .store import CACHE, Entry, PreparedVolumes, compress, read_entry, volume_path, write_store

VERSION = 1
"""Of what is done to volumes; another one prepares them anew."""

MASKED_BELOW = 0.75
"""Share of a volume left by cropping to the foreground below which MR is normalized within the foreground alone."""

MIXED = 2.0
"""Ratio of two volumes' spacings along an axis above which they are not trained on together as they are."""

TRIED = 3
"""Volumes that are compressed to estimate the size of the store, where it might not fit."""

KEPT_FREE = 2**30
"""Bytes of the disk that are left free."""

PARTIAL_SECONDS = 3600.0
"""Age at which a file that is being written was left by a crash."""

COPIES = 3
"""Times that a volume is held in memory while it is resampled and compressed."""

Kind = Literal["ct", "mr", "none"]


class Prepared(NamedTuple):
    """A prepared volume.

    Attributes:
        values: `(C, *size)`, float32, its axes in the order of the preparation's orientation.
        affine: 4x4, from its voxels to the RAS world.
    """

    values: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Preparation:
    """What is done to each volume of a set: settings, with what follows from the fingerprint filled in.

    Attributes:
        spacing: to resample to, in millimeters along X, Y and Z; None for none.
        kinds: how each channel is normalized.
        modalities: what each channel is, which tells its foreground: that of its kind, or as it looks.
        intensities: of each channel over the set, for CT: low, high, mean and deviation.
        foreground: crop to it.
        masked: normalize MR within the foreground, and set the rest to 0.
        orientation: order of the axes of what is prepared.
    """

    spacing: tuple[float, ...] | None
    kinds: tuple[Kind, ...]
    modalities: tuple[str, ...]
    intensities: tuple[tuple[float, float, float, float] | None, ...]
    foreground: bool
    masked: bool
    orientation: str = RAS

    @classmethod
    def of(cls, settings: PrepareSettings, fingerprint: Fingerprint) -> Preparation:
        """Resolve settings for a set of volumes.

        Raises:
            ValueError: if spacings differ too much to be left as they are.
        """
        if settings.spacing == "none":
            _require_alike(fingerprint)
        named = None if settings.spacing == "none" else settings.spacing
        spacing = fingerprint.target_spacing if named == "median" else named
        guessed: Any = fingerprint.modalities
        kinds: Any = guessed if settings.intensity == "auto" else (settings.intensity,) * fingerprint.channels
        modalities = guessed if settings.intensity == "none" else kinds
        intensities = tuple(
            _clipping(fingerprint.intensities[channel]) if kind == "ct" else None for channel, kind in enumerate(kinds)
        )
        masked = settings.foreground and "mr" in kinds and fingerprint.foreground_share < MASKED_BELOW
        sides = None if spacing is None else tuple(map(float, spacing))
        return cls(sides, kinds, modalities, intensities, settings.foreground, masked, settings.orientation)

    @classmethod
    def nothing(cls, channels: int) -> Preparation:
        """Return what leaves volumes as they are read."""
        kinds: Any = ("none",) * channels
        return cls(None, kinds, ("mr",) * channels, (None,) * channels, False, False)

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preparation:
        """Build it from the content of a file.

        Raises:
            ValueError: if it is none.
        """
        try:
            spacing = None if value["spacing"] is None else tuple(map(float, value["spacing"]))
            intensities = [None if part is None else tuple(map(float, part)) for part in value["intensities"]]
            kinds, modalities = tuple(value["kinds"]), tuple(value["modalities"])
            sound = len(kinds) == len(intensities) == len(modalities) and set(kinds) <= set(get_args(Kind))
            sound = sound and set(modalities) <= {"ct", "mr"}
            sound = sound and all(part is None or (len(part) == 4 and part[3] > 0) for part in intensities)
            sound = sound and (spacing is None or (len(spacing) == 3 and all(0 < side < math.inf for side in spacing)))
            if not sound or not all(math.isfinite(number) for part in intensities for number in part or ()):
                raise ValueError("its values cannot be")
            found: Any = intensities
            foreground, masked = bool(value["foreground"]), bool(value["masked"])
            orientation = value.get("orientation", RAS)  # older versions do not say
            if not is_orientation(orientation):
                raise ValueError(f"the orientation {orientation!r} {EXPECTED}")
            return cls(spacing, kinds, modalities, tuple(found), foreground, masked, orientation)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks what volumes were prepared by ({error})") from error

    def apply(self, volume: Volume) -> Prepared:
        """Crop, normalize and resample a volume.

        Raises:
            UnreadableImage: if it has another number of channels, or nothing is left of it.
        """
        if len(volume.values) != len(self.kinds):
            raise UnreadableImage(f"expected {len(self.kinds)} channels, got {len(volume.values)}")
        values, affine = volume.values, volume.affine
        mask = None
        if self.foreground:
            mask = raw_foreground(values, self.modalities)
            box = bounding_box(mask)
            affine = cropped(affine, [side.start for side in box])
            values, mask = values[:, *box], mask[box]
        if self.masked and mask is not None:
            mask = without_holes(mask, self.modalities)
        values = np.stack(
            [self._normalize(channel, index, mask if self.masked else None) for index, channel in enumerate(values)]
        )
        if self.spacing is not None:
            shape = values.shape[1:]
            spacing = spacing_of(affine)
            new = new_shape(shape, spacing, self.spacing)
            values = resample(values, new, separate_axis(spacing, self.spacing))
            affine = resampled(affine, shape, new)
        return Prepared(*in_orientation(values, affine, self.orientation))

    def _normalize(self, channel: np.ndarray, index: int, mask: np.ndarray | None) -> np.ndarray:
        kind, known = self.kinds[index], self.intensities[index]
        if kind == "none":
            return channel
        if known is not None:
            low, high, mean, std = known
            clipped: np.ndarray = (np.clip(channel, low, high) - np.float32(mean)) / np.float32(std)
            return clipped
        inside = channel if mask is None or not mask.any() else channel[mask]
        mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
        scaled: np.ndarray = (channel - np.float32(mean)) / np.float32(max(std, 1e-8))
        return scaled if mask is None else np.where(mask, scaled, np.float32(0))

    def size(self, case: CaseFingerprint) -> tuple[int, ...]:
        """Return the voxels along each axis that a volume will have, in the order of the orientation."""
        shape = case.foreground if self.foreground else case.shape
        shape = shape if self.spacing is None else new_shape(shape, case.spacing, self.spacing)
        return tuple(shape[axis] for axis in axes_of(self.orientation))

    def spacing_along(self) -> tuple[float, ...] | None:
        """Return the spacing along the axes of what is prepared, None if volumes are not resampled."""
        return self.spacing and tuple(self.spacing[axis] for axis in axes_of(self.orientation))

    def bytes(self, fingerprint: Fingerprint, names: set[str] | None = None) -> int:
        """Return the bytes of volumes before compression: of all, or of those named."""
        sizes = [self.size(case) for case in fingerprint.cases if names is None or case.name in names]
        return 4 * len(self.kinds) * sum(map(math.prod, sizes))

    def key(self, case: Case) -> str:
        """Return a digest of a volume's files and of what is done to it."""
        how = asdict(self)
        if self.orientation == RAS:  # so that what older versions have prepared is found
            del how["orientation"]
        text = json.dumps([VERSION, case_key(case), how])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def preparation_of(volumes: PreparedVolumes) -> Preparation:
    """Return what was done to the volumes of a store."""
    return Preparation.of(volumes.settings, volumes.fingerprint)


def prepare_case(case: Case, preparation: Preparation) -> Prepared:
    """Read and prepare one volume.

    Raises:
        UnreadableImage: if it cannot be read.
    """
    return preparation.apply(read_volume(case))


def prepare(
    cases: Sequence[Case],
    settings: PrepareSettings,
    store: Path,
    *,
    workers: int,
    fingerprint: Fingerprint | None = None,
    preparation: Preparation | None = None,
    most_unreadable: float = 1.0,
) -> PreparedVolumes:
    """Prepare volumes into a store, in worker processes, and open it.

    What was measured and prepared before, of the same files in the same way, is kept, so that a call after a crash
    continues. Volumes that cannot be read are listed in the result.

    Args:
        cases: the volumes.
        settings: how they are prepared.
        store: a folder, made if missing.
        workers: processes; 0 prepares in this one.
        fingerprint: of all these volumes, if it is measured already.
        preparation: what is done to each, if it was resolved for other volumes, as for those held out.
        most_unreadable: share of the volumes that may be; with more, nothing is prepared.

    Raises:
        ValueError: if no volume or too few can be read, spacings are mixed and not resampled, or the disk has too
            little room.
        ChildProcessError: if a worker is killed.
    """
    library("blosc2")
    fingerprint = measure(cases, workers, store / CACHE) if fingerprint is None else fingerprint
    require_few_unreadable(fingerprint.unreadable, len(cases), most_unreadable)
    usable = {case.name for case in fingerprint.cases}
    unknown = [case.name for case in cases if case.name not in usable | {name for name, _ in fingerprint.unreadable}]
    if unknown:
        raise ValueError(f"the fingerprint is of other volumes, without {len(unknown)} of these: {named(unknown)}")
    preparation = Preparation.of(settings, fingerprint) if preparation is None else preparation
    chosen = [case for case in cases if case.name in usable]
    entries: dict[str, Entry] = {}
    keys = {case.name: preparation.key(case) for case in chosen}
    for case in chosen:
        entry = read_entry(store, case.name, keys[case.name])
        if entry is not None:
            entries[case.name] = entry
    left = [case for case in chosen if case.name not in entries]
    _remove_partial(store)
    if left:
        names = {case.name for case in left}
        require_memory(preparation, [case for case in fingerprint.cases if case.name in names])
        _announce(left, preparation, fingerprint, store, done=len(entries))
    work = partial(_prepare_into, preparation=preparation, store=store)
    unreadable = list(fingerprint.unreadable)
    for case, result in zip(
        left, each(work, [(case, keys[case.name]) for case in left], workers, "preparing"), strict=True
    ):
        if isinstance(result, str):
            unreadable.append((case.name, result))
        else:
            entries[case.name] = result
    if not entries:
        raise ValueError(f"none of the {len(cases)} volumes can be prepared; {unreadable[0][0]}: {unreadable[0][1]}")
    write_store(store, settings, fingerprint, [entries[c.name] for c in chosen if c.name in entries], unreadable)
    return PreparedVolumes.open_store(store)


def require_few_unreadable(unreadable: Sequence[tuple[str, str]], count: int, most: float) -> None:
    """Raise if a larger share of volumes than is allowed cannot be read.

    Args:
        unreadable: name and reason of each.
        count: of all volumes.
        most: share that is allowed.

    Raises:
        ValueError: with the first reason.
    """
    if len(unreadable) > most * count:
        name, reason = unreadable[0]
        raise ValueError(
            f"{len(unreadable)} of {count} volumes cannot be read; {printable(name)}: {reason}. Mend or remove them, "
            "or allow more of them by --max-broken"
        )


def require_memory(preparation: Preparation, cases: Sequence[CaseFingerprint]) -> None:
    """Raise if the largest of some volumes, once resampled, does not fit into memory: a spacing in other units, mostly.

    Raises:
        ValueError: with the volume, its sizes and the remedy.
    """
    largest = max(cases, key=lambda case: math.prod(preparation.size(case)))
    needed = COPIES * 4 * len(preparation.kinds) * math.prod(preparation.size(largest))
    free = host_memory()
    if needed <= free or preparation.spacing is None:
        return
    by = [" x ".join(map(str, size)) for size in (largest.shape, preparation.size(largest))]
    raise ValueError(
        f"{printable(largest.name)} of {by[0]} voxels ({_mm(largest.spacing)}) becomes {by[1]} voxels "
        f"({_mm(preparation.spacing)}), which takes {readable_bytes(needed)} to resample, and {readable_bytes(free)} "
        "of memory are free; write a coarser --spacing X Y Z, in millimeters, or leave the volume out"
    )


def _mm(spacing: Sequence[float]) -> str:
    return f"{' x '.join(f'{side:.3g}' for side in spacing)} mm"


def _prepare_into(work: tuple[Case, str], *, preparation: Preparation, store: Path) -> Entry | str:
    """Prepare a volume into the store; return the reason if it cannot be read."""
    case, key = work
    try:
        prepared = prepare_case(case, preparation)
    except UnreadableImage as error:
        return str(error)
    content = compress(prepared.values, prepared.affine)
    write_atomically(volume_path(store, key), lambda file: file.write(content))
    return Entry(case.name, key, prepared.values.shape, prepared.affine)


def _announce(
    left: Sequence[Case], preparation: Preparation, fingerprint: Fingerprint, store: Path, *, done: int
) -> None:
    """Log the size of what will be written, and raise if the disk has too little room.

    Raises:
        ValueError: with both sizes and the remedies.
    """
    most = preparation.bytes(fingerprint, {case.name for case in left})
    free = free_bytes(store)
    kept = f" ({done} {verb(done, 'are')} there already)" if done else ""
    place = printable(str(store))
    if most + KEPT_FREE <= free:
        log.info(
            f"preparing {counted(len(left), 'volume')}{kept} into {place}: at most {readable_bytes(most)} of the "
            f"{readable_bytes(free)} free"
        )
        return
    ratio = _compression(left, preparation)
    about = round(most * ratio)
    if about + KEPT_FREE > free:
        raise ValueError(
            f"{counted(len(left), 'prepared volume')} {verb(len(left), 'take')} about {readable_bytes(about)} "
            f"({readable_bytes(most)} before "
            f"compression), and the disk of {place} has {readable_bytes(free)} free, of which "
            f"{readable_bytes(KEPT_FREE)} must stay free: put the store on a larger disk, free "
            f"{readable_bytes(about + KEPT_FREE - free)}, take fewer volumes, or coarser voxels by --spacing X Y Z"
        )
    log.info(
        f"preparing {counted(len(left), 'volume')}{kept} into {place}: about {readable_bytes(about)} of the "
        f"{readable_bytes(free)} free"
    )


def _compression(cases: Sequence[Case], preparation: Preparation) -> float:
    """Return the share of their size to which a few volumes are compressed, spread over the set."""
    before = after = 0
    for case in cases[:: max(1, len(cases) // TRIED)][:TRIED]:
        try:
            prepared = prepare_case(case, preparation)
        except UnreadableImage:
            continue
        before += prepared.values.nbytes
        after += len(compress(prepared.values, prepared.affine))
    return after / before if before else 1.0


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the disk of a folder that need not exist yet."""
    nearest = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    return shutil.disk_usage(nearest).free


def readable_bytes(count: float) -> str:
    """Format a number of bytes: `3.2 GB`, `45 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _remove_partial(store: Path) -> None:
    """Remove files that a crash left half written."""
    now = time.time()
    for path in store.glob(f"*/*{SUFFIX}"):
        try:
            if now - path.stat().st_mtime > PARTIAL_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue


def _clipping(pooled: Intensities) -> tuple[float, float, float, float]:
    return pooled.low, pooled.high, pooled.mean, max(pooled.std, 1e-8)


def _require_alike(fingerprint: Fingerprint) -> None:
    """Raise if spacings along an axis differ more than twofold.

    Raises:
        ValueError: with the extremes.
    """
    spacings = fingerprint.spacings
    ratio = spacings.max(axis=0) / spacings.min(axis=0)
    axis = int(ratio.argmax())
    if ratio[axis] > MIXED:
        fine, coarse = (
            fingerprint.cases[int(index)] for index in (spacings[:, axis].argmin(), spacings[:, axis].argmax())
        )
        raise ValueError(
            f"mixed spacings without resampling: {printable(fine.name)} has {fine.spacing[axis]:g} mm along "
            f"{'XYZ'[axis]}, {printable(coarse.name)} {coarse.spacing[axis]:g} mm. Write --spacing median, or three "
            "numbers of mm, or leave out the volumes that differ"
        )
