"""sparkmim: masked-image pretraining of convolutional networks, with sparsity that is real and exact.

Public names are imported when they are first used, so that `import sparkmim` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .utils import moved

if TYPE_CHECKING:
    from . import recipes, sparse
    from .checkpoints.encoder import load_encoder
    from .data.sources.base import ImageSource
    from .diagnostics.check import check
    from .evaluation.features import embed
    from .evaluation.frozen_evaluation import evaluate_frozen
    from .evaluation.knn import knn
    from .evaluation.probe import linear_probe
    from .exporters.export import export
    from .exporters.model import export_model
    from .models.backbone import Backbone
    from .models.masking import random_visible
    from .models.spark import SparK, SparKOutput
    from .objectives.base import Objective
    from .pretraining.reconstruct import reconstruct
    from .pretraining.run import pretrain
    from .refinement.run import refine
    from .sparse import UnsupportedOperation
    from .transfer.detection.predict import detect
    from .transfer.predictor import predict
    from .transfer.run import finetune
    from .transfer.segmentation.predict import segment
    from .transfer.tasks.base import TransferTask

    __version__: str

__all__ = [
    "Backbone",
    "ImageSource",
    "Objective",
    "SparK",
    "SparKOutput",
    "TransferTask",
    "UnsupportedOperation",
    "__version__",
    "check",
    "detect",
    "embed",
    "evaluate_frozen",
    "export",
    "export_model",
    "finetune",
    "knn",
    "linear_probe",
    "load_encoder",
    "predict",
    "pretrain",
    "random_visible",
    "recipes",
    "reconstruct",
    "refine",
    "segment",
    "sparse",
]

_HOMES = {
    "Backbone": "models.backbone",
    "ImageSource": "data.sources.base",
    "Objective": "objectives.base",
    "SparK": "models.spark",
    "SparKOutput": "models.spark",
    "TransferTask": "transfer.tasks.base",
    "UnsupportedOperation": "sparse",
    "check": "diagnostics.check",
    "detect": "transfer.detection.predict",
    "embed": "evaluation.features",
    "evaluate_frozen": "evaluation.frozen_evaluation",
    "export": "exporters.export",
    "export_model": "exporters.model",
    "finetune": "transfer.run",
    "knn": "evaluation.knn",
    "linear_probe": "evaluation.probe",
    "load_encoder": "checkpoints.encoder",
    "predict": "transfer.predictor",
    "pretrain": "pretraining.run",
    "random_visible": "models.masking",
    "reconstruct": "pretraining.reconstruct",
    "refine": "refinement.run",
    "segment": "transfer.segmentation.predict",
}
"""Module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = version("sparkmim")
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in ("recipes", "sparse"):
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


moved.install()
