"""Modules of version 0.1 that have moved: their documented imports work until 0.3, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, dict[str, str]] = {
    "sparkmim.backbone": {"Backbone": "models.backbone"},
    "sparkmim.decoder": {"UNetDecoder": "models.decoder"},
    "sparkmim.evaluate": {},
    "sparkmim.evaluate.finetune": {
        "FinetuneConfig": "transfer.config",
        "Situation": "transfer.recipes",
        "finetune": "transfer.run",
    },
    "sparkmim.evaluate.finetune.recipes": dict.fromkeys(
        ("RECIPES", "Situation", "paper", "small_data"), "transfer.recipes"
    ),
    "sparkmim.interchange": {
        "load_encoder": "checkpoints.weights:load_weights",
        "load_pretraining": "checkpoints.weights",
        "save_encoder": "checkpoints.encoder",
    },
    "sparkmim.masking": {"random_visible": "models.masking"},
    "sparkmim.spark": {"SparK": "models.spark", "SparKOutput": "models.spark"},
    "sparkmim.train": {
        "Outcome": "training.loop",
        "PretrainConfig": "pretraining.config",
        "RunFolder": "checkpoints.run_folder",
        "RunStopped": "training.errors",
    },
    "sparkmim.trained": {"load_run": "pretraining.model"},
}
"""For each old module its names, and the module that defines each now (`:NAME` where the name has changed too)."""


class _Alias(ModuleType):
    """An old module, whose names are looked up where they are defined now."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        home, _, renamed = MOVED[self.__name__].get(name, "").partition(":")
        if not home:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        renamed = renamed or name
        message = f"{self.__name__}.{name} has moved: from sparkmim.{home} import {renamed}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(f"sparkmim.{home}"), renamed)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Make the old modules importable."""
    sys.meta_path.append(_Finder())
