"""`sparkmim reconstruct`."""

from __future__ import annotations

from pathlib import Path

from ..data.config import Pages


def command(
    run: Path,
    output: Path,
    data: str | None = None,
    count: int = 8,
    seed: int = 0,
    mask_ratio: float | None = None,
    pages: Pages | None = None,
    nodata: float | None = None,
    max_pixels: int | None = None,
) -> int:
    """Draw images, what the network sees of them, and its reconstructions.

    Args:
        run: folder of a run.
        output: the PNG file to write.
        data: folder of images, or an address (SCHEME://...); the built-in photographs if not given.
        count: number of images, spread evenly over the folder, at most 8.
        seed: of the masks.
        mask_ratio: share of patches to hide; that of the run if not given.
        pages: what the pages of a TIFF file are: channels, or separate images of which the first is taken; as recorded
            with the weights if not given.
        nodata: value of pixels without data, beside NaN; likewise.
        max_pixels: most pixels of an image; likewise.
    """
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output} is not a .png file")
    from ..pretraining.reconstruct import reconstruct
    from ..reporting.reconstructions import save_png
    from ..utils.io import require_writable

    require_writable(output)
    found = reconstruct(
        run,
        data,
        count=count,
        seed=seed,
        mask_ratio=mask_ratio,
        pages=pages,
        nodata=nodata,
        max_pixels=max_pixels,
    )
    save_png(found.picture, output)
    print(f"{len(found.images)} reconstructions after step {found.step}: {output}")
    return 0
