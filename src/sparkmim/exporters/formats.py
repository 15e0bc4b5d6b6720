"""Names of the export formats, importable without torch."""

from __future__ import annotations

from typing import Literal

Format = Literal["timm", "torchvision", "detectron2", "mmpretrain", "mmdet"]

SUFFIXES: dict[str, str] = {"torchvision": ".pth", "detectron2": ".pkl", "mmpretrain": ".pth", "mmdet": ".pth"}
"""Suffix of each format's file; timm has a folder."""
