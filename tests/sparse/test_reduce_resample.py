"""Reductions over space see all visible positions of an image; resampling and strided slices stay within a patch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine_helpers import (
    Apply,
    assert_agrees_with_crop,
    assert_agrees_with_oracle,
    assert_never_waits,
    assert_refused,
    draw_rectangles,
    draw_visible,
)

Function = Callable[[Tensor], Any]

MASKS = {
    "one patch": torch.tensor([[[False, True, False]], [[True, False, False]]]),
    "all patches": torch.ones(2, 2, 3, dtype=torch.bool),
    "row": torch.tensor([[[True, True, False, True, False]], [[False, True, True, False, True]]]),
    "boxes": torch.tensor([
        [[True, True, False], [True, True, False], [False, False, False]],
        [[False, False, False], [False, True, True], [False, True, True]],
    ]),
}  # fmt: skip
BOXES = ["all patches", "boxes"]


def last(x: Tensor) -> Tensor:
    """Channels to the end."""
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    """Channels, which are at the end, to second place."""
    return x.permute(0, 3, 1, 2)


def centered_groups(x: Tensor) -> Tensor:
    groups = x.unflatten(1, (2, 2))
    return (groups - groups.mean((2, 3, 4), keepdim=True)).flatten(1, 2)


# --- reductions -----------------------------------------------------------------------------------------------------
# Functions of a map `(N, 4, h, w)` to one that broadcasts against it: `(N, 4, 1, 1)` or `(N, 1, 1, 1)`.

STATISTICS: dict[str, Function] = {
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean without keepdim": lambda x: x.mean((2, 3))[:, :, None, None],
    "mean, axes as a list and from the end": lambda x: x.mean([-1, -2], True),
    "mean, free function": lambda x: torch.mean(x, dim=(2, 3), keepdim=True),
    "mean, names of NumPy": lambda x: torch.mean(x, axis=(2, 3), keepdims=True),  # type: ignore[call-overload]
    "mean of channels too": lambda x: x.mean((1, 2, 3), keepdim=True),
    "mean of channels too, without keepdim": lambda x: x.mean((1, 2, 3)).view(-1, 1, 1, 1),
    "sum": lambda x: x.sum((2, 3), keepdim=True),
    "sum without keepdim": lambda x: x.sum(dim=(2, 3)).unsqueeze(-1).unsqueeze(-1),
    "nanmean": lambda x: x.nanmean((2, 3), keepdim=True),
    "largest": lambda x: x.amax((2, 3), keepdim=True),
    "largest without keepdim": lambda x: torch.amax(x, (2, 3))[..., None, None],
    "smallest": lambda x: x.amin(dim=(2, 3), keepdim=True),
    "logsumexp": lambda x: x.logsumexp((2, 3), keepdim=True),
    "variance": lambda x: x.var((2, 3), keepdim=True),
    "variance, biased": lambda x: x.var((2, 3), unbiased=False, keepdim=True),
    "variance, biased, by position": lambda x: x.var((2, 3), False)[:, :, None, None],
    "variance, biased, all by position": lambda x: x.var((2, 3), False, True),
    "variance, unbiased, by position": lambda x: x.var((2, 3), True)[:, :, None, None],
    "variance, unbiased, all by position": lambda x: torch.var(x, (2, 3), True, False)[:, :, None, None],
    "variance, correction": lambda x: torch.var(x, dim=(2, 3), correction=2, keepdim=True),
    "standard deviation": lambda x: x.std((2, 3), keepdim=True),
    "standard deviation without keepdim": lambda x: torch.std(x, (2, 3), correction=0)[:, :, None, None],
    "standard deviation, unbiased, by position": lambda x: torch.std(x, (2, 3), True)[:, :, None, None],
    "standard deviation and mean": lambda x: torch.mul(*torch.std_mean(x, (2, 3), keepdim=True)),
    "variance and mean without keepdim": lambda x: torch.add(*torch.var_mean(x, (2, 3)))[:, :, None, None],
    "norm": lambda x: x.norm(2, (2, 3), True),
    "norm without keepdim": lambda x: x.norm(dim=(2, 3))[:, :, None, None],
    "norm of Frobenius": lambda x: torch.norm(x, "fro", (2, 3), True),
    "norm 1": lambda x: torch.norm(x, p=1, dim=[2, 3], keepdim=True),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, (2, 3), True),
    "norm of channels and space": lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average, per axis": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive pooling of pooled values": lambda x: F.adaptive_avg_pool2d(F.adaptive_max_pool2d(x, 1), 1),
    "channels last": lambda x: first(last(x).mean((1, 2), keepdim=True)),
    "channels last without keepdim": lambda x: last(x).mean((1, 2))[:, :, None, None],
    "channels last, largest": lambda x: first(last(x).amax(dim=(-3, -2), keepdim=True)),
    "samples last": lambda x: x.permute(1, 2, 3, 0).mean((1, 2)).transpose(0, 1)[:, :, None, None],
    "samples last, norm": lambda x: x.permute(2, 1, 3, 0).norm(dim=(0, 2), keepdim=True).permute(3, 1, 0, 2),
    "samples in the middle": lambda x: torch.std_mean(x.permute(2, 3, 0, 1), (0, 1))[0][..., None, None],
    "samples in the middle, everything reduced": lambda x: x.permute(2, 1, 0, 3).sum((0, 1, 3)).view(-1, 1, 1, 1),
    "samples last, variance, unbiased, by position": lambda x: (
        x.permute(1, 2, 3, 0).var((1, 2), True).transpose(0, 1)[:, :, None, None]
    ),
    "one channel, variance, unbiased, by position": lambda x: x[:, :1].var((2, 3), True)[:, :, None, None],
    "of groups": centered_groups,
    "of positions as one axis": lambda x: x.flatten(2).mean(-1)[:, :, None, None],
    "of channels, then space": lambda x: x.mean(1, keepdim=True).mean((2, 3), keepdim=True),
    "of space, then channels": lambda x: x.mean((2, 3), keepdim=True).amax(1, keepdim=True),
    "of pooled values": lambda x: x.mean((2, 3), keepdim=True).sum((2, 3), keepdim=True),
}  # fmt: skip


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS.keys())
def test_statistics(statistic: Function, visible: Tensor) -> None:
    assert_agrees_with_oracle(Apply(lambda x: x * statistic(x)), visible, 4, (2, 4))


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS.keys())
def test_statistics_of_boxes(statistic: Function, mask: str) -> None:
    assert_agrees_with_crop(Apply(lambda x: x * statistic(x)), MASKS[mask], 4, (2, 4))


REDUCTIONS = [torch.mean, torch.sum, torch.amax, torch.logsumexp, torch.linalg.vector_norm]


@given(data=st.data(), dims=st.integers(1, 3), reduce=st.sampled_from(REDUCTIONS))
@settings(max_examples=60, deadline=None)
def test_any_mask(
    data: st.DataObject,
    dims: int,
    reduce: Callable[..., Tensor],
) -> None:
    visible = data.draw(draw_visible(dims, largest=3))
    patch = tuple(data.draw(st.integers(1, 3)) for _ in range(dims))
    space, keep = tuple(range(2, 2 + dims)), data.draw(st.booleans())

    def gated(x: Tensor) -> Tensor:
        statistic = reduce(x, dim=space, keepdim=keep)
        return x * (statistic if keep else statistic[(..., *[None] * dims)])

    assert_agrees_with_oracle(Apply(gated), visible, 2, patch)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pooling(dims: int, kind: str) -> None:
    pool = getattr(F, f"adaptive_{kind}_pool{dims}d")
    network = Apply(lambda x: x + pool(x, 1))
    visible = torch.rand(2, *[3] * dims, generator=torch.Generator().manual_seed(0)).argsort(dims) < 2
    assert_agrees_with_oracle(network, visible, 2, (2,) * dims)
    assert_agrees_with_crop(network, torch.ones_like(visible), 2, (2,) * dims)


CHANNELS: dict[str, Function] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "largest and mean, joined": lambda x: torch.cat([x.amax(1, keepdim=True), x.mean(dim=1, keepdim=True)], 1),
    "normalized": lambda x: F.normalize(x, dim=1),
    "channels last": lambda x: first(last(x) / last(x).norm(dim=-1, keepdim=True)),
    "without keepdim": lambda x: x.var(1)[:, None],
    "layer norm": lambda x: first(F.layer_norm(last(x), (4,))),
    "softmax": lambda x: x.softmax(1),
    "of the batch": lambda x: x - x.mean((0, 2, 3), keepdim=True),
    "of the batch, variance": lambda x: x / torch.var_mean(x, (0, 2, 3), keepdim=True)[0],
    "of the batch, largest": lambda x: x / x.amax((0, 2, 3), keepdim=True).abs(),
    "of the batch, without NaN": lambda x: x - x.nanmean((0, 2, 3), keepdim=True),
    "of everything": lambda x: x - x.mean(),
    "of everything, no axis named": lambda x: x - x.mean(()),
    "of everything, None": lambda x: x - x.mean(dim=None),
    "of everything, biased": lambda x: x * x.var(False),
    "of everything, deviation": lambda x: x / x.std(),
    "of everything, largest": lambda x: x / x.max().abs() + torch.min(x),
    "of everything, in order": lambda x: x - x.flatten().mean() + x.reshape(-1).amax(),
    "of pooled values of all images": lambda x: x - x.mean((2, 3), keepdim=True).mean(0),
}


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("function", CHANNELS.values(), ids=CHANNELS.keys())
def test_reductions_of_channels(function: Function, mask: str) -> None:
    assert_agrees_with_oracle(Apply(function), MASKS[mask], 4, (2, 4))
    assert_agrees_with_crop(Apply(function), MASKS[mask], 4, (2, 4))


REFUSED: dict[str, Function] = {
    "all axes": lambda x: x * x.sum(),
    "samples": lambda x: x - x.mean(0, keepdim=True),
    "samples and some space": lambda x: x - x.mean((0, 2), keepdim=True),
    "one spatial axis": lambda x: x - x.mean(2, keepdim=True),
    "norm of matrices": lambda x: x * torch.linalg.norm(x, 2, (2, 3), keepdim=True),
    "norm of matrices or not": lambda x: x * torch.linalg.norm(x, dim=(2, 3), keepdim=True),
    "nuclear norm": lambda x: x * x.norm("nuc", (2, 3), keepdim=True),
    "of what was padded": lambda x: x * F.pad(x, (1, 1, 1, 1)).mean((2, 3), keepdim=True),
    "softmax over space": lambda x: x.softmax(-1),
    "adaptive pooling to 2": lambda x: x + F.adaptive_avg_pool2d(x, 2),
    "adaptive pooling of channels": lambda x: x + F.adaptive_avg_pool2d(last(x), 1),
    "places of the largest": lambda x: x + F.adaptive_max_pool2d(x, 1, return_indices=True)[1],
    "largest of one axis": lambda x: x * x.max(-1, keepdim=True)[0],
    "one spatial axis after another statistic": lambda x: x - x.mean(3, keepdim=True).amax(2, keepdim=True),
    "median": lambda x: x * x.median(),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused(function: Function) -> None:
    assert_refused(Apply(function), MASKS["boxes"], 4, (4, 4))


@pytest.mark.parametrize(
    "function",
    [
        last,
        lambda x: x.flatten(2),
        lambda x: x.transpose(2, 3),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: F.pad(x, (1, 1, 1, 1)),
    ],
    ids=["channels last", "positions as one axis", "transposed", "pooled values", "padded"],
)
def test_what_is_no_feature_map(function: Function) -> None:
    assert_refused(Apply(function), MASKS["boxes"], 4, (4, 4), "feature map 0")


# --- resampling -----------------------------------------------------------------------------------------------------


def pyramid(resample: Function) -> nn.Module:
    """A map of half the resolution, up by a function, joined with what it came from."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.join = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            small = self.down(x)
            return [small, self.join(torch.cat([x, resample(small)], 1))]

    return Pyramid().double()


