"""Plans of nnU-Net, of networks small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def architecture(strides: list[list[int]], kind: str = RESIDUAL, **changes: Any) -> dict[str, Any]:
    """As nnU-Net's planner describes a network, but narrow."""
    count, dims = len(strides), len(strides[0])
    blocks = "n_blocks_per_stage" if kind == RESIDUAL else "n_conv_per_stage"
    arguments = {
        "n_stages": count,
        "features_per_stage": [4 * (k + 1) for k in range(count)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * count,
        "strides": strides,
        blocks: [1] * count,
        "n_conv_per_stage_decoder": [1] * (count - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    required = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": kind, "arch_kwargs": arguments | changes, "_kw_requires_import": required}


def write_plans(
    folder: Path, channels: int = 1, labels: int = 3, transpose: tuple[int, ...] = (0, 1, 2), **changes: Any
) -> str:
    """Write plans of a narrow residual U-Net, coarse along its first axis, and return its name."""
    folder.mkdir(exist_ok=True)
    own: dict[str, Any] = {"features_per_stage": [4, 8, 8], "n_blocks_per_stage": [1, 2, 1]}
    network = architecture([[1, 1, 1], [2, 2, 2], [1, 2, 2]], **own)
    network["arch_kwargs"] |= changes
    configuration = {
        "architecture": network,
        "patch_size": [16, 32, 32],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
    }
    plans = folder / "nnUNetPlans.json"
    content = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}
    plans.write_text(json.dumps(content | {"transpose_forward": transpose}))
    (folder / "dataset.json").write_text(json.dumps({"labels": {f"label {k}": k for k in range(labels)}}))
    return f"{plans}#3d_fullres"
