"""`sparkmim predict`."""

from __future__ import annotations

from pathlib import Path

from ..training.config import Device
from .encoder_options import FILES_AS_RECORDED, Files


def command(
    run: Path,
    data: str,
    output: Path,
    top_k: int = 1,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int = 1,
    device: Device = "auto",
    model: str | None = None,
    trust: bool = False,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Predict the classes of images, or what else a fine-tuned model predicts.

    The table has a row for each image: its name, the most likely class and its probability, further classes (or the
    predictions of another task), and the error if the image cannot be read.

    Args:
        run: the folder of a fine-tuning, or its model.safetensors.
        data: folder of images, flat or nested, or an address (SCHEME://...).
        output: CSV file to write.
        top_k: how many classes a classifier gives, the most likely first.
        image_size: side of the square view in pixels; that of the fine-tuning if not given.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        model: the network, if that of the fine-tuning is code of yours: FILE.py:FUNCTION or MODULE:FUNCTION.
        trust: run the code that the model's file names: only for files whose source you trust.
        files: how images are read.
    """
    from ..utils.io import require_suffix, require_writable

    require_suffix(output, ".csv")
    from ..transfer.predictor import predict, write_csv

    require_writable(output)
    predictions = predict(
        run,
        data,
        top_k=top_k,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
        device=device,
        model=model,
        trust=trust,
        **files.settings(),
    )
    write_csv(predictions, output)
    skipped = sum(bool(prediction.error) for prediction in predictions)
    print(f"{len(predictions) - skipped} images{f', {skipped} skipped' if skipped else ''}: {output}")
    return 0
