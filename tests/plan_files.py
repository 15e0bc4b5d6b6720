"""Plans of nnU-Net, of networks small enough for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def write_plans(
    folder: Path, channels: int = 1, labels: int = 3, transpose: tuple[int, ...] = (0, 1, 2), **changes: Any
) -> str:
    """Write plans of a narrow residual U-Net, coarse along its first axis, and return its name."""
    folder.mkdir(exist_ok=True)
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
        "n_blocks_per_stage": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    required = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network = {"network_class_name": UNET, "arch_kwargs": arguments | changes, "_kw_requires_import": required}
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
