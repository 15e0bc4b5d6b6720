"""Export to Ultralytics' YOLO: a checkpoint that `YOLO("yolo11n.yaml").load(FILE)` takes.

Such a file is a pickle of the model itself. This one holds the layers of the backbone that were pretrained, under the
names that they have in the whole model, so that nothing else of a new model is replaced.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.encoder import TrainedEncoder
from ..models.named.base import find_named
from ..models.named.ultralytics import Ultralytics
from ..utils.copies import copied
from .equivalence import Mismatch, compare_maps

PIXELS = 32
"""Of a side of the image on which the first layers are compared."""


class YoloWeights(NamedTuple):
    """A file for Ultralytics.

    Attributes:
        content: of the file.
        config: what the whole model is built from.
        items: tensors that are transferred.
        total: tensors of the whole model.
        left: names of the layers of the whole backbone that are not in the file.
    """

    content: bytes
    config: str
    items: int
    total: int
    left: list[str]


def to_ultralytics(encoder: TrainedEncoder) -> YoloWeights:
    """Return a checkpoint for Ultralytics of a backbone that was named as `ultralytics:NAME.yaml`.

    Ultralytics gives its networks images from 0 to 1. The normalization by which this one was pretrained goes into its
    first layer, which is the same function of such images but for the outermost positions, where zeros are padded.

    Raises:
        Mismatch: for any other network, one that Ultralytics builds differently from the same name now, or a first
            layer that is not a convolution without bias and batch norm where there is a normalization.
    """
    named = find_named(encoder.name)
    if not isinstance(named, Ultralytics):
        raise Mismatch(
            f"--format ultralytics takes networks that are named as ultralytics:NAME.yaml, not {encoder.name}; "
            "pretrain one with --model ultralytics:yolo11n.yaml"
        )
    model: Any = copied(encoder.backbone.module).float().cpu().eval()
    with torch.random.fork_rng(devices=()):
        whole: Any = named.whole(encoder.backbone.in_chans)
    own, wanted = model.state_dict(), whole.state_dict()
    strange = [name for name, tensor in own.items() if name not in wanted or wanted[name].shape != tensor.shape]
    if strange:
        raise Mismatch(f"Ultralytics builds another network from {named.name} now: it has no such {strange[0]}")
    absorb_normalization(model, encoder.data.mean, encoder.data.std)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    buffer = io.BytesIO()
    torch.save({"model": model, "ema": None, "epoch": -1, "optimizer": None, "train_args": {}}, buffer)
    layers = range(len(model.model), len(whole.yaml["backbone"]))
    left = [f"model.{number} ({type(whole.model[number]).__name__})" for number in layers]
    return YoloWeights(buffer.getvalue(), named.config(), len(own), len(wanted), left)


def absorb_normalization(model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Have a YOLO compute of images from 0 to 1 what it computes of normalized ones.

    The weights of its first convolution are divided by the deviations, and the running mean of the batch norm that
    follows is raised by what the means are convolved to.

    Raises:
        Mismatch: if its first layer is not a convolution without bias and batch norm.
    """
    if not any(mean) and all(value == 1 for value in std):
        return
    first = model.model[0]
    conv: Any = getattr(first, "conv", None)
    norm: Any = getattr(first, "bn", None)
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None or conv.groups != 1 or not _keeps_statistics(norm):
        raise Mismatch(
            f"its first layer, {type(first).__name__}, is not a convolution and batch norm, which could take up the "
            "normalization of images that Ultralytics does not carry out; pretrain with --mean 0 0 0 --std 1 1 1"
        )
    before = copied(first).double().eval()
    means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    with torch.no_grad():
        weight = conv.weight.double() / deviations.view(1, -1, 1, 1)
        norm.running_mean += (weight * means.view(1, -1, 1, 1)).sum((1, 2, 3))
        conv.weight.copy_(weight)
    image = torch.rand(1, len(mean), PIXELS, PIXELS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normalized = (image - means.view(-1, 1, 1)) / deviations.view(-1, 1, 1)
        wanted, found = before(normalized), copied(first).double().eval()(image)
    compare_maps(_inside(wanted, conv), _inside(found, conv), "the second layer", tolerance=1e-5)


def _keeps_statistics(norm: object) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None


def _inside(maps: Tensor, conv: Any) -> Tensor:
    """Return the positions of a map that no padding takes part in."""
    edge = [-(-int(p) // s) for p, s in zip(conv.padding, conv.stride, strict=True)]
    return maps[..., edge[0] : maps.shape[-2] - edge[0], edge[1] : maps.shape[-1] - edge[1]].contiguous()
