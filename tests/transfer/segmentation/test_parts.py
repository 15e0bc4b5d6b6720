"""Losses, windows, grids, heads and scores, against formulas and brute force in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segmentation_networks import SmallUNet, stages
from sparkmim import Backbone
from sparkmim.data.segmentation.classes import IGNORED
from sparkmim.transfer.segmentation.heads import build_segmenter
from sparkmim.transfer.segmentation.losses import balanced_weights, cross_entropy, dice_loss, segmentation_loss
from sparkmim.transfer.segmentation.scores import SegmentationScore, confusion, image_scores
from sparkmim.transfer.segmentation.sliding import slide, window_weights
from sparkmim.transfer.segmentation.whole import to_grid
from sparkmim.transfer.summary import describe_score
from sparkmim.utils.axes import starts


def example(dims: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (5, 6, 4)[:dims]
    logits = torch.randn(2, classes, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(classes - 1, (2, *size), generator=generator).to(torch.uint8)  # the last is not shown
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORED
    return logits, targets


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0)])
def test_cross_entropy_is_its_formula(dims: int, weights: tuple[float, ...] | None) -> None:
    logits, targets = example(dims)
    total, norm = torch.zeros((), dtype=torch.float64), 0.0
    for place in itertools.product(*map(range, targets.shape)):
        label = int(targets[place])
        if label != IGNORED:
            weight = 1.0 if weights is None else weights[label]
            column = logits[(place[0], slice(None), *place[1:])]
            total = total - weight * (column[label] - column.exp().sum().log())
            norm += weight
    expected = torch.autograd.grad(total / norm, logits)[0]
    found = cross_entropy(logits, targets, weights)
    assert torch.allclose(found, total / norm, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(found, logits)[0], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("background", [None, 0])
def test_dice_is_its_formula(dims: int, background: int | None) -> None:
    logits, targets = example(dims)
    known = targets != IGNORED
    parts = []
    for label in range(logits.shape[1]):
        wanted = ((targets == label) & known).double()
        if label == background or not wanted.sum():
            continue
        shares = logits.softmax(1)[:, label] * known
        parts.append(1 - (2 * (shares * wanted).sum() + 1e-5) / (shares.sum() + wanted.sum() + 1e-5))
    expected = torch.stack(parts).mean()
    found = dice_loss(logits, targets, background)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(
        torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, logits)[0], rtol=1e-10, atol=1e-14
    )


def test_losses_of_ignored_pixels_alone_are_zero_and_have_gradients() -> None:
    logits, targets = example(2)
    loss = segmentation_loss(logits, torch.full_like(targets, IGNORED), "ce+dice", (1, 0, 2, 1), 0)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_a_sum_is_the_sum_of_its_parts_and_what_is_ignored_changes_nothing() -> None:
    logits, targets = example(3)
    parts = [segmentation_loss(logits, targets, name, None, 0) for name in ("ce", "dice")]
    assert torch.equal(segmentation_loss(logits, targets, "ce+dice", None, 0), parts[0] + parts[1])
    other = torch.where((targets == IGNORED).unsqueeze(1), 100 * logits, logits)
    assert torch.allclose(segmentation_loss(other, targets, "ce+dice"), segmentation_loss(logits, targets, "ce+dice"))


def test_balanced_weights() -> None:
    assert balanced_weights([10, 40, 0, 20]) == [2.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("extent", "window"), [(8, 8), (9, 8), (16, 8), (31, 8), (40, 7)])
def test_windows_cover_everything_with_at_least_the_overlap(extent: int, window: int, overlap: float) -> None:
    found = starts(extent, window, overlap)
    assert (found[0], found[-1]) == (0, extent - window)
    steps = np.diff(found)
    assert (steps <= max(1, int(window * (1 - overlap)))).all()
    assert (steps > 0).all()


@pytest.mark.parametrize("size", [(20, 33), (8, 30), (5, 6), (12, 9, 14)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_sliding_is_exact_for_what_sees_a_pixel_alone(size: tuple[int, ...], batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *size, generator=generator)
    mixing = torch.randn(3, 2, generator=generator)

    def model(images: Tensor) -> Tensor:
        assert images.shape[2:] == (8,) * len(size)
        return torch.einsum("kc,bc...->bk...", mixing, images)

    found = slide(model, image, (8,) * len(size), overlap=0.5, batch_size=batch_size)
    assert torch.allclose(found, torch.einsum("kc,c...->k...", mixing, image), atol=1e-5)


def test_windows_are_averaged_by_their_gaussians() -> None:
    weights = window_weights((8,))
    assert torch.allclose(weights, weights.flip(0))
    assert weights.max() == 1
    assert weights.min() > 0
    expected = torch.exp(-0.5 * ((torch.arange(8) - 3.5) / 1.0) ** 2)
    assert torch.allclose(weights, expected / expected.max(), atol=1e-6)
    calls: list[int] = []

    def model(images: Tensor) -> Tensor:  # each window says its number
        numbers = torch.arange(len(calls), len(calls) + len(images)).float()
        calls.extend(numbers.int().tolist())
        return numbers.view(-1, 1, 1).expand(-1, 1, 8)

    found = slide(model, torch.zeros(1, 12), (8,), overlap=0.5, batch_size=2)
    first, second = F.pad(weights, (0, 4)), F.pad(weights, (4, 0))
    assert torch.allclose(found[0], second / (first + second), atol=1e-6)


def test_a_grid_that_is_cropped_and_flipped_back_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=generator)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    whole = affine.copy()
    whole[:3, 3] = (-2.0, -4.0, 0.0)  # begins one and two voxels before
    found = to_grid(logits, affine, whole, (6, 8, 6), 0)
    expected = torch.zeros(6, 8, 6, dtype=torch.uint8)
    expected[1:5, 2:7] = logits.argmax(0).to(torch.uint8)
    assert torch.equal(found, expected)


def test_a_grid_of_twice_the_spacing_is_interpolated_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=generator)
    affine, fine = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = -0.5
    found = to_grid(logits, affine, fine, (8, 10, 12), 0)
    expected = F.interpolate(logits[None], scale_factor=2, mode="trilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(found.long(), expected)


NETWORKS: list[Any] = [
    *[(dims, head) for dims in (2, 3) for head in ("fpn", "unet", "own")],
    (1, "fpn"),
    (1, "unet"),
]


@pytest.mark.parametrize(("dims", "head"), NETWORKS)
def test_heads_take_any_size_and_give_logits_of_it_with_gradients(dims: int, head: str) -> None:
    torch.manual_seed(0)
    if dims == 1:
        conv = torch.nn.Conv1d
        backbone = Backbone(torch.nn.Sequential(conv(1, 8, 3, 2, 1), conv(8, 16, 3, 2, 1)), in_chans=1)
    else:
        network = SmallUNet(dims) if head == "own" else stages(dims)
        backbone = Backbone(network, in_chans=3 if dims == 2 else 1, levels="all" if head == "own" else None)
    module = build_segmenter(backbone, head, 8, 5)
    channels = backbone.in_chans
    for size in ((16, 24, 16)[:dims], (13, 18, 9)[:dims]):
        images = torch.randn(2, channels, *size)
        out = module(images)
        assert out.shape == (2, 5, *size)
    out.square().mean().backward()
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    without = [name for name in trained if module.get_parameter(name).grad is None]
    assert not without, "several processes would wait for their gradients"
    module.eval()
    whole = module(torch.randn(3, channels, *size))
    assert whole.isfinite().all()


def test_own_leaves_the_networks_own_output_layer_out() -> None:
    module = build_segmenter(Backbone(SmallUNet(2), levels="all"), "own", 8, 5)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.out.weight", "encoder.out.bias"}
    with pytest.raises(ValueError, match=r"--head own: .*has no decoder.*--head unet"):
        build_segmenter(Backbone(stages(2)), "own", 8, 5)


def test_scores_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, (4, 7, 9)), generator.integers(0, 3, (4, 7, 9))
    truth[0, :2] = IGNORED
    confusions = np.stack([confusion(t, p, 4) for t, p in zip(truth, predicted, strict=True)])  # class 3 is never seen
    found = SegmentationScore.of(confusions, 0)
    known = truth != IGNORED
    for label in range(3):
        a, b = (truth == label) & known, (predicted == label) & known
        assert found.iou[label] == pytest.approx((a & b).sum() / (a | b).sum())
        assert found.dice_of_classes[label] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        each = [2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in zip(a, b, strict=True)]
        assert found.dice_per_image_of_classes[label] == pytest.approx(np.mean(each))
        assert found.recall[label] == pytest.approx((a & b).sum() / a.sum())
        assert found.precision[label] == pytest.approx((a & b).sum() / b.sum())
    assert found.iou[3] is None
    assert found.miou == pytest.approx(np.mean(found.iou[:3]))  # type: ignore[arg-type]
    assert found.dice == pytest.approx(np.mean(found.dice_of_classes[1:3]))  # type: ignore[arg-type]
    assert found.accuracy == pytest.approx(((truth == predicted) & known).sum() / known.sum())
    assert image_scores(confusions, 0).shape == (4,)


def test_scores_of_a_perfect_prediction_are_one() -> None:
    truth = np.array([[0, 1, 2, 2, IGNORED]])
    found = SegmentationScore.of(confusion(truth, np.array([[0, 1, 2, 2, 1]]), 3)[None], None)
    assert (found.miou, found.dice, found.dice_per_image, found.accuracy) == (1, 1, 1, 1)


def test_images_of_the_background_alone_have_no_dice() -> None:
    truth = np.zeros((1, 5), np.uint8)
    found = SegmentationScore.of(confusion(truth, truth, 2)[None], 0)
    assert (found.miou, found.dice, found.dice_per_image, found.accuracy) == (1, None, None, 1)
    assert describe_score(vars(found)).startswith("mIoU 100.00%, no Dice")
    wrong = SegmentationScore.of(confusion(truth, truth + 1, 2)[None], 0)
    assert (wrong.dice, wrong.dice_per_image) == (0, 0)
