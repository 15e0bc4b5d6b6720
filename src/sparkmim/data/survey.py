"""A look at a set of images before a run: sizes, channels, values, duplicates, and what is broken."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..utils.text import counted, printable
from .config import DEFAULT_FILES, FileConfig
from .decoding.encoded import TooManyPixels, UnreadableImage
from .normalize import WHITE
from .sources.base import ImageSource, open_image
from .statistics import spread_indices

HASH = 8
"""Rows and columns of the differences that a near duplicate is recognized by."""

NEAR = 2
"""Most of these 64 that differ between near duplicates."""

FLAT = 0.02
"""Share of the range of values within which an image is too flat to be compared by its differences."""

NAMED = 5
"""Images of each kind that a text names."""

SHOWN = 12
"""Rows of pictures, at most."""

TILE = 96
"""Pixels of a picture's longer side."""


@dataclass
class Survey:
    """What images are like.

    Attributes:
        tried: number of images looked at.
        sizes: height and width of each that can be read.
        dtypes: how many are of 8 bits, and how many of more.
        low: least value of each, that of 8 bits scaled to 0 to 1.
        high: largest value of each, likewise.
        constant: names of images of one color.
        too_large: names of images of more than `max_pixels`, of which windows can be read.
        without_data: names of images that have no data at all.
        exact: names of images whose pixels are equal, in groups.
        near: names of images that look alike, in groups.
        broken: names and reasons of those that cannot be read.
        pictures: a small picture of each image in one of the groups, by name.
    """

    tried: int = 0
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)
    without_data: list[str] = field(default_factory=list)
    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)


def survey(source: ImageSource, channels: int, limit: int, files: FileConfig = DEFAULT_FILES) -> Survey:
    """Look at up to `limit` images, spread evenly over a source; once at each that it shows several times.

    Near duplicates are images whose 8 x 8 differences between neighboring columns have at most two other signs, as have
    copies that were resized or compressed anew; crops and mirrored copies are not found.

    Raises:
        ValueError: if there is nothing to look at.
    """
    found = Survey()
    equal: dict[bytes, list[str]] = defaultdict(list)
    hashes: list[int] = []
    hashed: list[str] = []
    places: dict[str, int] = {}
    first = source.first_indices()
    images = range(len(source)) if first is None else np.unique(first).tolist()
    for index in (images[place] for place in spread_indices(limit, len(images))):
        name = source.name(index)
        found.tried += 1
        try:
            image = open_image(source, index, files).decode(channels)
        except TooManyPixels:
            found.too_large.append(name)
            continue
        except UnreadableImage as error:
            found.broken.append((name, str(error)))
            continue
        known = image[~image.isnan()] if image.is_floating_point() else image
        scale = WHITE if image.dtype == torch.uint8 else 1
        found.sizes.append(tuple(image.shape[1:]))
        found.dtypes["8 bits" if image.dtype == torch.uint8 else "more than 8 bits"] += 1
        if not known.numel():
            found.without_data.append(name)
            continue
        low, high = float(known.amin()) / scale, float(known.amax()) / scale
        found.low.append(low)
        found.high.append(high)
        places[name] = index
        if low == high:
            found.constant.append(name)
            continue
        shape = repr(tuple(image.shape)).encode()
        equal[hashlib.sha256(shape + image.contiguous().numpy().tobytes()).digest()].append(name)
        signs = _signs(image, low * scale, high * scale)
        if signs is not None:
            hashes.append(signs)
            hashed.append(name)
    found.exact = [names for names in equal.values() if len(names) > 1]
    same = {name for names in found.exact for name in names[1:]}
    unlike = [place for place, name in enumerate(hashed) if name not in same]
    found.near = [[hashed[unlike[place]] for place in group] for group in _groups([hashes[p] for p in unlike])]
    for name in {name for row in _rows(found) for name in row}:
        found.pictures[name] = _thumbnail(open_image(source, places[name], files).decode(channels))
    return found


def _rows(found: Survey) -> list[list[str]]:
    """Return which images are shown, a group a row."""
    rows = [*found.exact, *found.near, found.constant]
    return [row[:SHOWN] for row in rows if row][:SHOWN]


