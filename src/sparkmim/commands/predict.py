"""`sparkmim predict`: the classes of a folder of images, as a table."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..checkpoints.run_folder import RunFolder
from ..data.config import ViewConfig
from ..data.sources.folder import find_images
from ..training.config import LoopConfig
from ..transfer.model_file import load_model
from ..transfer.outputs import compute_outputs
from ..utils.devices import pick_device
from ..utils.fields import validate_as
from ..utils.io import require_writable, write_text
from ..utils.text import printable


def predict(
    run: Path,
    data: Path,
    output: Path,
    top_k: int = 1,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> int:
    """Classify images.

    The table has a row for each image: its name, the likeliest class and its probability, further classes, and, of an
    image that cannot be read, the error.

    Args:
        run: the folder of a fine-tuning, or its model.safetensors.
        data: folder of images, flat or nested.
        output: CSV file to write.
        top_k: how many classes to give, the likeliest first.
        image_size: pixels of the square view; that of the fine-tuning if not given.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
    """
    if output.suffix != ".csv":
        raise ValueError(f"--output {output} is a CSV file; write {output.with_suffix('.csv')}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size {image_size} is not a number of pixels")
    validate_as(LoopConfig, batch_size=batch_size)
    validate_as(ViewConfig, workers=workers)
    require_writable(output)
    saved = load_model(RunFolder(run).classifier if run.is_dir() else run)
    classes = saved.targets["classes"]
    if not 1 <= top_k <= len(classes):
        raise ValueError(f"--top-k {top_k} must be 1 to {len(saved.targets['classes'])}, the number of classes")
    view = saved.view if image_size is None else replace(saved.view, image_size=(image_size, image_size))
    source = find_images(data)
    where = pick_device(device)
    found = compute_outputs(
        saved.module.to(where),
        source,
        view,
        saved.in_chans,
        batch_size=batch_size,
        workers=workers,
        device=where,
    )
    if not found.indices:
        raise ValueError(f"none of the {len(source)} images can be read; {found.broken[0][1]}")
    errors = dict(found.broken)
    likely = found.values.softmax(1).topk(top_k)
    places = {index: row for row, index in enumerate(found.indices)}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("class", "probability")]
    writer.writerow(["image", "class", "probability", *more, "error"])
    for index in range(len(source)):
        cells: list[str] = [""] * (2 * top_k)
        if index in places:
            best = zip(likely.indices[places[index]].tolist(), likely.values[places[index]].tolist(), strict=True)
            cells = [cell for number, share in best for cell in (classes[number], f"{share:.6f}")]
        writer.writerow([source.name(index), *cells, " ".join(errors.get(index, "").split())])
    for index, error in found.broken:
        print(f"skipped {printable(source.name(index))}: {error}", file=sys.stderr)
    write_text(output, table.getvalue())
    print(f"{len(places)} images{f', {len(errors)} skipped' if errors else ''}: {output}")
    return 0
