"""What the messages of refusals advise works: each refused function, what its message says, and that done."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine_helpers import REFUSED, RIGHT, SIZES, Function, Host, constant, images_of, outcome, random_grid, refusal
from rule_cases import written
from sparkmim.sparse import SparseExecution, UnsupportedOperation, dense_fallback, run

LARGE = [SIZES["patches_4x4"]]
SMALL = [SIZES["patches_1x1"]]
BOTH = [*LARGE, *SMALL]


class Remedy(NamedTuple):
    """A function that is refused, words of its message, and the function that these advise.

    Attributes:
        blocks: sizes of patches at which it is refused.
        works_at: sizes of patches at which the other works; by default the same.
    """

    refused: Function
    advice: str
    instead: Function
    blocks: list[tuple[int, int]] = BOTH
    works_at: list[tuple[int, int]] | None = None


def reflected(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), constant(8, 8, 3, 3))


REMEDIES: dict[str, Remedy] = {
    "area": Remedy(
        lambda x: x - x.sum((2, 3), True) / (x.shape[2] * x.shape[3]), "use x.mean((2, 3))",
        lambda x: x - x.mean((2, 3), keepdim=True),
    ),
    "area_by_int": Remedy(
        lambda x: x - x.sum((2, 3), True) / (int(x.shape[2]) * int(x.shape[3])), "use x.mean((2, 3))",
        lambda x: x - x.mean((2, 3), keepdim=True),
    ),
    "area_by_axes": Remedy(
        lambda x: x - x.sum((2, 3), True) / float(x.shape[2]) / float(x.shape[3]), "use x.mean((2, 3))",
        lambda x: x - x.mean((2, 3), keepdim=True),
    ),
    "strips": Remedy(
        lambda x: x * F.interpolate(F.avg_pool2d(x, (1, x.shape[3])), size=x.shape[2:]),
        "the whole map (x.mean((2, 3)))",
        lambda x: x * x.mean((2, 3), keepdim=True),
    ),
    "everything": Remedy(
        lambda x: x - x.sum(), "x.sum((1, 2, 3), keepdim=True)", lambda x: x - x.sum((1, 2, 3), keepdim=True)
    ),
    "product_of_everything": Remedy(
        lambda x: x * x.sigmoid().prod(), "x.amax((1, 2, 3), keepdim=True)",
        lambda x: x - x.amax((1, 2, 3), keepdim=True),
    ),
    "variance_corrected_by_hand": Remedy(
        lambda x: x / (x.var((0, 2, 3), unbiased=False) * (x.numel() / (x.numel() - 1)))[:, None, None],
        "as in x.var((0, 2, 3))",
        lambda x: x / x.var((0, 2, 3))[:, None, None],
    ),
    "mean_at_each_position": Remedy(
        lambda x: x - x.mean(0), "x.mean((0, 2, 3))", lambda x: x - x.mean((0, 2, 3))[:, None, None]
    ),
    "layer_norm_with_weights": Remedy(
        lambda x: F.layer_norm(x, x.shape[1:], constant(*map(int, x.shape[1:]))), "nn.GroupNorm(1, channels)",
        lambda x: F.group_norm(x, 1, constant(8)),
    ),
    "layer_norm_without_weights": Remedy(
        lambda x: F.layer_norm(x, x.shape[1:], constant(*map(int, x.shape[1:]))), "elementwise_affine=False",
        lambda x: F.layer_norm(x, x.shape[1:]),
    ),
    "rows": Remedy(
        lambda x: x * x.std(3).std(2)[..., None, None], "reduce all spatial axes at once",
        lambda x: x * x.std((2, 3))[..., None, None],
    ),
    "rows_of_median": Remedy(
        lambda x: x * x.median(3, keepdim=True)[0], "x.flatten(2).median(dim=-1)",
        lambda x: x * x.flatten(2).median(dim=-1)[0][..., None, None],
    ),
    "index_of_positions": Remedy(
        lambda x: x * x.flatten(2).max(-1)[1][..., None, None], "x.flatten(2).max(-1)[0]",
        lambda x: x * x.flatten(2).max(-1)[0][..., None, None],
    ),
    "mask_of_values": Remedy(
        written(lambda x: x.__setitem__(x < 0, x[x < 0] * 2)), "torch.where(mask, a, b)",
        lambda x: torch.where(x < 0, x * 2, x),
    ),
    "several_lists": Remedy(
        lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:])[:, [0, 1], [0, 1]], "index one after the other",
        lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:])[:, [0, 1]][:, :, [0, 1]].flatten(1, 2),
    ),
    "squeezed": Remedy(lambda x: x[:, :1].squeeze(), "name the axis", lambda x: x[:, :1].squeeze(1)[:, None]),
    "not_cropped": Remedy(
        lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2), "y[..., :-2]",
        lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2)[..., :-2, :-2],
    ),
    "pooled_by_a_factor": Remedy(
        lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), scale_factor=1), "size=x.shape[2:]",
        lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[2:]),
    ),
    "windows_of_tensors": Remedy(
        lambda x: x.unfold(2, 1, 1)[..., 0], "torch.nn.functional.unfold", lambda x: F.unfold(x, 1).view(x.shape)
    ),
    "aten": Remedy(lambda x: torch.ops.aten.relu(x), "torch.relu", torch.relu),
    "reflected": Remedy(reflected, "use a larger patch size", reflected, SMALL, LARGE),
    "shrunk_smoothly": Remedy(
        lambda x: F.interpolate(x, scale_factor=(0.5, 1), mode="bilinear"), "mode='nearest'",
        lambda x: F.interpolate(x, scale_factor=(0.5, 1), mode="nearest"),
        SMALL,
        LARGE,
    ),
    "resampled_by_part": Remedy(
        lambda x: F.interpolate(x, scale_factor=1.5), "resample by a whole factor",
        lambda x: F.interpolate(x, scale_factor=2),
        LARGE,
    ),
    "pooled_to_two": Remedy(
        lambda x: F.adaptive_avg_pool2d(x, 2), "x.shape[2] // 2",
        lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)),
        LARGE,
    ),
    "interleaved": Remedy(
        lambda x: x.repeat_interleave(2), "name the axis", lambda x: x.repeat_interleave(2, 1)
    ),
    "one_hot": Remedy(
        lambda x: x * F.one_hot(x.argmax(1)).permute(0, 3, 1, 2)[:, :1], "give num_classes",
        lambda x: x * F.one_hot(x.argmax(1), num_classes=8).permute(0, 3, 1, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
def test_what_a_refusal_advises_works(remedy: Remedy) -> None:
    for block in remedy.blocks:
        assert outcome(remedy.refused, block) == REFUSED
        assert remedy.advice in refusal(remedy.refused, block)
    for block in remedy.works_at or remedy.blocks:
        assert outcome(remedy.instead, block) == RIGHT


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
def test_what_is_refused_runs_on_the_whole_map(remedy: Remedy) -> None:
    """Every message ends with this way out; one that does not return a map is refused by name again."""
    block = remedy.blocks[0]
    network = Host(remedy.refused)
    dense_fallback(network.stages)
    try:
        (out,) = run(SparseExecution(random_grid()), network, images_of(block))
    except UnsupportedOperation as error:
        refused = str(error)
    else:
        assert out.isfinite().all()
        return
    assert "must return maps" in refused
