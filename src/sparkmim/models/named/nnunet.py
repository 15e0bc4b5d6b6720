"""Networks of nnU-Net, built by dynamic-network-architectures: `nnunet:resenc-l`, `nnunet:PLANS.json#3d_fullres`.

nnU-Net's planners derive a topology from the spacing and the size of a data set's crops. Those of the residual encoder
presets M, L and XL share one rule and differ in the GPU memory that they fill, that is, in crop and batch. With
isotropic voxels and crops of 128 to 256 a side the rule gives one network, which nnssl calls ResEncL: six stages of 32
to 320 channels. Smaller or anisotropic crops have other stages: there, name the plans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ...utils.io import read_json
from ...utils.specs import PLANS_FILE
from .base import Built, NamedNetwork

STAGES = 6
"""Stages for crops of 128 to 256 voxels a side: each halves the map, while at least four voxels are left."""

FEATURES = (32, 64, 128, 256, 320, 320)
"""Channels of each stage: doubled, 320 at most (`UNet_base_num_features`, `UNet_max_features_3d` of the planner)."""

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks of each stage (`UNet_blocks_per_stage_encoder` of `ResEncUNetPlanner`)."""

PLAIN_CONVS = (2,) * STAGES
"""Convolutions of each stage of the plain network (`ExperimentPlanner`), as many as in its decoder."""

PRESETS = ("resenc-m", "resenc-l", "resenc-xl", "plain")

ORIENTATION = "SAR"
"""Order of the axes of nnU-Net's arrays of a volume in RAS orientation: Z, Y, X, as SimpleITK has them.

nnU-Net's default readers (SimpleITKIO, NibabelIO) reverse the axes of the file and do not turn them;
NibabelIOWithReorient turns volumes to RAS first, as here."""

UNET = "dynamic_network_architectures.architectures.unet"

