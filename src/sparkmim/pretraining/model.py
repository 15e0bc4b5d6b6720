"""Models of pretraining runs: built from a configuration, loaded from a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.metadata import read_network_metadata
from ..checkpoints.run_folder import RunFolder
from ..checkpoints.weights import is_safetensors, load_weights
from ..data.seeding import Stream, keyed_seed
from ..models.backbone import Backbone, Levels
from ..models.config import ModelConfig
from ..models.factory import axes_of, load_backbone
from ..models.own_decoder import levels_of
from ..models.spark import SparK
from ..objectives.base import find_objective
from ..training.recorded import recorded_value, require_sound_record
from ..training.resume import TASK
from ..utils.logging import log
from ..utils.orientation import RAS
from .config import PretrainConfig

REFINEMENT = "refine"
"""What the folder of a refinement records as its task."""

INIT_OF_FINETUNING = "--init RUN/model.safetensors starts from its weights"
"""What to do with the folder of a fine-tuning."""


class ModelBuilder:
    """Build the networks and models of a run, each once: what is asked for again is returned again.

    Weights depend on the run's seed alone, not on what was built before.
    """

    def __init__(self) -> None:
        self._axes: dict[str, int] = {}
        self._networks: dict[tuple[Any, ...], tuple[Backbone, Tensor]] = {}  # with the generator's state after it
        self._models: list[tuple[tuple[ModelConfig, Any, int], SparK]] = []

    def axes(self, model: str) -> int:
        """Return the number of spatial axes of a network, see :func:`~sparkmim.models.factory.axes_of`."""
        if model not in self._axes:
            self._axes[model] = axes_of(model)
        return self._axes[model]

    def backbone(
        self,
        model: str,
        stages: Sequence[str],
        in_chans: int | None,
        seed: int,
        *,
        levels: Levels = None,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> Backbone:
        """Return a backbone, see :func:`~sparkmim.models.factory.load_backbone`."""
        return self._network(model, stages, levels, in_chans, seed, drop_path, pretrained)[0]

    def _network(
        self,
        model: str,
        stages: Sequence[str],
        levels: Levels,
        in_chans: int | None,
        seed: int,
        drop_path: float,
        pretrained: bool,
    ) -> tuple[Backbone, Tensor]:
        key = (model, tuple(stages), levels, seed, drop_path, pretrained)
        if (*key, in_chans) not in self._networks:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(keyed_seed(seed, Stream.PRETRAIN_WEIGHTS))
                made = load_backbone(model, stages, in_chans, levels=levels, drop_path=drop_path, pretrained=pretrained)
                built = made, torch.get_rng_state()
            self._networks |= {(*key, in_chans): built, (*key, made.in_chans): built}
        return self._networks[*key, in_chans]

    def model(self, config: ModelConfig, objective: Any, seed: int) -> SparK:
        """Return the model that a configuration describes, its encoder from the weights it names.

        Args:
            config: of the model.
            objective: settings of its objective.
            seed: of the run.

        Raises:
            ValueError: for a setting that does not fit the network.
        """
        asked = (config, objective, seed)
        known = next((model for key, model in self._models if key == asked), None)
        if known is not None:
            return known
        network = (
            *(config.model, config.stages, levels_of(config.levels, config.decoder), config.in_chans),
            *(seed, config.drop_path, config.init == "timm"),
        )
        backbone, state = self._network(*network)
        if any(model.backbone is backbone for _, model in self._models):  # which has set up the network for itself
            self._networks.clear()
            self._models.clear()
            backbone, state = self._network(*network)
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(state)
            made = build_model(config, objective, backbone)
        self._models.append((asked, made))
        return made


def build_model(config: ModelConfig, objective: Any = None, backbone: Backbone | None = None) -> SparK:
    """Return the model that a configuration describes, its encoder from the weights it names.

    Args:
        config: of the model.
        objective: settings of its objective; the defaults if None.
        backbone: its network, if it has been built.

    Raises:
        ValueError: for a setting that does not fit the network.
    """
    if backbone is None:
        backbone = load_backbone(
            config.model,
            config.stages,
            config.in_chans,
            levels=levels_of(config.levels, config.decoder),
            drop_path=config.drop_path,
            pretrained=config.init == "timm",
        )
    init = weights_of_init(config.init)
    from_run = Path(init).is_dir()
    if init not in ("none", "timm") and not from_run:
        load_weights(backbone.module, init)
    kind = find_objective(config.objective)
    patch_size = backbone.resolve_patch_size(config.patch_size)
    # Recipes choose a width for the decoder unet, whatever the decoder is.
    unet: dict[str, Any] = {"decoder_width": config.decoder_width, "decoder_block": config.decoder_block}
    model = SparK(
        backbone,
        mask_ratio=config.mask_ratio,
        mask_shape=config.mask_shape,
        masks_per_image=config.masks_per_image,
        patch_size=patch_size,
        decoder=config.decoder,
        **({} if config.decoder == "own" else unet),
        densify_norm=config.densify_norm,
        in_chans=config.in_chans,
        hierarchy=config.hierarchy,
        execution=config.execution,
        objective=kind(
            kind.settings_type() if objective is None else objective,
            in_chans=backbone.in_chans,
            patch_size=patch_size,
            loss_on=config.loss_on,
        ),
        shared_mask_token=config.shared_mask_token,
    )
    if from_run:
        load_run_weights(model, config.init)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except ValueError as error:
            raise ValueError(f"--grad-checkpointing on: {error}") from error
    return model


def weights_of_init(init: str) -> str:
    """Return what `--init` stands for: of the folder of a refinement, which has no decoder, its encoder's file."""
    run = RunFolder(init)
    if not Path(init).is_dir() or not run.config.is_file() or (run.read_config() or {}).get(TASK) != REFINEMENT:
        return init
    if not run.encoder.is_file():
        raise ValueError(f"the run in {run.root} has no encoder yet to start from; use --init none")
    return str(run.encoder)


