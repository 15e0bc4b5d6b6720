"""Find volumes: below a folder, in a list, or in the data set of nnU-Net or nnssl."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...utils.logging import log
from ...utils.text import counted, printable, verb
from ..decoding.encoded import UnreadableImage
from ..decoding.images import image_extensions
from ..sources.folder import walk
from ..tables import named
from .base import Case as Case
from .base import Cases as Cases
from .base import join_channels
from .dicom import find_series
from .extensions import ARRAYS, DECISIVE, DICOM, READABLE, TIFF, ZARR, extension_of, is_dicom, stem_of
from .formats import is_flat, ome_metadata, read_files
from .label_maps import MOST_LABELS, looks_like_labels, named_as_labels
from .libraries import library
from .listings import read_listing
from .store import is_store

BIDS = "dataset_description.json"
"""What the root of a BIDS data set holds."""

BIDS_OTHERS = {"derivatives", "sourcedata", "code", "stimuli"}
"""Folders of a BIDS data set that hold no images as they were taken."""

BIDS_SERIES = re.compile(r".*_(bold|cbv|sbref|dwi|asl|m0scan|epi|phasediff|phase[12]|fieldmap|meg|eeg)")
"""Names of files of a BIDS data set that hold time series, diffusion directions or maps of the field."""

LABELS_READ = 3
"""Files named as label maps that are read first, to see whether they are."""

MANY_SLICES = 5000
"""DICOM files whose headers take a while to read."""

LOOKED_AT = 20_000
"""Files among which one that holds a volume is looked for."""


def is_volumes(path: str | Path) -> bool:
    """Return whether a folder, a list or a file is of volumes, by extensions (and the first bytes of DICOM) alone.

    Arrays and TIFF files, which may be pictures, do not decide.
    """
    root = Path(path).expanduser()
    if extension_of(root.name) in DECISIVE:
        return root.exists()
    if root.is_file():
        if extension_of(root.name) not in (".csv", ".json"):
            return is_dicom(root)
        try:
            text = root.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return False
        return any(re.search(rf"{re.escape(kind)}(?![\w.])", text, re.IGNORECASE) for kind in DECISIVE)
    if not root.is_dir():
        return False
    if _is_zarr(root):
        return True
    for number, (below, entry) in enumerate(walk(root, _is_leaf)):
        if extension_of(entry.name) in DECISIVE or is_dicom(root / below / entry.name):
            return True
        if number >= LOOKED_AT:
            break
    return False


def find_cases(
    path: str | Path, option: str = "--data", *, listings: bool = True, channels: int | None = None
) -> Cases:
    """Find the volumes of a folder, nested or not, of a list or of a data set.

    - A folder: all files of volumes below it; DICOM files by series, files `NAME_0000`, `NAME_0001`... as channels of
      one volume, each image of a plate. In a BIDS data set time series and derivatives are passed over.
    - `dataset.json` of nnU-Net or of the Medical Segmentation Decathlon, or the folder that holds it: training images.
    - `pretrain_data.json` of nnssl, or the folder that holds it.
    - A CSV file of rows `path[,path...]`, a column for each channel.
    - A file of a volume.

    Files that are named as label maps and are some, pictures among volumes and DICOM files without an image are passed
    over and listed, as a warning and in the attribute `skipped`.

    Args:
        path: where they are.
        option: the command-line option that named it, for messages.
        listings: read the lists above; otherwise a folder's volumes are the files below it.
        channels: of each volume, if that is known: files of 1 are volumes of their own, however they are numbered.

    Raises:
        ValueError: if there is no volume, with what there is instead and the remedy.
    """
    root = Path(path).expanduser()
    if is_store(root):
        raise ValueError(
            f"{option} {printable(str(root))} is a store of prepared volumes; name the volumes that it was made of"
        )
    if not root.exists():
        raise ValueError(f"there is no file or folder {printable(str(root))}; see {option}")
    found = read_listing(root, option) if listings else None
    if found is None:
        found = _in_folder(root, option, channels) if root.is_dir() else Cases([_only(root, option)])
    twice = [name for name, count in Counter(case.name for case in found).items() if count > 1]
    if twice:
        raise ValueError(f"{option} {printable(str(root))} lists volumes more than once: {named(sorted(twice))}")
    reasons: dict[str, list[str]] = {}
    for name, reason in found.skipped:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        log.warning(f"passed over {len(names)} of the files of {printable(str(root))}, {reason}: {named(names)}")
    return found


def _only(path: Path, option: str) -> Case:
    if extension_of(path.name) not in READABLE and not is_dicom(path):
        kinds = ", ".join(sorted(READABLE))
        raise ValueError(
            f"{option} {printable(str(path))} is neither a file of a volume ({kinds}) nor a list: a CSV file of rows "
            "`path[,path...]`, the dataset.json of nnU-Net, the pretrain_data.json of nnssl"
        )
    return Case(path.name, (path,))


def _is_leaf(name: str) -> bool:
    """Return whether a folder is one volume as a whole."""
    return extension_of(name) in ZARR


def _is_zarr(folder: Path) -> bool:
    return _is_leaf(folder.name) or any((folder / name).is_file() for name in (".zattrs", ".zgroup", "zarr.json"))


def _in_folder(root: Path, option: str, channels: int | None) -> Cases:
    """Find the volumes below a folder, see :func:`find_cases`."""
    if _is_zarr(root):
        return Cases(_of_zarr(root.name, root))
    bids = (root / BIDS).is_file()
    names: list[str] = []
    slices: list[Path] = []
    skipped: list[tuple[str, str]] = []
    pictures: list[str] = []
    others: Counter[str] = Counter()
    pictured = image_extensions() - READABLE
    for below, entry in walk(root, _is_leaf):
        name, extension = below + entry.name, extension_of(entry.name)
        if bids and name.split(os.sep)[0] in BIDS_OTHERS:
            others["derivatives of BIDS"] += 1
        elif bids and BIDS_SERIES.fullmatch(stem_of(entry.name)) and extension in READABLE:
            skipped.append((name, "a time series, diffusion directions or a map of the field, by its name in BIDS"))
        elif extension in DICOM or (extension not in READABLE and is_dicom(root / name)):
            slices.append(root / name)
        elif extension in READABLE:
            names.append(name)
        elif extension in pictured:
            pictures.append(name)
            others[extension] += 1
        else:
            others[extension or "no extension"] += 1
    flat = {name for name in names if extension_of(name) in (*ARRAYS, *TIFF) and is_flat(root / name)}
    skipped += [(name, "a picture, not a volume") for name in sorted([*flat, *pictures])]
    names = sorted(name for name in names if name not in flat)
    names, labels = without_labels(root, names, option)
    skipped += labels
    files = [name for name in names if extension_of(name) not in ZARR]
    try:
        cases = [Case(name, (root / name,)) for name in files] if channels == 1 else join_channels(root, files)
    except ValueError as error:
        raise ValueError(f"{option} {printable(str(root))}: {error}") from error
    for name in names:
        if extension_of(name) in ZARR:
            cases += _of_zarr(name, root / name)
    found, unread = _of_dicom(root, slices)
    cases += found
    skipped += unread
    if not cases:
        what = ", ".join(f"{count} {kind}" for kind, count in others.most_common(4))
        passed = "".join(f"; {printable(name)}: {reason}" for name, reason in skipped[:3])
        raise ValueError(
            f"no volume in {printable(str(root))}: it holds {what or 'no other file'}{passed}; expected NIfTI, NRRD, "
            "MHA, DICOM, OME-Zarr, .b2nd, stacks of TIFF or .npy files"
        )
    return Cases(sorted(cases), skipped)


def without_labels(root: Path, names: Sequence[str], option: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Leave out the files that are named as label maps and hold few different whole numbers.

    A few of those so named are read, and all if these differ.

    Returns:
        The names that are left, and those left out with the reason.

    Raises:
        ValueError: if none is left.
    """
    suspects = [name for name in names if named_as_labels(name, root)]
    read = {
        name: _holds_labels(root / name) for name in suspects[:: max(1, len(suspects) // LABELS_READ)][:LABELS_READ]
    }
    if len(set(read.values())) > 1:
        read = {name: _holds_labels(root / name) for name in suspects}
        suspects = [name for name in suspects if read[name]]
    elif False in read.values():
        suspects = []
    if suspects and len(suspects) == len(names):
        raise ValueError(
            f"{option} {printable(str(root))} holds label maps, not images: its {counted(len(names), 'file')} "
            f"{verb(len(names), 'are')} named as such "
            f"({printable(suspects[0])}) and {verb(len(names), 'hold')} few different whole numbers; name the folder "
            "of the images"
        )
    left = set(names) - set(suspects)
    reason = "a label map, by its name and by the values of the first ones"
    return [name for name in names if name in left], [(name, reason) for name in suspects]


def _holds_labels(path: Path) -> bool:
    """Return whether a file holds label maps; true as well if it cannot be read."""
    try:
        return looks_like_labels(read_files([path]).values, MOST_LABELS)
    except UnreadableImage:
        return True


def _of_zarr(name: str, path: Path) -> list[Case]:
    """Return the image of a .zarr folder, or each image of a plate."""
    zarr = library("zarr")
    try:
        node = zarr.open(str(path), mode="r")
        said = {} if isinstance(node, zarr.Array) else ome_metadata(node)
        if "plate" not in said:
            return [Case(name, (path,))]
        cases = []
        for well in said["plate"]["wells"]:
            for image in ome_metadata(node[well["path"]])["well"]["images"]:
                place = f"{well['path']}/{image['path']}"
                cases.append(Case(f"{name}/{place}", (path / place,)))
        return cases
    except Exception:  # it is told of when it is read
        return [Case(name, (path,))]


def _of_dicom(root: Path, files: Sequence[Path]) -> tuple[list[Case], list[tuple[str, str]]]:
    """Return a case for each series of more than a slice, named after its folder."""
    if not files:
        return [], []
    if len(files) > MANY_SLICES:
        log.info(f"reading the headers of {len(files):,} DICOM files")
    series, skipped = find_series(files)
    single = [one for one in series if len(one.files) == 1 and not _has_frames(one.uid)]
    volumes = [one for one in series if one not in single]
    folders = Counter(one.files[0].parent for one in volumes)
    cases = []
    for one in volumes:
        folder = one.files[0].parent
        name = folder.relative_to(root).as_posix()
        if folders[folder] > 1 or name == ".":
            name = one.uid if name == "." else f"{name}/{one.uid}"
        cases.append(Case(name, one.files))
    passed = [*skipped, *((one.files[0], "a series of one slice, not a volume") for one in single)]
    return cases, [(str(path.relative_to(root)), reason) for path, reason in passed]


def _has_frames(uid: str) -> bool:
    return "/" in uid
