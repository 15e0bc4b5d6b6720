"""What a run has left behind, to use it: the model of a run folder, the network of an encoder file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .backbone import Backbone
from .build import build_model, load_backbone
from .data import DataConfig
from .interchange import load_encoder, read_metadata
from .spark import SparK
from .train import PretrainConfig, RunFolder


class TrainedRun(NamedTuple):
    """A run's model in evaluation mode, its configuration, and the steps it was trained for."""

    model: SparK
    config: PretrainConfig
    step: int


class TrainedEncoder(NamedTuple):
    """A network in evaluation mode, and how its input is prepared."""

    backbone: Backbone
    data: DataConfig


def load_run(folder: str | Path) -> TrainedRun:
    """The model of a run's newest checkpoint.

    Raises:
        ValueError: if the folder holds no run, or one without a checkpoint.
    """
    run = RunFolder(folder)
    recorded = run.read_config()
    if recorded is None:
        raise ValueError(f"there is no run in {run.root}; see --run")
    config = PretrainConfig.from_dict(recorded)
    newest = run.newest_checkpoint()
    if newest is None:
        raise ValueError(f"the run in {run.root} has no checkpoint yet")
    state = newest[0]
    model = build_model(replace(config.model, init="none"))
    model.load_state_dict(state["model"])
    return TrainedRun(model.eval(), config, state["step"])


def load_network(encoder: str | Path, model: str | None = None) -> TrainedEncoder:
    """The ordinary network of an encoder file.

    Args:
        encoder: an `encoder.safetensors`, which knows its network; or other weights, see
            :func:`~sparkmim.interchange.load_encoder`.
        model: the network's name, for a file that does not know it.

    Raises:
        ValueError: if the file does not know its network and no name is given, or they do not fit.
    """
    path = Path(encoder)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; see --encoder")
    try:
        known: dict[str, Any] = json.loads(read_metadata(path).get("sparkmim", "{}"))
    except ValueError:  # other kinds of weights know nothing of their network; damaged ones are refused below
        known = {}
    name = model or known.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which network it is of; name it with --model")
    backbone = load_backbone(name, tuple(known.get("stages", ())), known.get("in_chans", 3))
    load_encoder(backbone.module, path)
    backbone.module.eval()
    channels = backbone.in_chans
    data = DataConfig(
        image_size=tuple(known.get("image_size", (224, 224))),
        mean=tuple(known.get("mean", (0.485, 0.456, 0.406) if channels == 3 else (0.449,) * channels)),
        std=tuple(known.get("std", (0.229, 0.224, 0.225) if channels == 3 else (0.226,) * channels)),
    )
    return TrainedEncoder(backbone, data)
