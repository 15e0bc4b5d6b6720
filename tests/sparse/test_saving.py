"""Packed features are tensors: saved, copied and loaded without the network and the run that they come from."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, run


def saved(value: Any, weights_only: bool) -> tuple[Any, int]:
    file = io.BytesIO()
    torch.save(value, file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=weights_only), size


def pickled(value: Any) -> tuple[Any, int]:
    data = pickle.dumps(value)
    return pickle.loads(data), len(data)


WAYS: dict[str, Callable[[Any], tuple[Any, int]]] = {
    "torch.save, weights only": lambda value: saved(value, True),
    "torch.save": lambda value: saved(value, False),
    "pickle": pickled,
    "deepcopy": lambda value: (copy.deepcopy(value), 0),
    "copy": lambda value: (copy.copy(value), 0),
}


class Wide(nn.Module):
    """Weights of 1 MB, features of some KB; keeps one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.down = nn.Conv2d(3, 256, 4, 4), nn.Conv2d(256, 256, 2, 2), nn.Conv2d(256, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.feature = self.stem(x)[:, :4]
        return self.down(self.wide(self.stem(x)))


def features(kind: Any, small_patches: bool = False) -> tuple[list[Tensor], Wide]:
    network, images = Wide(), torch.randn(2, 3, 16, 16)
    grid = PatchGrid(random_visible(2, (4, 4) if small_patches else (2, 2), 0.5), 8 if small_patches else 2)
    return run(kind(grid), network, images), network


@pytest.mark.parametrize("kind", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("gradients", [True, False], ids=["of a graph", "without gradients"])
@pytest.mark.parametrize("way", WAYS)
def test_features_are_saved_as_values(way: str, gradients: bool, kind: Any) -> None:
    with torch.set_grad_enabled(gradients):
        (feature,), _ = features(kind)
    feature = feature.detach() if gradients else feature
    found, size = WAYS[way](feature)
    assert torch.equal(found, feature)
    assert size < 20_000


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_a_network_that_keeps_a_feature_is_saved_without_the_run(way: str) -> None:
    with torch.no_grad():
        _, network = features(SparseExecution)
    weights = 4 * sum(p.numel() for p in network.parameters())
    found, size = WAYS[way](network)
    assert size < weights + 60_000
    assert torch.equal(found.feature, network.feature)


def test_a_copy_copies_no_run() -> None:
    with torch.no_grad():
        _, network = features(SparseExecution)
    layouts: list[Any] = [n.feature._sparkmim_layout for n in (network, copy.deepcopy(network))]  # type: ignore[attr-defined]
    assert layouts[0].origin is layouts[1].origin


@pytest.mark.parametrize("way", ["torch.save, weights only", "pickle", "deepcopy"])
def test_what_spark_encodes(way: str) -> None:
    model = SparK(Backbone(Wide(), stages=["stem", "wide"]), decoder_width=16)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoded = model.encode_visible(images, model.mask(images))
    found, size = WAYS[way](encoded)
    for ours, wanted in zip(found, encoded, strict=True):
        assert torch.equal(ours, wanted)
    assert size < sum(4 * feature.numel() for feature in encoded) + 20_000
