"""`sparkmim stats`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.config import MAX_PIXELS, FileConfig, Pages
from ..utils.fields import validate_as

if TYPE_CHECKING:
    from PIL.Image import Image


def command(
    data: str,
    in_chans: int = 3,
    limit: int = 256,
    pages: Pages = "channels",
    nodata: float | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 2,
    output: str | None = None,
) -> int:
    """Measure mean and standard deviation of images, or sizes and values of volumes, signals or clips.

    Mean and deviation are printed as flags for `sparkmim pretrain`, for each channel. Of images, sizes, values, those
    of one color, equal and similar ones, and those that cannot be read are told in the lines after it.

    Args:
        data: folder of images, signals or clips, or an address (SCHEME://...); folder or list of volumes.
        in_chans: channels of images and clips; those of volumes and signals are in the files.
        limit: maximum number of them to read, spread evenly over the folder.
        pages: what the pages of a TIFF file are, as for `sparkmim pretrain`.
        nodata: value of pixels without data, beside NaN and the one that a GeoTIFF names.
        max_pixels: most pixels of an image.
        workers: processes that read volumes.
        output: a .png file for the histograms of volumes or signals, or for pictures of images that are equal, alike or
            of one color, a group a row.
    """
    if in_chans < 1 or limit < 1 or workers < 0:
        raise ValueError(
            f"--in-chans {in_chans} and --limit {limit} must be at least 1, --workers {workers} at least 0"
        )
    from ..data.kinds import kind_of

    kind = kind_of(data)
    if kind == "volumes":
        return _volumes(data, limit, workers, output)
    if kind == "signals":
        return _signals(data, limit, output)
    if output is not None and kind != "images":
        raise ValueError(f"--output {output} is for pictures of images, volumes or signals; {data} holds {kind}")
    from ..data.clips.opening import ClipPreparation, clips_table, open_clips
    from ..data.sources.address import open_source
    from ..data.sources.base import ImageSource
    from ..data.sources.pages import by_page
    from ..data.statistics import channel_statistics
    from ..data.survey import survey, survey_picture, survey_text
    from ..utils.text import counted

    validate_as(FileConfig, pages=pages, nodata=nodata, max_pixels=max_pixels)
    files = FileConfig(pages=pages, nodata=nodata, max_pixels=max_pixels)
    path = _picture_file(output)
    if kind == "clips":
        clips = open_clips(data, ClipPreparation(1), in_chans)
        print(clips_table(clips))
        source: ImageSource = clips
    else:
        source = by_page(open_source(data), in_chans, files)
    measured = channel_statistics(source, in_chans, limit, files)
    print(f"--mean {' '.join(map(str, measured.mean))} --std {' '.join(map(str, measured.std))}")
    lost = min(limit, len(source)) - measured.images
    broken = f"; {lost} of those tried cannot be read" if lost else ""
    print(f"measured on {counted(measured.images, kind.removesuffix('s'))}{broken}", file=sys.stderr)
    if kind == "images":
        found = survey(source, in_chans, limit, files)
        print(survey_text(found))
        picture = survey_picture(found)
        if path is not None and picture is None:
            print("no picture: no images are equal, alike or of one color", file=sys.stderr)
        elif path is not None and picture is not None:
            _write_picture(picture, path)
    return 0


def _signals(data: str, limit: int, output: str | None) -> int:
    """Print what signals are like, and draw it."""
    from ..data.signals.opening import find_signals
    from ..data.signals.settings import SignalSettings
    from ..data.signals.summary import measure_signals, signals_picture, signals_table
    from ..utils.logging import printing

    path = _picture_file(output)
    with printing():
        root, names = find_signals(data)
        found = measure_signals(root, names, SignalSettings(), limit)
    print(signals_table(found))
    if path is not None:
        _write_picture(signals_picture(found), path)
    return 0


def _volumes(data: str, limit: int, workers: int, output: str | None) -> int:
    """Print the fingerprint of volumes, and draw it."""
    from ..data.statistics import spread_indices
    from ..data.volumes.fingerprint import measure
    from ..data.volumes.opening import cases_at, path_of
    from ..data.volumes.store import PreparedVolumes, is_store
    from ..data.volumes.summary import fingerprint_picture, fingerprint_table
    from ..utils.logging import printing

    path = _picture_file(output)
    with printing():
        if is_store(path_of(data)):
            found = PreparedVolumes.open_store(path_of(data)).fingerprint
        else:
            cases = cases_at(data)
            found = measure([cases[index] for index in spread_indices(limit, len(cases))], workers)
    print(fingerprint_table(found))
    if path is not None:
        _write_picture(fingerprint_picture(found), path)
    return 0


def _picture_file(output: str | None) -> Path | None:
    """Return the file of a picture, None if none is asked for.

    Raises:
        ValueError: before any work, if it cannot be written.
    """
    from ..utils.io import require_suffix, require_writable

    if output is None:
        return None
    path = Path(output)
    require_suffix(path, ".png")
    require_writable(path)
    return path


def _write_picture(picture: Image, path: Path) -> None:
    from ..utils.io import write_atomically

    write_atomically(path, lambda file: picture.save(file, "png"))
    print(f"wrote {path}", file=sys.stderr)
