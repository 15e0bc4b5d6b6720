"""Export for nnU-Net: a file for `nnUNetv2_train -pretrained_weights`, and nnssl's adaptation plan.

nnU-Net's loader (`nnunetv2/run/load_pretrained_weights.py`) takes `network_weights` of a checkpoint and requires every
key of the planned network but those of `seg_layers`, which it does not load. nnssl's fine-tuning (the branch
`nnssl_finetuning_inclusion` of TaWald/nnUNet) takes encoder and stem of the same file by `nnssl_adaptation_plan`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.encoder import TrainedEncoder
from ..checkpoints.weights import adapt_channels
from ..models.backbone import Backbone
from ..models.named.base import find_named
from ..models.named.nnunet import ORIENTATION, NnUNet, Plan, stages_of
from ..utils.io import read_json
from ..utils.logging import log
from ..utils.orientation import axes_named, axes_of
from ..utils.specs import PLANS_FILE
from ..utils.text import verb
from .equivalence import Mismatch, compare_maps

HEADS = "seg_layers"
"""Part of the names of a U-Net's output layers, one for each scale; nnU-Net starts them anew."""

CLASSES = 2
"""Outputs of these layers where no data set says how many."""


class NnUNetWeights(NamedTuple):
    """A planned network's weights under nnU-Net's names.

    Attributes:
        content: of the file.
        adaptation: nnssl's adaptation plan; None for a network that does not say where its encoder is.
        started_anew: number of parameters that were not in the encoder's file.
        configuration: of the plans, as `nnUNetv2_train` takes it.
        plans: name of the plans, likewise; None for a preset.
    """

    content: dict[str, Any]
    adaptation: dict[str, Any] | None
    started_anew: int
    configuration: str
    plans: str | None


def to_nnunet(encoder: TrainedEncoder, plans: str | None = None, in_chans: int | None = None) -> NnUNetWeights:
    """Return the weights of a planned network, its encoder's taken from a pretraining.

    A decoder of the same names and shapes in the encoder's file is taken too. The rest is as nnU-Net initializes it.

    Args:
        encoder: the pretrained network.
        plans: `PLANS.json#CONFIGURATION`, or a preset; by default those of the encoder's name.
        in_chans: channels of the images that will be trained on; by default those of the plans, or the encoder's.

    Raises:
        Mismatch: if the planned network has another encoder, or computes something else.
        ValueError: for plans that are not nnU-Net's or of other channels, or an encoder without plans.
    """
    named = _named(encoder.name, plans)
    plan = named.plan()
    own = _encoder_state(encoder.backbone.module, named)
    came, channels = encoder.backbone.in_chans, plan.channels or in_chans or encoder.backbone.in_chans
    if in_chans not in (None, channels):
        raise ValueError(f"--in-chans {in_chans}, but {named} plans images of {channels} channels; leave it out")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = named.network(plan, came, _classes(named), deep_supervision=True)
        taken = _load(network, own, named, encoder)
        _compare(encoder, network)
        _warn_of_other_axes(encoder, plan, named)
        if channels != came:
            network = _adapted(named, plan, network, channels)
    state = {name: tensor.detach() for name, tensor in network.cpu().state_dict().items()}  # ties are kept
    anew = sum(p.numel() for name, p in network.named_parameters() if name not in taken)
    adaptation = adaptation_plan(network, plan, channels, encoder)
    content: dict[str, Any] = {"network_weights": state, "trainer_name": "sparkmim"}
    if adaptation is not None:
        content["nnssl_adaptation_plan"] = adaptation
    file = re.fullmatch(PLANS_FILE, named.name)
    configuration = "3d_fullres" if file is None else file["name"]
    return NnUNetWeights(content, adaptation, anew, configuration, None if file is None else Path(file["path"]).stem)