def _thumbnail(image: Tensor) -> Image.Image:
    """Return a small picture of the first channels of an image `(C, H, W)`, its values spread over all grays."""
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    values = shown.float()
    if image.dtype != torch.uint8:
        known = values[~values.isnan()]
        low, high = float(known.amin()), float(known.amax())
        values = (values.nan_to_num(low) - low) / max(high - low, 1e-30) * WHITE
    pixels = values.clamp(0, WHITE).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((TILE, TILE))
    return picture


def _signs(image: Tensor, low: float, high: float) -> int | None:
    """Return the signs of the differences between neighboring columns of a tiny copy, None of one that is flat."""
    gray = image.float().nan_to_num(low).mean(0, keepdim=True)[None]
    tiny = interpolate(gray, (HASH, HASH + 1), mode="area")[0, 0]
    if float(tiny.amax() - tiny.amin()) < FLAT * (high - low):
        return None
    bits = (tiny[:, 1:] > tiny[:, :-1]).flatten().numpy()
    return int(np.packbits(bits).view(">u8")[0])


def _groups(hashes: Sequence[int]) -> list[list[int]]:
    """Return the places of hashes that differ in at most :data:`NEAR` bits from the first of their group."""
    values, left = np.array(hashes, np.uint64), np.ones(len(hashes), bool)
    groups = []
    for place in range(len(hashes)):
        if not left[place]:
            continue
        near = np.bitwise_count(values ^ values[place]) <= NEAR if hasattr(np, "bitwise_count") else _few(values, place)
        group = np.flatnonzero(near & left)
        if len(group) > 1:
            left[group] = False
            groups.append(group.tolist())
    return groups


def _few(values: np.ndarray, place: int) -> np.ndarray:
    """Return which values differ from one in few bits; NumPy below 2 does not count bits."""
    bits = np.unpackbits((values ^ values[place]).view(np.uint8).reshape(len(values), 8), axis=1)
    few: np.ndarray = bits.sum(1) <= NEAR
    return few


def survey_text(found: Survey) -> str:
    """Return a survey in lines."""
    lines = [f"images       {found.tried} looked at, {len(found.broken)} cannot be read"]
    for name, reason in found.broken[:NAMED]:
        lines.append(f"             {printable(name)}: {printable(reason)}")
    if found.sizes:
        heights, widths = (sorted(size[axis] for size in found.sizes) for axis in (0, 1))
        middle = len(heights) // 2
        common, times = Counter(found.sizes).most_common(1)[0]
        lines.append(
            f"sizes        heights {heights[0]} to {heights[-1]} (median {heights[middle]}), widths {widths[0]} to "
            f"{widths[-1]} (median {widths[middle]}); {times} of {' x '.join(map(str, common))}"
        )
        kinds = ", ".join(f"{count} of {kind}" for kind, count in found.dtypes.most_common())
        values = f"; {min(found.low):.4g} to {max(found.high):.4g}" if found.low else ""
        lines.append(f"values       {kinds}{values}")
    lines.append(f"one color    {_named(found.constant)}")
    if found.too_large:
        lines.append(f"too large    {_named(found.too_large)}; windows of TIFF files are read with --crop native")
    if found.without_data:
        lines.append(f"no data      {_named(found.without_data)}")
    lines.append(f"equal        {_grouped(found.exact)}")
    lines.append(f"alike        {_grouped(found.near)}")
    return "\n".join(lines)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)}: {', '.join(map(printable, names[:NAMED]))}{more}" if names else "none"


def _grouped(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return "none"
    largest = max(groups, key=len)
    images = sum(map(len, groups))
    return f"{counted(images, 'image')} in {counted(len(groups), 'group')}; the largest: {_named(largest)}"


def survey_picture(found: Survey) -> Image.Image | None:
    """Return pictures of the images that are equal, alike or of one color, a group a row; None if there are none."""
    rows = _rows(found)
    if not rows:
        return None
    sheet = Image.new("RGB", (TILE * max(map(len, rows)), TILE * len(rows)), "white")
    for number, row in enumerate(rows):
        for column, name in enumerate(row):
            sheet.paste(found.pictures[name], (TILE * column, TILE * number))
    return sheet
