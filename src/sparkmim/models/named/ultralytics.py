"""Backbones of Ultralytics' YOLO by name: `ultralytics:yolo11n.yaml`, `ultralytics:FILE.yaml`.

The package is installed by the user. Its license is AGPL-3.0, so nothing of it is part of this project.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...sparse import PatchGrid, SparseExecution, UnsupportedOperation, run
from ...utils.logging import log
from ...utils.modules import eval_mode
from .base import Built, NamedNetwork

KINDS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "classify": "ClassificationModel",
}
"""Classes of `ultralytics.nn.tasks` by what their head is for."""

ENDINGS = (".yaml", ".yml")

PROBED = 64
"""Pixels of a side of the image that tells what the last layer of a backbone is given."""


class Ultralytics(NamedNetwork):
    """The layers of a YOLO's `backbone`, in Ultralytics' own model, so that its state dict has the names of the whole.

    Layers at its end that relate all positions to one another (the attention of YOLO11, YOLOv10 and YOLO26) are left
    out: they cannot be carried out on visible patches.
    """

    library: ClassVar[str] = "ultralytics"
    install: ClassVar[str] = "pip install ultralytics (its license is AGPL-3.0)"

    def build(self, in_chans: int | None) -> Built:
        """Build the backbone, with random weights."""
        channels = in_chans or 3
        model: Any = self.whole(channels)
        layers = len(model.yaml["backbone"])
        model.model = model.model[:layers]
        kept = supported_layers(model, channels)
        if kept < layers:
            left = ", ".join(f"model.{i} ({type(model.model[i]).__name__})" for i in range(kept, layers))
            _say_once(f"{self}: {left} is left out, which visible patches alone cannot carry out; it stays untrained")
        model.model = model.model[:kept]
        return Built(model, channels)

    def whole(self, channels: int) -> nn.Module:
        """Build the whole model, for images of so many channels, with random weights.

        Raises:
            ValueError: for an unknown name, a head of a kind that has no class here, or a file that describes no model.
            NotImplementedError: on the device "meta", since it computes with values while it is built.
        """
        if torch.get_default_device().type == "meta":
            raise NotImplementedError(f"{self} computes with values while it is built")
        config = self.config()
        tasks = self.import_module("ultralytics.nn.tasks")
        try:
            described = tasks.yaml_model_load(config)
            task = tasks.guess_model_task(described)
            if task not in KINDS:
                raise ValueError(f"its head is not one of {', '.join(KINDS)}")
            model: nn.Module = getattr(tasks, KINDS[task])(config, ch=channels, verbose=False)
        except Exception as error:  # of any kind, as what a file describes is
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"{self} cannot be built ({reason})") from error
        return model

    def needs_trust(self) -> bool:
        """Return whether it is described by a file of the user's, whose values Ultralytics may run as code."""
        return self._file() is not None

    def config(self) -> str:
        """Return what Ultralytics builds the network from: a name of its own, or a file.

        Raises:
            ValueError: for an unknown name.
        """
        file = self._file()
        if file is not None:
            return str(file)
        own = {path.name for path in (self._folder() / "cfg" / "models").rglob("*.yaml")}
        if self.name in own or without_scale(self.name) in own:
            return self.name
        if not self.name.endswith(ENDINGS):
            raise ValueError(
                f"expected ultralytics:NAME.yaml, which describes a network, got {self}; for YOLO11 nano write "
                "ultralytics:yolo11n.yaml"
            )
        raise self.unknown(sorted(own), "; a letter gives the scale (yolo11n.yaml), and a path a file of your own")

    def _file(self) -> Path | None:
        """Return the file that is named, which Ultralytics takes before one of its own; None if there is none."""
        if not self.name.endswith(ENDINGS) or "://" in self.name:
            return None
        paths = (Path(name).expanduser() for name in (self.name, without_scale(self.name)))
        return Path(self.name).expanduser() if any(path.is_file() for path in paths) else None

    def _folder(self) -> Path:
        return Path(str(self.import_module().__file__)).parent


@cache
def _say_once(text: str) -> None:
    """Log what is the same whenever a network is built."""
    log.info(text)


def without_scale(name: str) -> str:
    """Return the name of the file that describes all scales of a network: yolo11.yaml of yolo11n.yaml."""
    return re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", name)


def supported_layers(model: Any, channels: int) -> int:
    """Return how many of a YOLO's layers are left without those at the end that visible patches cannot carry out.

    Args:
        model: Ultralytics' model, whose `model` is a sequence of layers.
        channels: of the images.
    """
    given: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, number=number: given.update({number: args[0]}))
        for number, layer in enumerate(model.model)
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, channels, PROBED, PROBED))
    finally:
        for handle in handles:
            handle.remove()
    kept = len(model.model)
    while kept > 1 and not _is_supported(model.model[kept - 1], given[kept - 1]):
        kept -= 1
    return kept


def _is_supported(layer: nn.Module, given: Tensor | list[Tensor]) -> bool:
    """Return whether a layer of one input can be carried out on visible patches."""
    if not isinstance(given, Tensor):
        return True  # what joins several maps is not at a backbone's end
    image = torch.zeros(1, given.shape[1], 4, 4)
    visible = torch.tensor([[[True, False], [False, True]]])
    try:
        with eval_mode(layer), torch.no_grad():
            run(SparseExecution(PatchGrid(visible, 2)), layer, image)
    except UnsupportedOperation:
        return False
    return True
