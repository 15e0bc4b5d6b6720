"""The public function :func:`segment`: masks of images and volumes, as files."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ...data.config import Pages, ViewConfig, chosen_files
from ...data.decoding.encoded import UnreadableImage
from ...data.segmentation.classes import ClassTable
from ...data.segmentation.volumes import holds_volumes
from ...data.sources.address import open_source
from ...data.sources.base import ImageSource
from ...data.tables import named
from ...data.volumes.extensions import stem_of
from ...data.volumes.geometry import from_ras, to_ras
from ...data.volumes.opening import open_prepared
from ...data.volumes.reading import read_grid
from ...data.volumes.unprepared import UnpreparedVolumes
from ...data.volumes.writing import labels_to_nifti
from ...reporting.reconstructions import save_png
from ...reporting.segmentation import overlay, side_by_side
from ...training.config import Device
from ...utils.devices import pick_device
from ...utils.io import write_atomically, write_text
from ...utils.logging import log
from ...utils.orientation import RAS
from ...utils.text import printable
from ..model_file import SavedModel, load_for_prediction, recorded_volumes
from ..tasks.segmentation import Segmentation, classify
from .pictures import picture_of, plane_of, planes, scaled, to_be_drawn
from .whole import Predictor, Whole

MaskFormat = Literal["index", "palette"]

CLASSES_FILE = "classes.csv"
"""Beside the masks: name, index and color of each class."""

OVERLAYS = "overlays"
"""Folder beside the masks."""


class SegmentedFile(NamedTuple):
    """What was written for an image.

    Attributes:
        image: its path, relative to the folder.
        mask: path of its mask; None if the image cannot be read.
        error: why it cannot be read, else empty.
    """

    image: str
    mask: Path | None
    error: str = ""


def segment(
    run: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    draw: bool = False,
    mask_format: MaskFormat = "index",
    image_size: int | None = None,
    batch_size: int = 4,
    workers: int = 1,
    device: Device = "auto",
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
    model: str | None = None,
    trust: bool = False,
) -> list[SegmentedFile]:
    """Write the mask of each image of a folder: PNG files, or NIfTI files with the affine of each volume.

    Masks hold the values that those of training held; `classes.csv` beside them tells what they mean.

    Args:
        run: folder of a fine-tuning for segmentation, or its `model.safetensors`.
        data: folder of images or volumes, flat or nested, or an address.
        output: folder to write to.
        draw: write pictures of the images with the predicted boundaries too, into `overlays`.
        mask_format: of PNG files: index, or palette (the same indices, shown in the classes' colors).
        image_size: side of the windows in pixels or voxels; that of the training's crops by default.
        batch_size: windows per forward pass.
        workers: processes that read images.
        device: where to compute.
        pages: what the pages of a TIFF file are; as recorded by default.
        nodata: value of pixels without data; as recorded by default.
        max_pixels: most pixels of an image; as recorded by default.
        model: the network, where the file names code: `FILE.py:FUNCTION` or `MODULE:FUNCTION`.
        trust: run the code of a network that the file names, where `model` does not.

    Returns:
        What was written, in the order of the images' names.

    Raises:
        ValueError: for an invalid setting, a model of another task, images that the network does not take, two images
            whose masks would have the same name, files that masks would replace, or if no image can be read.
    """
    folder = Path(output).expanduser()
    saved, path = load_for_prediction(
        run,
        model,
        trust=trust,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        files=chosen_files(pages, nodata, max_pixels),
    )
    if not isinstance(saved.task, Segmentation):
        raise ValueError(f"{path} is a model of {type(saved.task).__name__}, not of a segmentation; use predict")
    table = ClassTable.from_json(saved.targets)
    source = _open(data, saved, path)
    require_folder(folder, data)
    ending = ".nii.gz" if isinstance(source, UnpreparedVolumes) else ".png"
    names = _names(source, ending)
    require_format(mask_format, table, ending)
    require_unwritten(folder, names, ending, draw=draw)
    where = pick_device(device)
    overlap = saved.task.settings.overlap
    predictor = Predictor(saved.module.to(where), saved.view, saved.in_chans, overlap, batch_size, where)
    found: list[SegmentedFile] = []
    folder.mkdir(parents=True, exist_ok=True)
    for whole, logits in predictor.each(source, workers):
        name, error = source.name(whole.number), whole.error
        if logits is not None:
            try:
                numbers = _write(source, whole, logits, folder / names[whole.number], saved, table, mask_format)
            except UnreadableImage as unreadable:
                error = str(unreadable)
        if error or logits is None:
            log.warning(f"skipped {printable(name)}: {error}")
            found.append(SegmentedFile(name, None, error))
            continue
        if draw:
            picture = folder / _overlay_of(names[whole.number], ending)
            picture.parent.mkdir(parents=True, exist_ok=True)
            orientation = source.preparation.orientation if isinstance(source, UnpreparedVolumes) else RAS
            _draw(whole, numbers, table, saved.view, picture, orientation)
        found.append(SegmentedFile(name, folder / names[whole.number]))
    if all(one.mask is None for one in found):
        raise ValueError(f"none of the {len(source)} images can be read; {found[0].error}")
    write_text(folder / CLASSES_FILE, _table_text(table))
    return found


def require_folder(folder: Path, data: str | Path) -> None:
    """Raise unless masks may be written to a folder: not a file, nor within the images.

    Raises:
        ValueError: naming it.
    """
    if folder.is_file() or folder.suffix.lower() == ".csv":
        raise ValueError(f"--output {folder}: a segmentation writes a mask for each image; name a folder")
    require_outside(folder, data)


def require_outside(folder: Path, data: str | Path) -> None:
    """Raise for a folder to write to that lies within the images, where its files would be taken for images later.

    Raises:
        ValueError: naming both.
    """
    images = Path(data).expanduser()
    if images.is_dir() and folder.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"--output {folder} is in the folder of the images {images}; use one elsewhere")


def require_format(mask_format: MaskFormat, table: ClassTable, ending: str) -> None:
    """Raise unless masks can be written in a format.

    Raises:
        ValueError: for a palette of NIfTI files, or of values above 255, with the remedy.
    """
    if mask_format != "palette":
        return
    if ending != ".png":
        raise ValueError("--mask-format palette is for PNG files, and masks of volumes are NIfTI files; use index")
    if max(table.values) > 255:
        raise ValueError(
            f"--mask-format palette holds values to 255, and the masks of training hold {max(table.values)}; use index"
        )


def require_unwritten(folder: Path, names: Sequence[str], ending: str, *, draw: bool) -> None:
    """Raise if a file that is to be written exists: it may be a mask that was drawn by hand, of the same name.

    Raises:
        ValueError: naming it and the remedy.
    """
    files = [*names, *(_overlay_of(name, ending) for name in names if draw), CLASSES_FILE]
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise ValueError(
            f"--output {folder} holds {named(there)} already, and nothing that is there is replaced: it may have been "
            "drawn by hand. Name another folder, or delete these files if they are not needed"
        )


def _overlay_of(name: str, ending: str) -> str:
    return f"{OVERLAYS}/{name[: -len(ending)]}.png"


def _open(data: str | Path, saved: SavedModel, path: Path) -> ImageSource:
    """Return the images at an address; volumes are prepared as those of the training."""
    volumes = holds_volumes(data) if "://" not in str(data) else str(data).startswith("volumes://")
    if volumes != (saved.targets.get("volumes") is not None):
        kinds = ("volumes", "images") if volumes else ("images", "volumes")
        raise ValueError(f"{data} holds {kinds[0]}, and {path} is a model of {kinds[1]}")
    preparation = recorded_volumes(saved, path)
    return open_source(data) if preparation is None else open_prepared(data, preparation)


def _names(source: ImageSource, ending: str) -> list[str]:
    """Return the names of the masks.

    Raises:
        ValueError: for two images that differ by their extensions alone.
    """
    stems = [inside(stem_of(source.name(index))) for index in range(len(source))]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(
            f"several images are named {printable(twice[0])} but for their extensions, and would have the same mask; "
            "rename them"
        )
    return [f"{stem}{ending}" for stem in stems]


def inside(name: str) -> str:
    """Return a path that does not lead out of the folder that it is joined to."""
    parts = [part for part in PurePath(name.replace("\\", "/")).parts if part not in ("/", "..")]
    return "/".join(parts) or "image"


def _write(
    source: ImageSource,
    whole: Whole,
    logits: Tensor,
    path: Path,
    saved: SavedModel,
    table: ClassTable,
    mask_format: MaskFormat,
) -> np.ndarray:
    """Write the mask of an image, and return the numbers of its classes: those of a volume as prepared.

    Raises:
        UnreadableImage: if a volume cannot be read any more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(source, UnpreparedVolumes):
        numbers = classify(logits, None, None, (), saved.targets)
        _write_png(table.values_of(numbers), path, table, mask_format)
        return numbers
    grid = read_grid(source.cases[whole.number])
    values, affine = to_ras(*grid)
    numbers = classify(logits, whole.affine, affine, values.shape[1:], saved.targets)
    labels_to_nifti(from_ras(table.values_of(numbers), grid.affine), grid.affine, path)
    return logits.argmax(0).cpu().numpy()


def _write_png(values: np.ndarray, path: Path, table: ClassTable, mask_format: MaskFormat) -> None:
    image = Image.fromarray(values)
    if mask_format == "palette":
        palette = np.zeros((256, 3), np.uint8)
        for value, color in zip(table.values, table.colors, strict=True):
            palette[value] = color
        image = image.copy()
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _draw(whole: Whole, numbers: np.ndarray, table: ClassTable, view: ViewConfig, path: Path, orientation: str) -> None:
    """Save an image with its predicted classes; of a volume the slices with most of them."""
    assert whole.pixels is not None
    pixels, (numbers,) = to_be_drawn(whole.pixels, orientation, numbers)
    bare = [] if table.background is None else [table.background]
    shown = ~np.isin(numbers, bare)
    if pixels.ndim == 3:
        picture = picture_of(pixels, view)
        save_png(Image.fromarray(overlay(picture, numbers, table.colors, bare)), path)
        return
    rows = []
    for axis, place in planes(pixels, shown):
        own = pixels.movedim(axis + 1, 0)[place]  # (C, *two axes)
        own = own.transpose(1, 2).flip(1)
        picture, part = scaled(picture_of(own, view), plane_of(numbers, axis, place))
        rows.append([picture, overlay(picture, part, table.colors, bare)])
    save_png(side_by_side(rows, ("volume", "prediction")), path)


def _table_text(table: ClassTable) -> str:
    rows = ["name,index,color"]
    for name, value, color in zip(table.names, table.values, table.colors, strict=True):
        cell = f'"{name.replace(chr(34), chr(34) * 2)}"' if any(c in name for c in ',"\n') else name
        rows.append(f"{cell},{value},#{color[0]:02x}{color[1]:02x}{color[2]:02x}")
    return "\n".join(rows) + "\n"