def _named(model: str, plans: str | None) -> NnUNet:
    named = find_named(model if plans is None else f"nnunet:{plans}")
    if isinstance(named, NnUNet):
        return named
    raise ValueError(
        f"nnU-Net builds its network from plans, and {model} does not name any; add --plans PLANS.json#3d_fullres, the "
        "plans that nnUNetv2_plan_and_preprocess has written to nnUNet_preprocessed/DATASET"
    )


def _classes(named: NnUNet) -> int:
    """Return the number of outputs: that of the labels in the data set's `dataset.json` beside the plans."""
    file = re.fullmatch(PLANS_FILE, named.name)
    try:
        labels = read_json(Path(file["path"]).parent / "dataset.json")["labels"] if file is not None else {}
        return len([label for label in labels if label != "ignore"]) or CLASSES
    except (OSError, ValueError, KeyError, TypeError):
        return CLASSES


def _encoder_state(module: nn.Module, named: NnUNet) -> Mapping[str, Tensor]:
    """Return the state dict of a network under the names of a whole U-Net."""
    state = module.state_dict()
    if any(name.startswith("encoder.") for name in state):
        return state
    return {f"encoder.{name}": tensor for name, tensor in state.items()}  # an encoder alone


def _load(network: nn.Module, own: Mapping[str, Tensor], named: NnUNet, encoder: TrainedEncoder) -> set[str]:
    """Load what a network has in common with a state dict; return the names of what is loaded.

    Raises:
        Mismatch: if a part of the encoder is missing, or of another shape.
    """
    wanted = network.state_dict()
    fitting = {n for n, tensor in wanted.items() if n in own and own[n].shape == tensor.shape and HEADS not in n}
    required = [name for name in wanted if name.startswith("encoder.")]
    lacking = [name for name in required if name not in fitting]
    surplus = [name for name in own if name.startswith("encoder.") and name not in wanted]
    if lacking or surplus or not required:
        name = (lacking or surplus or [next(iter(own))])[0]
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (own, wanted)]
        raise Mismatch(
            f"the encoder ({encoder.name}) is not that of {named}: {name} is {shapes[0]} in the encoder and "
            f"{shapes[1]} in the plans ({len(lacking)} of {len(required)} tensors "
            f"{verb(len(lacking), 'differ')}, {len(surplus)} {verb(len(surplus), 'are')} more); "
            f"pretrain the planned network, --model {named}"
        )
    network.load_state_dict({name: own[name] for name in fitting}, strict=False)
    return fitting


def _compare(encoder: TrainedEncoder, network: nn.Module) -> None:
    """Verify that a network computes the encoder's maps, in double precision.

    Raises:
        Mismatch: if not.
    """
    own = encoder.backbone
    stages = stages_of(network)
    other = Backbone(network, stages or None, in_chans=own.in_chans, levels=len(stages) or "all", dims=own.dims)
    if own.strides[-1] != other.strides[-1]:
        raise Mismatch(f"its total stride is {other.strides[-1]} and not {own.strides[-1]}")
    compare_backbones(own, other)


def _warn_of_other_axes(encoder: TrainedEncoder, plan: Plan, named: NnUNet) -> None:
    """Warn if an encoder has learned from volumes whose axes are in another order than nnU-Net's will be."""
    learned = None if encoder.volumes is None else encoder.volumes.orientation
    if learned not in (None, plan.orientation):
        log.warning(
            f"the encoder has learned from volumes of the axes {axes_named(str(learned))}, and nnU-Net gives "
            f"{named} the axes {axes_named(plan.orientation)}: it will see them turned; pretrain with --orientation "
            f"{plan.orientation}"
        )


