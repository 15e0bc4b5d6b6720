"""Noise that a network draws once an image is drawn once an image here too, and the same for the same seed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import Apply, assert_agrees_with_crop, assert_agrees_with_oracle, assert_never_waits, assert_refused
from sparkmim.sparse import PatchGrid, SparseExecution, UnsupportedOperation, run

Function = Callable[[Tensor], Tensor]

MASKS = {
    "one patch": torch.tensor([[[False, True, False]], [[True, False, False]]]),
    "all patches": torch.ones(3, 2, 3, dtype=torch.bool),
    "scattered": torch.tensor([[[True, True, False, True, False]], [[False, True, True, False, True]]]),
    "boxes": torch.tensor([
        [[True, True, False], [True, True, False], [False, False, False]],
        [[False, False, False], [False, True, True], [False, True, True]],
        [[False, False, False], [True, True, False], [True, True, False]],
    ]),
}  # fmt: skip
BOXES = ["all patches", "boxes"]


def drop_path(x: Tensor, probability: float = 0.5, scale_by_keep: bool = True) -> Tensor:
    """Stochastic depth as timm draws it."""
    keep = 1 - probability
    noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    if keep > 0.0 and scale_by_keep:
        noise.div_(keep)
    return x * noise


def gated(x: Tensor) -> Tensor:
    """A squeeze-excite gate with dropout of the pooled values."""
    return x * F.dropout(x.mean((2, 3)), 0.5).sigmoid()[:, :, None, None]


def dropped_in_place(x: Tensor) -> Tensor:
    pooled = x.mean((2, 3), keepdim=True) * 1
    torch.dropout_(pooled, 0.5, True)
    return x * pooled


def rrelu_in_place(x: Tensor) -> Tensor:
    pooled = x.mean((2, 3), keepdim=True) * 1
    torch.rrelu_(pooled, 0.1, 0.9, True)
    return x * pooled


DRAWN_ONCE_AN_IMAGE: dict[str, Function] = {
    "stochastic depth": drop_path,
    "stochastic depth, not scaled": lambda x: drop_path(x, 0.3, scale_by_keep=False),
    "stochastic depth that drops all": lambda x: drop_path(x, 1.0),
    "stochastic depth of a residual": lambda x: x + drop_path(x.exp()),
    "stochastic depth, channels last": lambda x: drop_path(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "stochastic depth after pooling away positions": lambda x: x * drop_path(x.mean((2, 3)))[:, :, None, None],
    "stochastic depth of one channel": lambda x: x + drop_path(x.mean(1, keepdim=True)),
    "stochastic depth, older": lambda x: x * (0.5 + torch.rand_like(x.mean((1, 2, 3), keepdim=True))).floor_(),
    "noise of the normal kind": lambda x: x + x.new_zeros(x.shape[0], 1, 1, 1).normal_(),
    "noise of the uniform kind for each channel": lambda x: x * x.new_empty(x.shape[0], x.shape[1], 1, 1).uniform_(),
    "stochastic depth, expanded as the map": lambda x: x * torch.rand(len(x)).view(-1, 1, 1, 1).expand_as(x),
    "stochastic depth, expanded to a shape": lambda x: x * torch.rand(len(x)).view(len(x), 1, 1, 1).expand(x.shape),
    "stochastic depth, repeated": lambda x: x * torch.rand(len(x))[:, None, None, None].repeat(1, *x.shape[1:]),
    "stochastic depth, broadcast": lambda x: torch.mul(
        *torch.broadcast_tensors(x, torch.empty(len(x)).uniform_(-1, 1).view(-1, 1, 1, 1))
    ),
    "stochastic depth, with the dtype of the map": lambda x: x * torch.rand(len(x)).view(-1, 1, 1, 1).to(x),
    "stochastic depth, of its type": lambda x: x * torch.rand(len(x)).floor().view(-1, 1, 1, 1).type_as(x),
    "channel dropout by hand": lambda x: x * torch.rand(x.size(0), x.size(1), 1, 1).to(x).ge(0.3),
    "drawn by a probability of each image": lambda x: x * torch.bernoulli(x.mean((2, 3), keepdim=True).sigmoid()),
    "dropout of pooled values": gated,
    "dropout of pooled values, in place": lambda x: x * F.dropout(x.mean((2, 3), keepdim=True) * 1, 0.5, inplace=True),
    "dropout of pooled values, its result left aside": dropped_in_place,
    "slopes of pooled values": lambda x: x * F.rrelu(x.mean((2, 3), keepdim=True), 0.1, 0.9, training=True),
    "slopes of pooled values, in place": rrelu_in_place,
    "slopes of pooled values, asked for in place": lambda x: (
        x * F.rrelu(x.mean((2, 3), keepdim=True) * 1, 0.1, 0.9, training=True, inplace=True)
    ),
    "channel dropout": lambda x: F.dropout2d(x, 0.5),
    "channel dropout, in place": lambda x: F.dropout2d(x * 1, 0.5, inplace=True),
    "channel dropout of pooled values": lambda x: x * F.dropout2d(x.mean((2, 3), keepdim=True), 0.5),
    "channel dropout of all": lambda x: F.dropout2d(x, 1.0),
    "two of them": lambda x: drop_path(F.dropout2d(drop_path(x), 0.3)),
}
NOTHING_DRAWN: dict[str, Function] = {
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False),
    "channel dropout in evaluation": lambda x: F.dropout2d(x, 0.5, training=False),
    "slopes in evaluation": lambda x: F.rrelu(x, 0.1, 0.9) * F.rrelu(x.mean((2, 3), keepdim=True), 0.1, 0.9),
    "channel dropout of nothing": lambda x: F.dropout2d(x, 0.0),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "stochastic depth that drops nothing": lambda x: drop_path(x, 0.0),
    "zeros of each image": lambda x: x + x.new_zeros(x.shape[0], 1, 1, 1),
    "ones like the map": lambda x: x * torch.ones_like(x),
    "a constant": lambda x: x * x.new_full((1, x.shape[1], 1, 1), 2.0),
}
FUNCTIONS = DRAWN_ONCE_AN_IMAGE | NOTHING_DRAWN
MAY_BE_REFUSED = [function for name, function in FUNCTIONS.items() if name.startswith("noise of")]


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_same_noise_as_the_oracle(function: Function, visible: Tensor) -> None:
    assert_agrees_with_oracle(Apply(function), visible, 4, (2, 2))


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_same_noise_where_a_patch_is_one_position(function: Function, visible: Tensor) -> None:
    """As in the deepest stage of most networks. New tensors other than those of stochastic depth could then be maps as
    well as values an image: they may be refused, never drawn wrongly."""
    network = Apply(function)
    try:
        assert_agrees_with_oracle(network, visible, 4, (1, 1))
    except UnsupportedOperation:
        assert function in MAY_BE_REFUSED


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_same_noise_as_the_ordinary_network(function: Function, mask: str) -> None:
    assert_agrees_with_crop(Apply(function), MASKS[mask], 4, (2, 3))


@pytest.mark.parametrize("function", [drop_path, lambda x: F.dropout2d(x, 0.5)], ids=["stochastic depth", "channels"])
def test_patches_of_an_image_share_its_noise(function: Function) -> None:
    """Needs no oracle: within an image one decision, between images different ones."""
    visible = torch.rand(64, 4, 4, generator=torch.Generator().manual_seed(0)).flatten(1).argsort(1).view(64, 4, 4) < 5
    grid = PatchGrid(visible, 5)
    torch.manual_seed(0)
    (out,) = run(SparseExecution(grid), Apply(function), torch.ones(64, 2, 8, 8))
    noise = grid.by_image(out)[:, :, 0]  # of the first channel: (image, patch, height, width)
    assert (noise == noise[:, :1, :1, :1]).all()
    kept = int((noise[:, 0, 0, 0] == 2).sum())
    assert 16 < kept < 48
    assert int((noise[:, 0, 0, 0] == 0).sum()) == 64 - kept


def test_dropout_of_a_map_is_drawn_for_each_position() -> None:
    grid = PatchGrid(MASKS["boxes"], 4)
    torch.manual_seed(0)
    (out,) = run(SparseExecution(grid), Apply(lambda x: F.dropout(x, 0.25)), torch.ones(3, 8, 24, 24).double())
    assert set(out.unique().tolist()) == {0.0, 1 / 0.75}
    assert 0.2 < float((out == 0).double().mean()) < 0.3
    assert not torch.equal(out[0], out[1])


def test_modules_in_train_and_eval_mode() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout2d(0.5), nn.BatchNorm2d(4), nn.ReLU()).double()
    for training in (True, False):
        assert_agrees_with_oracle(network.train(training), MASKS["scattered"], 4, (2, 2))
        assert_agrees_with_crop(network, MASKS["boxes"], 4, (2, 2))


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims: int) -> None:
    dropout = {1: F.dropout1d, 3: F.dropout3d}[dims]
    network = Apply(lambda x: drop_path(dropout(x, 0.5)))
    visible = torch.rand(2, *[3] * dims, generator=torch.Generator().manual_seed(0)).argsort(dims) < 2
    assert_agrees_with_oracle(network, visible, 4, (2,) * dims)
    assert_agrees_with_crop(network, torch.ones_like(visible), 4, (2,) * dims)


REFUSED: dict[str, Function] = {
    "noise of each position that does not": lambda x: x + torch.rand(1, 1, *x.shape[2:]).double(),
    "noise of one axis": lambda x: x + x.new_zeros(x.shape[0], 1, 1, x.shape[3]).normal_(),
    "channel dropout, channels last": lambda x: F.dropout2d(x.permute(0, 2, 3, 1), 0.5),
    "dropout after padding": lambda x: F.dropout(F.pad(x, (1, 1, 1, 1)), 0.5),
    "shuffled images": lambda x: x[torch.randperm(x.shape[0])],
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused(function: Function) -> None:
    assert_refused(Apply(function), MASKS["boxes"], 4, (4, 4))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_no_waiting_for_the_device(function: Function) -> None:
    assert_never_waits(lambda: Apply(function), (2, 3, 3), 4, 4, (4, 2))