CLASS_OF_KEYWORDS = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments that are classes of torch (`_kw_requires_import`)."""


@dataclass(frozen=True)
class Plan:
    """A configuration of nnU-Net's plans, as far as its network goes.

    Attributes:
        class_name: of the network, in dynamic-network-architectures.
        arguments: of the class, but for input channels and classes.
        classes: names of the arguments that are classes.
        channels: of the images; None if the plans do not say.
        settings: the whole configuration, empty for a preset.
        orientation: order of the axes of volumes.
    """

    class_name: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    channels: int | None
    settings: Mapping[str, Any]
    orientation: str = ORIENTATION


class NnUNet(NamedNetwork):
    """A preset of nnU-Net, or the network of a configuration in its plans: `nnunet:PLANS.json#CONFIGURATION`."""

    library: ClassVar[str] = "dynamic_network_architectures"
    install: ClassVar[str] = "pip install --no-deps dynamic-network-architectures einops"

    def build(self, in_chans: int | None) -> Built:
        """Build the whole U-Net, initialized as nnU-Net does, with an output channel for each of the input's."""
        plan = self.plan()
        channels = in_chans or plan.channels or 1
        module = self.network(plan, channels, classes=channels)
        stages = stages_of(module)
        return Built(module, channels, stages, len(stages) or "all")

    def needs_trust(self) -> bool:
        """Return False: plans are read as data, and only classes of the library and of torch are built."""
        return False

    def orientation(self) -> str:
        """Return the order of the axes of nnU-Net's arrays, after the transposition that the plans name."""
        return self.plan().orientation

    def orientation_of_file(self, stored: str) -> str:
        """Return the order in which nnU-Net sees a file's axes: its default readers reverse them, plans transpose."""
        reversed_axes = stored[::-1]
        return "".join(reversed_axes[ORIENTATION.index(letter)] for letter in self.orientation())

    def plan(self) -> Plan:
        """Return what is planned.

        Raises:
            ValueError: for an unknown name, or a file that is not nnU-Net's plans or has no such configuration.
        """
        if self.name in PRESETS:
            return _preset(self.name)
        file = re.fullmatch(PLANS_FILE, self.name)
        if file is not None:
            return read_plan(Path(file["path"]), file["name"])
        if self.name.endswith(".json"):
            path = Path(self.name)
            known = ", ".join(_configurations(_read(path), path))
            raise ValueError(f"expected nnunet:PLANS.json#CONFIGURATION, got {self}; {path} has {known}")
        raise self.unknown([*PRESETS], ", or nnunet:PLANS.json#CONFIGURATION")

    def network(self, plan: Plan, channels: int, classes: int, *, deep_supervision: bool = False) -> nn.Module:
        """Build a plan's network, initialized as nnU-Net does (`get_network_from_plans`).

        Args:
            plan: what is built.
            channels: of the images.
            classes: channels of its outputs.
            deep_supervision: whether it returns outputs of every scale; their layers are there in any case.

        Raises:
            ValueError: for a class that is none of the library's or of torch, or arguments that it does not take.
        """
        self.import_module()
        kind = self._class(plan.class_name)
        arguments = {
            name: self._class(value) if name in plan.classes and value is not None else value
            for name, value in plan.arguments.items()
        }
        arguments |= {"input_channels": channels, "num_classes": classes, "deep_supervision": deep_supervision}
        try:
            module = kind(**arguments)
            initialize: Any = getattr(module, "initialize", lambda _: None)
            for part in reversed([*module.modules()]):  # `apply` would do so for every name that a part has
                initialize(part)
        except (TypeError, ValueError, AssertionError, AttributeError, IndexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{self} cannot be built: {plan.class_name} does not take its plans ({reason})") from error
        return module

    def _class(self, name: object) -> type[nn.Module]:
        """Return a class of dynamic-network-architectures or `torch.nn` by its full name; nothing else is looked up."""
        text = str(name)
        module, _, last = text.rpartition(".")
        found: Any = None
        if re.fullmatch(r"torch\.nn(\.modules\.[a-z]+)?", module):
            found = getattr(torch.nn, last, None)
        elif re.fullmatch(r"dynamic_network_architectures\.(architectures|building_blocks)\.[a-z_0-9]+", module):
            found = getattr(self.import_module(module), last, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError(
                f"{self} names {text!r}: plans may name modules of dynamic_network_architectures and torch.nn, as "
                f"{UNET}.ResidualEncoderUNet"
            )
        return found


def stages_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the stages of a U-Net's encoder, the last of each resolution; none of another network."""
    encoder: Any = getattr(module, "encoder", None)
    strides = getattr(encoder, "strides", None)
    if strides is None or not hasattr(encoder, "stages"):
        return ()
    last = [k for k in range(len(strides)) if k + 1 == len(strides) or _reduces(strides[k + 1])]
    return tuple(f"encoder.stages.{k}" for k in last)


def read_plan(path: Path, name: str) -> Plan:
    """Read a configuration of nnU-Net's plans.

    Raises:
        ValueError: for a file that is not nnU-Net's plans, has no such configuration, or does not describe its network.
    """
    plans = _read(path)
    settings = _configuration(plans, name, path)
    described = settings.get("architecture")
    if described is None:
        raise ValueError(
            f"{path} does not describe its networks (no 'architecture' in {name!r}): it was written by nnU-Net before "
            "version 2.4; plan again with nnUNetv2_plan_experiment"
        )
    try:
        class_name, arguments = described["network_class_name"], dict(described["arch_kwargs"])
        classes = tuple(described.get("_kw_requires_import", CLASS_OF_KEYWORDS))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe the network of {name!r}: expected 'network_class_name' and 'arch_kwargs' in "
            f"'architecture' ({error!r})"
        ) from error
    schemes = settings.get("normalization_schemes")
    channels = len(schemes) if isinstance(schemes, list) and schemes else None
    return Plan(str(class_name), arguments, classes, channels, settings, _transposed(plans, path))


def _transposed(plans: Mapping[str, Any], path: Path) -> str:
    """Return the order of the axes after `transpose_forward`, by which nnU-Net puts the coarsest axis first.

    Raises:
        ValueError: if it is not an order of three axes.
    """
    axes = plans.get("transpose_forward", [0, 1, 2])
    if not isinstance(axes, list) or sorted(map(str, axes)) != ["0", "1", "2"]:
        raise ValueError(f"{path} has the transpose_forward {axes!r}; expected an order of the axes, such as [0, 1, 2]")
    return "".join(ORIENTATION[int(axis)] for axis in axes)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; expected nnU-Net's plans, nnunet:PLANS.json#3d_fullres") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as nnU-Net's plans: {error}") from error
    if not (isinstance(content, dict) and isinstance(content.get("configurations"), dict)):
        raise ValueError(f"{path} is not nnU-Net's plans: it has no 'configurations'")
    return content


def _configurations(plans: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {name: value for name, value in plans["configurations"].items() if isinstance(value, dict)}


def _configuration(plans: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return a configuration with what it inherits from others."""
    known = _configurations(plans, path)
    settings: dict[str, Any] = {}
    seen: list[str] = []
    parent: Any = name
    while parent is not None:
        if parent not in known or parent in seen:
            reason = "inherits from itself" if parent in seen else f"has no configuration {parent!r}"
            raise ValueError(f"{path} {reason}; use one of {', '.join(known)}")
        seen.append(parent)
        settings = known[parent] | settings
        parent = known[parent].get("inherits_from")
    return settings


def _preset(name: str) -> Plan:
    """Return the topology that nnU-Net's planner of that name gives for isotropic crops of 128 to 256 a side."""
    residual = name != "plain"
    blocks = RESIDUAL_BLOCKS if residual else PLAIN_CONVS
    arguments = {
        "n_stages": STAGES,
        "features_per_stage": list(FEATURES),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * STAGES,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (STAGES - 1),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(blocks),
        "n_conv_per_stage_decoder": [1 if residual else 2] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return Plan(f"{UNET}.{kind}", arguments, CLASS_OF_KEYWORDS, None, {})


def _reduces(stride: Any) -> bool:
    """Return whether a stage's stride makes the map smaller along some axis."""
    return any(s > 1 for s in ([stride] if isinstance(stride, int) else stride))