def compare_backbones(own: Backbone, other: Backbone) -> None:
    """Verify that two backbones have the same maps, at the strides that the first one has; in double precision.

    Raises:
        Mismatch: if not, with the place.
    """
    size = [2 * own.strides[-1][0], *own.strides[-1][1:]]  # norms of single positions are refused
    dtype = next(own.module.parameters()).dtype
    images = torch.randn(1, own.in_chans, *size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    training = [backbone.module.training for backbone in (own, other)]
    try:
        with torch.no_grad():
            mine = own.maps(own.module.eval().double(), images)
            found = dict(zip(other.strides, other.maps(other.module.eval().double(), images), strict=True))
        for stride, feature in zip(own.strides, mine, strict=True):
            if stride not in found:
                raise Mismatch(f"it has no map of stride {stride}")
            compare_maps(feature, found[stride], f"the end of its map of stride {' x '.join(map(str, stride))}")
    finally:
        for backbone, mode in zip((own, other), training, strict=True):
            backbone.module.to(dtype).train(mode)


def _adapted(named: NnUNet, plan: Plan, network: nn.Module, channels: int) -> nn.Module:
    """Return a network for images of another number of channels, with the weights of one."""
    other = named.network(plan, channels, _classes(named), deep_supervision=True)
    wanted = other.state_dict()
    state = {
        name: adapt_channels(tensor, channels) if tensor.shape != wanted[name].shape else tensor
        for name, tensor in network.state_dict().items()
    }
    other.load_state_dict(state)
    return other


def adaptation_plan(network: nn.Module, plan: Plan, channels: int, encoder: TrainedEncoder) -> dict[str, Any] | None:
    """Return nnssl's adaptation plan as it serializes one (`nnssl/adaptation_planning/adaptation_plan.py`).

    None for a network that does not say where its encoder and its stem are (dynamic-network-architectures before 0.4).
    """
    keys = [getattr(network, name, None) for name in ("key_to_encoder", "key_to_stem", "keys_to_in_proj")]
    if any(key is None for key in keys):
        return None
    prepared = encoder.volumes
    orientation = plan.orientation if prepared is None else prepared.orientation
    planned = axes_of(orientation, plan.orientation)  # the axes that the encoder has learned from, among the plans'

    def of_plans(name: str) -> list[Any] | None:
        values = plan.settings.get(name)
        return [values[axis] for axis in planned] if isinstance(values, list) and len(values) == 3 else values

    # Crops of both trainings: the fork's loader ends in an error for convnets where they differ.
    size = [int(side) for side in of_plans("patch_size") or encoder.data.image_size]
    learned = None if prepared is None else prepared.spacing_along()
    spacing = [float(side) for side in learned or of_plans("spacing") or [1.0] * len(size)]
    forward = list(axes_of(orientation, ORIENTATION))  # which older versions left in the order of files
    backward = [forward.index(axis) for axis in range(len(forward))]
    kinds = ("mr",) * channels if prepared is None or len(prepared.kinds) != channels else prepared.kinds
    isotropic = all(value == 1 for value in spacing)
    style = "onemmiso" if isotropic else "median"
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"sparkmim_{style}",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": style,
        "normalization_schemes": ["NoNormalization" if kind == "none" else "ZScoreNormalization" for kind in kinds],
        "use_mask_for_norm": [prepared is not None and prepared.masked] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {**resample, "order": 1},
        "spacing": spacing,
        "patch_size": size,
    }
    return {
        "architecture_plans": {
            "arch_class_name": plan.class_name.rpartition(".")[2],
            "arch_kwargs": dict(plan.arguments),
            "arch_kwargs_requiring_import": [n for n in plan.classes if plan.arguments.get(n) is not None],
        },
        "pretrain_plan": {
            "dataset_name": "sparkmim",
            "plans_name": "sparkmim",
            "original_median_spacing_after_transp": spacing,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": forward,
            "transpose_backward": backward,
            "configurations": {style: configuration},
            "experiment_planner_used": "ExperimentPlanner",
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": size,
        "key_to_encoder": keys[0],
        "key_to_stem": keys[1],
        "keys_to_in_proj": list(keys[2] or ()),
        "key_to_lpe": None,
    }
