"""Names of the export formats, importable without torch."""

from __future__ import annotations

from typing import Literal

Format = Literal["timm", "torchvision", "detectron2", "mmpretrain", "mmdet", "nnunet", "monai"]

SUFFIXES: dict[str, str] = {
    "torchvision": ".pth",
    "detectron2": ".pkl",
    "mmpretrain": ".pth",
    "mmdet": ".pth",
    "nnunet": ".pth",
    "monai": ".pth",
}
"""Suffix of each format's file; timm has a folder."""

ADAPTED = ("nnunet", "monai")
"""Formats whose first convolution is adapted to the channels of the images that will be trained on."""

ANY_CHANNELS = ("timm", "nnunet", "monai")
"""Formats of networks for images of any number of channels; the others take three."""
