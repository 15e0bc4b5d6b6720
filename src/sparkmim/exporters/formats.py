"""Names of the export formats, importable without torch."""

from __future__ import annotations

from typing import Literal

Format = Literal[
    "timm",
    "torchvision",
    "detectron2",
    "mmpretrain",
    "mmdet",
    "mmseg",
    "smp",
    "detr",
    "rt-detr",
    "ultralytics",
    "nnunet",
    "monai",
]
"""Of an encoder."""

ModelFormat = Literal["onnx", "torch-export", "torchscript", "torchvision", "detectron2", "mmdet"]
"""Of a whole fine-tuned model."""

AnyFormat = Literal[Format, ModelFormat]
"""Of either."""

SUFFIXES: dict[str, str] = {
    "torchvision": ".pth",
    "detectron2": ".pkl",
    "mmpretrain": ".pth",
    "mmdet": ".pth",
    "mmseg": ".pth",
    "smp": ".pth",
    "detr": ".pth",
    "rt-detr": ".pth",
    "ultralytics": ".pt",
    "nnunet": ".pth",
    "monai": ".pth",
}
"""Suffix of each format's file; timm has a folder."""

MODEL_SUFFIXES: dict[str, str] = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "torchscript": ".pt",
    "torchvision": ".pth",
    "detectron2": ".pkl",
    "mmdet": ".pth",
}
"""Suffix of each format's file of a whole model."""

ADAPTED = ("nnunet", "monai")
"""Formats whose first convolution is adapted to the channels of the images that will be trained on."""

ANY_CHANNELS = ("timm", "smp", "ultralytics", "nnunet", "monai")
"""Formats of networks for images of any number of channels; the others take three."""
