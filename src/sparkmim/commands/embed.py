"""`sparkmim embed`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..training.config import Device
from ..utils.text import counted
from .encoder_options import AS_RECORDED, FILES_AS_RECORDED, Encoder, Files


def command(
    encoder: Path,
    output: Path,
    data: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    stage: tuple[int, ...] = (-1,),
    batch_size: int = 32,
    workers: int = 1,
    device: Device = "auto",
    index: Path | None = None,
    options: Encoder = AS_RECORDED,
    files: Files = FILES_AS_RECORDED,
) -> int:
    """Compute features of images: one of the network's feature maps, averaged over all positions.

    Args:
        encoder: an encoder.safetensors or the run folder that holds one; other weights of a network.
        output: the file to write: .npz (arrays `features` and `names`) or .parquet (needs pyarrow).
        data: folder of images or volumes, or an address (SCHEME://...); the built-in photographs if not given.
        model: the network's timm name, FILE.py:FUNCTION or MODULE:FUNCTION, if the weights do not record it.
        image_size: pixels of each side of the view, voxels of volumes; that of the pretraining if not given.
        stage: which feature map, from 0, the highest resolution, to -1, the lowest; several are concatenated.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: where to compute.
        index: an HTML file to write as well: some of the images with their nearest neighbors, as pictures.
        options: of the encoder.
        files: how images are read.
    """
    from ..utils.io import require_suffix, require_writable

    require_suffix(output, ".npz", ".parquet")
    if output.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError("writing .parquet needs pyarrow: pip install pyarrow; or use an .npz file")
    from ..evaluation.features import embed

    require_writable(output)
    if index is not None:
        require_suffix(index, ".html")
        require_writable(index)
    found = embed(
        encoder,
        data,
        model=model,
        **options.settings(),
        **files.settings(),
        image_size=image_size,
        stage=stage,
        batch_size=batch_size,
        workers=workers,
        device=device,
        index=index,
    )
    found.write(output)
    images, features = found.features.shape
    skipped = f", {len(found.skipped)} skipped" if found.skipped else ""
    print(f"{counted(images, 'image')}, {features} features{skipped}: {output}")
    if index is not None:
        print(f"neighbors: {index}")
    return 0
