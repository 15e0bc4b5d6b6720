"""Models of pretraining runs: built from a configuration, loaded from a run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.run_folder import RunFolder
from ..checkpoints.weights import load_encoder
from ..models.config import ModelConfig
from ..models.factory import load_backbone
from ..models.spark import SparK
from .config import PretrainConfig


def build_model(config: ModelConfig) -> SparK:
    """The model that a configuration describes, its encoder from the weights it names.

    Raises:
        ValueError: for a setting that does not fit the network.
    """
    backbone = load_backbone(
        config.model, config.stages, config.in_chans, drop_path=config.drop_path, pretrained=config.init == "timm"
    )
    if config.init not in ("none", "timm"):
        load_encoder(backbone.module, config.init)
    model = SparK(
        backbone,
        mask_ratio=config.mask_ratio,
        patch_size=config.patch_size,
        decoder_width=config.decoder_width,
        decoder_block=config.decoder_block,
        densify_norm=config.densify_norm,
        in_chans=config.in_chans,
        hierarchy=config.hierarchy,
        execution=config.execution,
        loss_on=config.loss_on,
        shared_mask_token=config.shared_mask_token,
    )
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except ValueError as error:
            raise ValueError(f"--grad-checkpointing on: {error}") from error
    return model


class TrainedRun(NamedTuple):
    """A run's model in evaluation mode, its configuration, and the steps it was trained for."""

    model: SparK
    config: PretrainConfig
    step: int


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
