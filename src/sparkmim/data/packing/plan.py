"""What is packed into which tar file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...utils.io import read_json, write_json
from ...utils.text import printable
from ..decoding.encoded import UnreadableImage
from ..decoding.images import EncodedFile, image_extensions
from ..sources.base import ImageSource, fingerprint
from ..statistics import spread
from ..storage.safety import is_hidden, is_safe_name
from ..storage.tar_index import key_of
from .encoding import encode

RECORD = "pack.json"
"""File beside the tar files that says how they were made."""

TRIED = 64
"""Images by which the size is estimated."""

HEADER = 1024
"""Bytes that a member of a tar file takes beside its content, about."""

EXTENSIONS = image_extensions()

SPARE = 1.05
"""Share of the estimated size that must be free."""


@dataclass(frozen=True)
class Plan:
    """How images are packed.

    Attributes:
        images: number and digest of the names.
        per_shard: images in a tar file.
        resize: most pixels of the shorter side of an image; None leaves it.
        quality: of JPEG; None leaves files as they are.
    """

    images: str
    per_shard: int
    resize: int | None
    quality: int | None

    def shards(self, count: int) -> list[range]:
        """Return the indices of the images in each tar file."""
        return [range(start, min(start + self.per_shard, count)) for start in range(0, count, self.per_shard)]


def shard_name(number: int) -> str:
    """Return the name of a tar file."""
    return f"shards-{number:06d}.tar"


def address_of(output: Path, shards: int, *, several: bool) -> str:
    """Return the address of tar files that were packed."""
    pattern = shard_name(0) if shards == 1 else f"shards-{{{0:06d}..{shards - 1:06d}}}.tar"
    return f"wds://{output / pattern}{'#*' * several}"


def read_content(source: ImageSource, index: int) -> bytes:
    """Return the bytes of an image's file.

    Raises:
        UnreadableImage: if it cannot be read.
        ValueError: if the source's images are not files.
    """
    image = source.open(index)
    if not isinstance(image, EncodedFile):
        raise ValueError(f"images of {type(source).__name__} are not files, which alone are packed")
    return image.read()


def packed_name(source: ImageSource, index: int, content: bytes, extension: str | None) -> str:
    """Return an image's name in a tar file: its own, with the extension of what it has become.

    One that has no extension of an image, as a row of a table, or leads out of the folder is called by its number.
    """
    name = source.name(index)
    stem, own = os.path.splitext(name)
    if not _keeps_name(name):
        return f"{_number(index)}{extension or _extension_of(content)}"
    same = extension is None or own.lower() in (extension, {".jpg": ".jpeg"}.get(extension))
    return name if same else f"{stem}{extension}"


def _keeps_name(name: str) -> bool:
    known = os.path.splitext(name)[1].lower() in EXTENSIONS
    return known and not is_hidden(name) and "://" not in name and is_safe_name(name)


def _number(index: int) -> str:
    return f"{index:09d}"


def _extension_of(content: bytes) -> str:
    from PIL import Image

    from ..config import DEFAULT_FILES
    from ..decoding.pillow import open_with_pillow

    try:
        with open_with_pillow(content, DEFAULT_FILES) as file:
            kind = file.format
    except (OSError, SyntaxError, ValueError, UnreadableImage):
        return ".npy" if content.startswith(b"\x93NUMPY") else ".jpg"
    usual = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
    others = (ending for ending, name in Image.registered_extensions().items() if name == kind)
    return usual.get(kind or "") or next(others, ".png")


def estimate(source: ImageSource, resize: int | None, quality: int | None) -> float:
    """Return the bytes that an image takes when it is packed: the mean of a few, spread over a source.

    Raises:
        ValueError: if none can be read.
    """
    sizes, errors = [], []
    for index in spread(source, TRIED):
        try:
            content = read_content(source, index)
        except UnreadableImage as error:
            errors.append(f"{printable(source.name(index))}: {error}")
            continue
        if resize is not None or quality is not None:
            content = encode(content, source.name(index), resize, quality).content
        sizes.append(len(content))
    if not sizes:
        raise ValueError(f"none of {len(errors)} images tried can be read; {errors[0]}")
    return sum(sizes) / len(sizes) + HEADER


def plan_at(output: Path, wanted: Plan) -> Plan:
    """Return how an output folder is packed: as it was begun, or as is wanted now, which is recorded.

    Raises:
        ValueError: if it was begun otherwise, or holds other files.
    """
    path = output / RECORD
    if path.exists():
        begun = _recorded(path)
        asked: dict[str, Any] = {**asdict(wanted), "per_shard": begun.get("per_shard")}
        if begun != asked or not isinstance(begun["per_shard"], int) or begun["per_shard"] < 1:
            pairs = [(name, begun.get(name), now) for name, now in asked.items()]
            unlike = [f"{name}: {there} there, {now} now" for name, there, now in pairs if there != now]
            raise ValueError(
                f"--output {output} holds other images, or was packed otherwise ({'; '.join(unlike) or 'damaged'}); "
                "use another folder, or remove it"
            )
        return Plan(**asked)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty; name another folder")
    write_json(path, asdict(wanted))
    return wanted


def _recorded(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another --output") from error
    return found if isinstance(found, dict) else {}


def require_room(output: Path, size: float) -> None:
    """Raise unless a disk has room for what will be written.

    Raises:
        ValueError: with both sizes.
    """
    nearest = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if size * SPARE > free:
        raise ValueError(
            f"--output {output}: about {in_units(size)} will be written, and the disk has {in_units(free)} free; name "
            "a folder on another disk, or use --resize or --quality"
        )


def require_own_names(source: ImageSource) -> None:
    """Raise if two images differ by their extensions alone, which another encoding changes.

    Raises:
        ValueError: naming them.
    """
    seen: dict[str, str] = {}
    for index in range(len(source)):
        name = source.name(index)
        other = seen.setdefault(os.path.splitext(name)[0] if _keeps_name(name) else _number(index), name)
        if other != name:
            raise ValueError(
                f"{printable(other)} and {printable(name)} would have the same name when they are encoded anew; rename "
                "one, or leave --resize and --quality out"
            )


def share_keys(source: ImageSource) -> bool:
    """Return whether images have the same key of webdataset, as `a.1.png` and `a.2.png` do."""
    names = (source.name(index) for index in range(len(source)))
    keys = {key_of(name)[0] if _keeps_name(name) else _number(index) for index, name in enumerate(names)}
    return len(keys) < len(source)


def classes_to_record(source: ImageSource) -> Sequence[str] | None:
    """Return the classes of images, if they are known and not the folders of their names."""
    try:
        found = source.class_names()
    except ValueError:  # some have none
        return None
    if found is None or all(name == source.name(index).split("/")[0] for index, name in enumerate(found)):
        return None
    return found


def images_of(source: ImageSource) -> str:
    """Return number and digest of the names of images."""
    return f"{len(source)} ({fingerprint(source)})"


def in_units(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
