"""`sparkmim embed`: an encoder's features of a folder of images, as a table."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ..checkpoints.encoder import load_network
from ..data.config import ViewConfig
from ..data.sources.builtin import builtin_photographs
from ..data.sources.folder import find_images
from ..evaluation.features import pooled_features
from ..training.config import LoopConfig
from ..utils.devices import pick_device
from ..utils.fields import validate_as
from ..utils.io import require_writable, write_atomically
from ..utils.text import printable


def embed(
    encoder: Path,
    output: Path,
    data: Path | None = None,
    model: str | None = None,
    image_size: int | None = None,
    stage: int = -1,
    batch_size: int = 32,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> int:
    """Features of images: the mean over all positions of one of the network's maps.

    Args:
        encoder: an encoder.safetensors, or other weights of a network.
        output: the file to write: .npz (arrays `features` and `names`) or .parquet (needs pyarrow).
        data: folder of images; the built-in photographs if not given.
        model: the network's timm name, if the file of weights does not know it.
        image_size: pixels of the square view; that of the pretraining if not given.
        stage: which map, from 0, the finest, to -1, the deepest.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
    """
    if output.suffix not in WRITERS:
        raise ValueError(f"--output {output} must end in .npz or .parquet")
    if output.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError("writing .parquet needs pyarrow: pip install pyarrow; or use an .npz file")
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ViewConfig, workers=workers)
    require_writable(output)
    network = load_network(encoder, model)
    config = network.data if image_size is None else replace(network.data, image_size=(image_size, image_size))
    source = find_images(data) if data is not None else builtin_photographs()
    where = pick_device(device)
    network.backbone.module.to(where)
    found = pooled_features(
        network.backbone, source, config, stage, batch_size=batch_size, workers=workers, device=where
    )
    for index, error in found.broken:
        print(f"skipped {printable(source.name(index))}: {error}", file=sys.stderr)
    if not found.indices:
        raise ValueError(f"none of the {len(source)} images can be read")
    names, table, broken = [source.name(index) for index in found.indices], found.values.numpy(), len(found.broken)
    write_atomically(output, lambda file: WRITERS[output.suffix](file, names, table))
    print(f"{len(table)} images, {table.shape[1]} features{f', {broken} skipped' if broken else ''}: {output}")
    return 0


def _write_npz(file: BinaryIO, names: list[str], features: np.ndarray) -> None:
    np.savez(file, names=np.array(names), features=features)


def _write_parquet(file: BinaryIO, names: list[str], features: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    pyarrow.parquet.write_table(pyarrow.table({"name": names, "features": columns}), file)


WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}
