"""`sparkmim predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..training.config import Device
from ..utils.text import counted
from .encoder_options import FILES_AS_RECORDED, Files


def command(
    run: Path,
    data: str,
    output: Path,
    top_k: int = 1,
    draw: bool = False,
    min_score: float | None = None,
    tiles: bool = False,
    mask_format: Literal["index", "palette"] = "index",
    image_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    device: Device = "auto",
    model: str | None = None,
    trust: bool = False,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Predict the classes of images, their masks or objects, or what else a fine-tuned model predicts.

    The table has a row for each image: its name, the most likely class and its probability, further classes (or the
    predictions of another task), and the error if the image cannot be read. A segmentation writes a mask for each image
    instead: PNG files, or NIfTI files with the affine of each volume. A detection writes a COCO file, with masks if the
    model finds them, and a table of boxes.

    Args:
        run: the folder of a fine-tuning, or its model.safetensors.
        data: folder of images, flat or nested, or an address (SCHEME://...).
        output: CSV file to write; for a segmentation the folder of the masks, for a detection that of its files.
        top_k: how many classes a classifier gives, the most likely first.
        draw: of a segmentation or detection, write pictures with the predicted boundaries, or boxes from a score of 0.5
            on, too.
        min_score: of a detection, the least score of an object; 0.05, all that the detector returns, if not given.
        tiles: of a detection, cut images that are larger than a view into overlapping tiles at their own resolution,
            instead of scaling them down.
        mask_format: of a segmentation's PNG files: index, or palette (the same indices, shown in color).
        image_size: side of the square view (for a segmentation the windows) in pixels; that of the fine-tuning if not
            given.
        batch_size: images (for a segmentation windows) per forward pass; 32 (a segmentation 4, a detection 8) if not
            given.
        workers: processes that read images.
        device: where to compute.
        model: the network, if that of the fine-tuning is code of yours: FILE.py:FUNCTION or MODULE:FUNCTION.
        trust: run the code that the model's file names: only for files whose source you trust.
        files: how images are read.
    """
    from ..transfer.config import DETECTION, INSTANCE, SEGMENTATION
    from ..transfer.predictor import task_of
    from ..utils.io import require_suffix, require_writable

    how: Any = {
        "image_size": image_size,
        "workers": workers,
        "device": device,
        "model": model,
        "trust": trust,
        **files.settings(),
        **({} if batch_size is None else {"batch_size": batch_size}),
    }
    task = task_of(run)
    detects = task in (DETECTION, INSTANCE)
    if top_k != 1 and (detects or task == SEGMENTATION):
        raise ValueError(f"--top-k {top_k} is for classifiers; {run} is a model of another task ({task})")
    if mask_format != "index" and task != SEGMENTATION:
        raise ValueError(f"--mask-format {mask_format} is for segmentations; {run} is a model of another task")
    if min_score is not None and not detects:
        raise ValueError(f"--min-score {min_score:g} is for detections; {run} is a model of another task")
    if tiles and not detects:
        raise ValueError(
            f"--tiles is for detections (segmentations always go by windows); {run} is a model of another task ({task})"
        )
    if detects:
        from ..transfer.detection.predict import detect

        found = detect(run, data, output, draw=draw, tiles=tiles, min_score=min_score or 0.0, **how)
        lost = sum(bool(one.error) for one in found)
        objects = sum(len(one.boxes) for one in found)
        where = counted(len(found) - lost, "image") + (f", {lost} skipped" if lost else "")
        print(f"{counted(objects, 'object')} in {where}: {output}")
        return 0
    if task == SEGMENTATION:
        from ..transfer.segmentation.predict import segment

        written = segment(run, data, output, draw=draw, mask_format=mask_format, **how)
        lost = sum(one.mask is None for one in written)
        print(f"{counted(len(written) - lost, 'mask')}{f', {lost} skipped' if lost else ''}: {output}")
        return 0
    if draw:
        raise ValueError(f"--draw is for segmentations and detections; {run} is a model of another task")
    require_suffix(output, ".csv")
    from ..transfer.predictor import predict, write_csv

    require_writable(output)
    predictions = predict(run, data, top_k=top_k, **how)
    write_csv(predictions, output)
    skipped = sum(bool(prediction.error) for prediction in predictions)
    print(f"{counted(len(predictions) - skipped, 'image')}{f', {skipped} skipped' if skipped else ''}: {output}")
    return 0
