"""The authors' model (keyu-tian/SparK, commit a63e386) beside a current timm, for `gpu.py`.

Two names have moved since timm 0.5.4, three packages of logging are replaced by empty ones, and in half precision layer
norms return the map's own precision, without which its ConvNeXt fails under autocast.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn

CONVNEXTS = {
    "convnext_tiny": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "convnext_base": ([3, 3, 27, 3], [128, 256, 512, 1024]),
}


def build(pretrain: str, model: str, size: int, width: int, *, channels_last: bool) -> nn.Module:
    """Return the authors' model of a network.

    Args:
        pretrain: the folder `pretrain` of a checkout.
        model: resnet50 or another ResNet of timm's, convnext_tiny or convnext_base.
        size: pixels of a side of the images.
        width: of the decoder.
        channels_last: lay weights out so; as released they are not.

    Raises:
        FileNotFoundError: if the folder is not the authors'.
    """
    if not (Path(pretrain) / "spark.py").is_file():
        raise FileNotFoundError(
            f"{pretrain} has no spark.py; give the folder `pretrain` of a checkout of the authors' code"
        )
    for name, attribute in (("pytz", ""), ("tensorboardX", "SummaryWriter"), ("tap", "Tap")):
        if name not in sys.modules:
            stub = types.ModuleType(name)
            if attribute:
                setattr(stub, attribute, object)
            sys.modules[name] = stub
    sys.path.insert(0, pretrain)
    import timm.layers.drop
    import timm.models.layers

    timm.models.layers.drop = timm.layers.drop  # type: ignore[attr-defined]
    import encoder  # type: ignore[import-not-found]
    from decoder import LightDecoder  # type: ignore[import-not-found]
    from models.convnext import ConvNeXt  # type: ignore[import-not-found]
    from spark import SparK  # type: ignore[import-not-found]
    from timm import create_model

    import models  # noqa: F401 (registers its networks)

    plain = nn.LayerNorm.forward

    def in_own_precision(self: nn.LayerNorm, x: Tensor) -> Tensor:
        return plain(self, x).to(x.dtype)

    encoder.SparseConvNeXtLayerNorm.__mro__[1].forward = in_own_precision  # nn.LayerNorm's, in this process alone
    with contextlib.redirect_stdout(io.StringIO()):
        if model in CONVNEXTS:
            depths, dims = CONVNEXTS[model]
            network = ConvNeXt(num_classes=0, sparse=True, depths=depths, dims=dims)
        else:
            network = create_model(model, num_classes=0, global_pool="")
        made: nn.Module = SparK(
            encoder.SparseEncoder(network, input_size=size),
            LightDecoder(32, width=width, sbn=False),
            mask_ratio=0.6,
            densify_norm="ln" if model in CONVNEXTS else "bn",
        )
    made.train()
    return made.to(memory_format=torch.channels_last) if channels_last else made  # type: ignore[call-overload, no-any-return]
