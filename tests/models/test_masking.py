"""Random masks: how many patches are visible, which, and drawn from where."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

import sparkmim
from sparkmim.data.config import DataConfig
from sparkmim.data.normalize import Normalize
from sparkmim.models.masking import count_visible, random_visible, require_count, visible_patches


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("grid", "mask_ratio", "visible"),
    [
        ((7, 7), 0.6, 20),  # the paper's 224 pixels
        ((12, 12), 0.75, 36),  # and its 384 pixels
        ((4, 19), 0.6, 30),
        ((1, 2), 0.5, 1),
        ((10,), 0.9, 1),
        ((5,), 0.5, 2),  # 2.5 goes to the even number, as Python's round does in the official code
        ((7,), 0.5, 4),
        ((2, 3, 4), 0.6, 10),
    ],
)
def test_number_of_visible_patches(grid: tuple[int, ...], mask_ratio: float, visible: int) -> None:
    assert visible_patches(grid, mask_ratio) == visible
    mask = random_visible(5, grid, mask_ratio, seeded(0))
    assert mask.shape == (5, *grid)
    assert mask.dtype == torch.bool
    assert mask.flatten(1).sum(1).tolist() == [visible] * 5  # True is visible: the other polarity gives the rest


@pytest.mark.parametrize(
    ("grid", "mask_ratio", "what"),
    [
        ((2, 2), 0.9, "all"),
        ((2, 2), 0.05, "none"),
        ((1, 1), 0.6, "all"),
        ((1,), 0.4, "none"),
        ((2, 2), 1.0, "all"),
        ((14, 14), 0.999, "all"),
        ((14, 14), 0.001, "none"),
    ],
)
def test_hiding_all_or_none_is_an_error(grid: tuple[int, ...], mask_ratio: float, what: str) -> None:
    wanted = f"mask ratio {mask_ratio} hides {what} of the {math.prod(grid)} patches of a {' x '.join(map(str, grid))}"
    with pytest.raises(ValueError, match=wanted):
        visible_patches(grid, mask_ratio)
    with pytest.raises(ValueError, match=wanted):
        random_visible(2, grid, mask_ratio)


def test_generator_decides() -> None:
    first = random_visible(4, (6, 5), 0.6, seeded(3))
    assert torch.equal(first, random_visible(4, (6, 5), 0.6, seeded(3)))
    assert not torch.equal(first, random_visible(4, (6, 5), 0.6, seeded(4)))
    generator = seeded(3)
    assert torch.equal(first, random_visible(4, (6, 5), 0.6, generator))
    assert not torch.equal(first, random_visible(4, (6, 5), 0.6, generator)), "the generator must move on"


def test_generator_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    random_visible(4, (6, 5), 0.6, seeded(0))
    assert torch.equal(before, torch.get_rng_state())


def test_default_is_global_randomness() -> None:
    torch.manual_seed(11)
    first = random_visible(4, (6, 5), 0.6)
    second = random_visible(4, (6, 5), 0.6)
    torch.manual_seed(11)
    assert torch.equal(first, random_visible(4, (6, 5), 0.6))
    assert not torch.equal(first, second)


def test_each_image_has_its_own_mask() -> None:
    masks = random_visible(50, (7, 7), 0.6, seeded(0)).flatten(1)
    assert len(masks.unique(dim=0)) == 50


def test_uniform_over_cells_and_pairs_of_cells() -> None:
    """Every cell, and every pair of cells, is visible as often as in a draw without replacement."""
    images, cells, keep = 30_000, 12, 5
    masks = random_visible(images, (3, 4), 0.6, seeded(0)).flatten(1).double()
    together = masks.T @ masks / images
    single, pair = keep / cells, keep * (keep - 1) / (cells * (cells - 1))

    def bound(p: float) -> float:  # five standard errors: one false alarm in 10^4 seeds over 78 comparisons
        return 5 * math.sqrt(p * (1 - p) / images)

    assert (together.diagonal() - single).abs().max() < bound(single)
    apart = together[~torch.eye(cells, dtype=torch.bool)]
    assert (apart - pair).abs().max() < bound(pair)


def test_uniform_over_images_of_a_batch() -> None:
    """Images of one batch are drawn independently: the overlap of two is hypergeometric."""
    first, second = random_visible(20_000, (3, 4), 0.6, seeded(1)).flatten(1).double().chunk(2)
    overlap = (first * second).sum(1)
    variance = 5 * (5 / 12) * (7 / 12) * (7 / 11)
    assert abs(overlap.mean().item() - 25 / 12) < 5 * math.sqrt(variance / 10_000)
    assert overlap.var().item() == pytest.approx(variance, rel=0.08)


def test_drawing_reads_nothing_back() -> None:
    with FakeTensorMode():
        assert random_visible(4, (7, 7), 0.6).shape == (4, 7, 7)


class Copies(TorchFunctionMode):
    """Notes what is copied to which device without being waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[tuple[str, bool]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.to and "non_blocking" in (kwargs or {}):
            self.waited.append((torch.device(args[1]).type, not kwargs["non_blocking"]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_copies_to_the_cpu_are_waited_for(device: str) -> None:
    """Nobody else waits for them: what is read there could be anything."""
    model = sparkmim.SparK("test_resnet", decoder_width=32)
    images, visible = torch.zeros(2, 3, 64, 64, device=device), random_visible(2, (2, 2), 0.5)
    normalise = Normalize(DataConfig(image_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3), device)
    with Copies() as copies:
        assert random_visible(2, (2, 2), 0.5, seeded(0), device).device.type == device
        assert model.mask(images, visible).visible.device.type == device
        assert normalise(torch.zeros(2, 3, 4, 4)).device.type == device
    assert copies.waited == [(device, device == "cpu")] * 3


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_count_visible(grid: tuple[int, ...]) -> None:
    count = count_visible(random_visible(3, grid, 0.5, seeded(0)))
    assert count == visible_patches(grid, 0.5)
    assert type(count) is int
    assert count_visible(torch.ones(2, *grid, dtype=torch.bool)) == math.prod(grid)


def test_count_visible_refuses_uneven_masks() -> None:
    uneven = torch.zeros(3, 2, 2, dtype=torch.bool)
    uneven[0, 0, 0] = uneven[1, 0, 0] = uneven[1, 1, 1] = uneven[2, 1, 1] = True
    with pytest.raises(ValueError, match=r"same number \(>= 1\) of visible patches in every image, got \[1, 2\]"):
        count_visible(uneven)


def test_count_visible_refuses_masks_that_show_nothing() -> None:
    with pytest.raises(ValueError, match=r"\(>= 1\) of visible patches in every image, got \[0\]"):
        count_visible(torch.zeros(2, 3, 3, dtype=torch.bool))


def test_require_count() -> None:
    visible = random_visible(3, (4, 4), 0.5, seeded(0))
    require_count(visible, 8)
    with pytest.raises(ValueError, match=r"expected 7 visible patches in every image, got \[8\]"):
        require_count(visible, 7)
    visible[0] = True
    with pytest.raises(ValueError, match=r"expected 8 visible patches in every image, got \[8, 16\]"):
        require_count(visible, 8)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {"visible": torch.zeros(2, 2, 2, dtype=torch.bool), "count": 0},
            "expected a count of at least 1 visible patch",
        ),
        (
            {"visible": random_visible(2, (2, 2), 0.5), "count": 3},
            r"expected 3 visible patches in every image, got \[2\]",
        ),
        ({"count": 2}, "count=2 says how many patches of a given mask are visible, and none was given"),
    ],
)
def test_a_count_that_does_not_fit_is_refused(given: dict[str, Any], error: str) -> None:
    model = sparkmim.SparK(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 4, 4)), decoder_width=32)
    with pytest.raises(ValueError, match=error):
        model(torch.randn(2, 3, 32, 32), **given)


def test_a_mask_on_an_accelerator_is_not_read_back_where_its_number_is_given() -> None:
    """Fake tensors have no values, so whatever would wait for the device raises."""
    model = sparkmim.SparK(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 4, 4)), decoder_width=32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        visible = torch.empty(2, 2, 2, dtype=torch.bool, device="cuda")
        images = torch.empty(2, 3, 32, 32, device="cuda")
        grid = model.mask(images, visible, count=2)
        assert grid.order.shape == (2, 2)
        assert grid.order.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            model.mask(images, visible)


def test_public_name() -> None:
    assert sparkmim.random_visible is random_visible