UP: dict[str, Function] = {
    "by 2": lambda x: F.interpolate(x, scale_factor=2),
    "by 2.0, exact": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
    "per axis": lambda x: F.interpolate(x, scale_factor=(2, 2), mode="nearest"),
    "to a size": lambda x: F.interpolate(x, size=[2 * s for s in x.shape[-2:]], mode="nearest"),
    "to a size, by position": lambda x: F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3])),
    "by a module": nn.Upsample(scale_factor=2, mode="nearest"),
    "recomputed": lambda x: F.interpolate(x, scale_factor=2.0, recompute_scale_factor=True),
    "by shuffling": lambda x: F.pixel_shuffle(torch.cat([x, 2 * x, -x, x.exp()], 1), 2),
    "by repetition": lambda x: F.interpolate(F.interpolate(x, scale_factor=(2, 1)), scale_factor=(1, 2)),
}
DOWN: dict[str, Function] = {
    "by half": lambda x: F.interpolate(x, scale_factor=0.5),
    "by a quarter, exact": lambda x: F.interpolate(x, scale_factor=0.25, mode="nearest-exact"),
    "one axis": lambda x: F.interpolate(x, scale_factor=(1, 0.25)),
    "to a size": lambda x: F.interpolate(x, size=[s // 2 for s in x.shape[2:]]),
    "one up, the other down": lambda x: F.interpolate(x[:, :, ::2], scale_factor=(2, 0.5)),
    "every second position": lambda x: x[:, :, ::2, 1::2],
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
    "unshuffled": lambda x: F.pixel_unshuffle(x, 2),
    "unshuffled by a module": nn.PixelUnshuffle(4),
    "channels last": lambda x: first(last(x)[:, ::2, ::2]),
}


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("up", UP.values(), ids=UP.keys())
def test_up(up: Function, visible: Tensor) -> None:
    assert_agrees_with_oracle(pyramid(up), visible, 4, (4, 6))


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("up", UP.values(), ids=UP.keys())
def test_up_on_boxes(up: Function, mask: str) -> None:
    assert_agrees_with_crop(pyramid(up), MASKS[mask], 4, (4, 6))


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("down", DOWN.values(), ids=DOWN.keys())
def test_down(down: Function, visible: Tensor) -> None:
    assert_agrees_with_oracle(Apply(down), visible, 4, (4, 8))


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("down", DOWN.values(), ids=DOWN.keys())
def test_down_on_boxes(down: Function, mask: str) -> None:
    assert_agrees_with_crop(Apply(down), MASKS[mask], 4, (4, 8))


@given(data=st.data(), dims=st.integers(1, 3), exact=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_factor(data: st.DataObject, dims: int, exact: bool) -> None:
    """Down by some factors, then up by others that divide them, per axis."""
    visible = data.draw(draw_visible(dims, largest=3))
    down = [data.draw(st.sampled_from([1, 2, 3, 4])) for _ in range(dims)]
    up = [data.draw(st.sampled_from([f for f in (1, 2, 4) if d % f == 0])) for d in down]
    mode = "nearest-exact" if exact else "nearest"

    def resample(x: Tensor) -> Tensor:
        small = F.interpolate(x, size=[s // d for s, d in zip(x.shape[2:], down, strict=True)], mode=mode)
        return F.interpolate(small, scale_factor=tuple(float(f) for f in up), mode=mode)

    assert_agrees_with_oracle(Apply(resample), visible, 2, tuple(d * data.draw(st.integers(1, 2)) for d in down))


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@st.composite
def smooth_resampling(draw: st.DrawFn) -> tuple[Any, tuple[int, ...]]:
    """Linear or cubic, up or down by a factor along each axis, by factor or by size; and the patches it takes."""
    dims = draw(st.integers(1, 3))
    mode = draw(st.sampled_from([LINEAR[dims], *(["bicubic"] if dims == 2 else [])]))
    factors = [draw(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])) for _ in range(dims)]
    by_size = draw(st.booleans())

    def resample(x: Tensor) -> Tensor:
        size = [round(s * f) for s, f in zip(x.shape[2:], factors, strict=True)]
        return F.interpolate(x, size=size, mode=mode) if by_size else F.interpolate(x, scale_factor=factors, mode=mode)

    least = 2 if mode == "bicubic" else 1
    coarse = [-(-draw(st.integers(least, 4)) // max(1, round(1 / f))) * max(1, round(1 / f)) for f in factors]
    patch = tuple(int(pixels * max(f, 1)) for pixels, f in zip(coarse, factors, strict=True))

    def network(x: Tensor, weight: Tensor) -> Tensor:
        """As in a network, what becomes finer has been coarser than the image before."""
        size = [round(s / max(f, 1)) for s, f in zip(x.shape[2:], factors, strict=True)]
        return resample(F.interpolate(x, size=size) * weight.view(-1, *[1] * dims))

    return Apply(network, weight=torch.randn(2, dtype=torch.float64)), patch


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_smooth_resampling(data: st.DataObject) -> None:
    network, patch = data.draw(smooth_resampling())
    visible = data.draw(draw_visible(len(patch), largest=4 if len(patch) < 3 else 3))
    assert_agrees_with_oracle(network, visible, 2, patch)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_smooth_resampling_of_a_box(data: st.DataObject) -> None:
    network, patch = data.draw(smooth_resampling())
    visible = data.draw(draw_rectangles(len(patch), largest=4 if len(patch) < 3 else 3))
    assert_agrees_with_crop(network, visible, 2, patch)


NOT_RESAMPLED: dict[str, Function] = {
    "corners aligned": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=True),
    "antialiased": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "bilinear by 1.5": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "bicubic, further than a patch": lambda x: F.interpolate(F.max_pool2d(x, 4), scale_factor=2, mode="bicubic"),
    "area": lambda x: F.interpolate(x, scale_factor=0.75, mode="area"),
    "by 1.5": lambda x: F.interpolate(x[..., ::2, ::2], scale_factor=1.5),
    "by three quarters": lambda x: F.interpolate(x, scale_factor=0.75),
    "pooled values": lambda x: F.interpolate(x.mean((2, 3), keepdim=True), scale_factor=2),
    "channels last": lambda x: F.interpolate(last(x), scale_factor=0.5),
    "every third position": lambda x: x[..., ::3],
    "a part": lambda x: x[..., 1:],
    "one position": lambda x: x * x[..., :1, :1],
    "one image": lambda x: x * x[:1],
    "rolled": lambda x: x.roll(1, -1),
    "flipped": lambda x: x.flip(-1),
    "transposed": lambda x: x + x.transpose(2, 3),
}


@pytest.mark.parametrize("function", NOT_RESAMPLED.values(), ids=NOT_RESAMPLED.keys())
def test_not_resampled(function: Function) -> None:
    assert_refused(Apply(function), MASKS["boxes"], 4, (4, 4))


GATES: dict[str, Function] = {name: lambda x, f=f: x * f(x) for name, f in STATISTICS.items()}  # type: ignore[misc]


@pytest.mark.parametrize("function", [*GATES.values(), *DOWN.values()], ids=[*GATES, *DOWN])
def test_no_waiting_for_the_device(function: Function) -> None:
    assert_never_waits(lambda: Apply(function), (2, 3, 3), 4, 4, (4, 8))
