"""The library that detection needs beyond the package's own."""

from __future__ import annotations


def require_coco() -> None:
    """Raise unless pycocotools can be imported, which computes COCO's scores and masks.

    Raises:
        ValueError: with the command that installs it.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ValueError(f'detection needs pycocotools ({error}): pip install "sparkmim[dense]"') from error
