"""Images of the data sets of Hugging Face's library `datasets`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from ..decoding.encoded import EncodedImage
from ..storage.fetched import FetchedFile
from ..storage.names import Names
from .base import NamedImages, inside_of
from .columns import IMAGE_KIND, LABELS, image_bytes, unique_names

SPLIT = "train"
"""Split that is read where none is named."""


class HuggingFace(NamedImages):
    """The rows of a data set, in their order.

    Args:
        rows: a data set of the library, whose images are not decoded by it.
        column: of the images.
        names: of the images.
        label: column of classes, if there is one.
    """

    schemes = ("hf",)

    def __init__(self, rows: Any, column: str, names: Names, label: str | None) -> None:
        super().__init__(names)
        self.rows, self.column, self.label = rows, column, label
        self._images = rows.select_columns([column])  # of a row, all columns are decoded

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> HuggingFace:
        """Open `DATASET[:SPLIT]`: a name of the hub, a folder of files, or one that `save_to_disk` has written.

        `#COLUMN` at the end names the column of images.
        """
        pattern, column = inside_of(rest)
        found = re.fullmatch(r"(?P<name>.+?)(:(?P<split>[^:/]+))?", pattern)
        if found is None:
            raise ValueError("expected a data set after ://, such as hf://OWNER/NAME:train")
        return open_dataset(found["name"], found["split"], column)

    def open(self, index: int) -> EncodedImage:
        """Return the image, which is read when it is decoded."""
        return FetchedFile(partial(self._read, index), self.name(index))

    def _read(self, index: int) -> bytes:
        return image_bytes(self._images[index][self.column])

    def class_names(self) -> list[str] | None:
        """Return the classes that a column says, by their names where these are known."""
        if self.label is None:
            return None
        names = getattr(self.rows.features[self.label], "names", None)
        values = self.rows.select_columns([self.label]).with_format(None)[self.label][:]
        return [str(value if names is None else names[value]) for value in values]


def open_dataset(name: str, split: str | None, column: str = "") -> HuggingFace:
    """Return the images of a data set.

    Raises:
        ValueError: if the library is not installed, or there is no such data set, split or column.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("hf:// needs the package datasets: pip install 'sparkmim[scale]'") from None
    folder = Path(name).expanduser()
    saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        rows = (
            datasets.load_from_disk(str(folder))
            if saved
            else datasets.load_dataset(str(folder) if folder.exists() else name, split=split or SPLIT)
        )
        if isinstance(rows, dict):
            if (split or SPLIT) not in rows:
                raise ValueError(f"it has the splits {', '.join(rows)}; name one as hf://{name}:SPLIT")
            rows = rows[split or SPLIT]
    except Exception as error:  # of the many kinds that the library raises
        raise ValueError(f"the data set {name} cannot be opened ({type(error).__name__}: {error})") from error
    kinds = {key: type(feature).__name__ for key, feature in rows.features.items()}
    images = [column] if column else [key for key, kind in kinds.items() if kind == IMAGE_KIND]
    if len(images) != 1 or images[0] not in kinds:
        raise ValueError(
            f"expected one column of images, got {', '.join(images) or 'none'} among {', '.join(kinds)}; name it at "
            "the end of the address (#COLUMN)"
        )
    if not len(rows):
        raise ValueError("the data set has no rows")
    if kinds[images[0]] == IMAGE_KIND:
        rows = rows.cast_column(images[0], datasets.Image(decode=False))
    label = next((key for key in LABELS if key in kinds), None)
    return HuggingFace(rows, images[0], _names_of(rows, images[0]), label)


def _names_of(rows: Any, column: str) -> Names:
    """Return the path of each row, without reading the images."""
    import pyarrow

    table = rows.with_format("arrow").select_columns([column])
    paths: list[str] = []
    for start in range(0, len(rows), 10_000):
        values = table[start : start + 10_000].column(0)
        found = values.combine_chunks() if isinstance(values, pyarrow.ChunkedArray) else values
        kind = found.type
        has_path = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
        known = found.field("path").to_pylist() if has_path else [None] * len(found)
        paths += [path or f"row {start + place}" for place, path in enumerate(known)]
    return unique_names(paths)
