"""Masks of objects by pycocotools, an extra."""

from __future__ import annotations

from typing import Any

from .annotations import Mask


def require_coco(what: str) -> None:
    """Raise unless pycocotools can be imported, which computes COCO's scores and masks.

    Args:
        what: needs it, with its verb.

    Raises:
        ValueError: with the command that installs it.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ValueError(f'{what} pycocotools ({error}): pip install "sparkmim[dense]"') from error


def run_lengths(mask: Mask, height: int, width: int) -> dict[str, Any]:
    """Return a mask as COCO's compressed run lengths.

    Args:
        mask: polygons or run lengths.
        height: of the image.
        width: of the image.
    """
    from pycocotools import mask as coco

    found: dict[str, Any]
    if isinstance(mask, list):
        found = coco.merge(coco.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        found = coco.frPyObjects(mask, height, width)
    else:
        found = {"size": list(mask["size"]), "counts": mask["counts"].encode()}
    return found