def load_run_weights(model: SparK, folder: str | Path) -> None:
    """Load the weights of a pretraining's newest checkpoint: all of them, or those that fit.

    Of another objective the encoder is loaded with its decoder; the encoder alone, if the decoder does not fit.

    Raises:
        ValueError: if the folder holds no such run, or one without a checkpoint, or of another network.
    """
    run = RunFolder(folder)
    require_pretraining(run, "--init", INIT_OF_FINETUNING)
    newest = run.newest_checkpoint()
    if newest is None:
        raise ValueError(f"the run in {run.root} has no checkpoint yet to start from; use --init none")
    weights, wanted = newest.state["model"], model.state_dict()
    if _shapes(weights) == _shapes(wanted):
        model.load_state_dict(weights)
        return
    weights, wanted = _without_objective(weights), _without_objective(wanted)
    if _shapes(weights) == _shapes(wanted):
        model.load_state_dict(weights, strict=False)
        model.objective.follow_loaded(model)
        return
    load_weights(model.encoder, newest.path)
    model.objective.follow_loaded(model)
    log.info(f"the decoder of {run.root} does not fit this model; it starts anew, and the encoder from that run")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _without_objective(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("objective.")}


def require_pretraining(run: RunFolder, option: str, remedy: str) -> dict[str, Any]:
    """Return what a pretraining's folder has recorded.

    Args:
        run: the folder.
        option: that names it.
        remedy: what to do with the folder of a fine-tuning.

    Raises:
        ValueError: if it holds no run, or a run of another kind.
    """
    recorded = run.read_config() if run.config.is_file() else None
    if recorded is None:
        raise ValueError(f"there is no run in {run.root}; {option} takes the folder of a pretraining")
    if recorded.get(TASK) == REFINEMENT:
        raise ValueError(
            f"{run.root} holds a run of `sparkmim refine`, an encoder without a decoder; {option} takes the folder of "
            f"a pretraining. Its encoder is {run.encoder}"
        )
    if TASK in recorded:
        raise ValueError(
            f"{run.root} holds a run of `sparkmim {recorded[TASK]}`; {option} takes the folder of a pretraining. "
            f"{remedy}"
        )
    return recorded


def learned_orientation(init: str) -> str | None:
    """Return the order of the axes of the volumes that weights have learned from, None if they do not say.

    Args:
        init: "none", "timm", a file of weights, or the folder of a pretraining.

    Raises:
        ValueError: if what is recorded cannot be read.
    """
    if init in ("none", "timm"):
        return None
    path = Path(init).expanduser()
    known: dict[str, Any] = {}
    if path.is_dir():
        recorded = require_pretraining(RunFolder(path), "--init", INIT_OF_FINETUNING)
        if len(recorded["data"]["image_size"]) == 3 and recorded_value(recorded, "clips", "frames", int) is None:
            known = recorded
    elif is_safetensors(path):
        known = read_network_metadata(path)
    volumes = known.get("volumes")
    return None if volumes is None else str(volumes.get("orientation", RAS))  # older versions do not say


class TrainedRun(NamedTuple):
    """A run's model in evaluation mode, its configuration, and the steps it was trained for."""

    model: SparK
    config: PretrainConfig
    step: int


def load_run(folder: str | Path, *, trust: bool = False, chosen: Mapping[str, Any] | None = None) -> TrainedRun:
    """Return the model of a run's newest checkpoint.

    Args:
        folder: of the run.
        trust: run the code of a network or an objective that its configuration names.
        chosen: what the user names, whose files and modules are trusted.

    Raises:
        ValueError: if the folder holds no run, or one without a checkpoint, or names code without `trust`.
    """
    run = RunFolder(folder)
    recorded = require_pretraining(run, "--run", f"`sparkmim predict --run {run.root}` uses it")
    used = {name: group for name, group in recorded.items() if name != "teacher"}  # which is not run here
    require_sound_record(PretrainConfig, used, run.config, chosen, trust=trust)
    config = PretrainConfig.from_dict(recorded)
    newest = run.newest_checkpoint()
    if newest is None:
        raise ValueError(f"the run in {run.root} has no checkpoint yet")
    state = newest.state
    model = build_model(replace(config.model, init="none"), config.objective)
    model.load_state_dict(state["model"])
    return TrainedRun(model.eval(), config, state["step"])
