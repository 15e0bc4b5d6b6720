"""Calls that torch allows, though networks seldom make them: each is right or refused, and which of the two is known.

A case that is refused today may become right; one that was right and is refused is lost coverage.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine_helpers import (
    CHANNELS,
    REFUSED,
    RIGHT,
    SIZES,
    Apply,
    Function,
    channels_last,
    constant,
    images_of,
    outcome_of,
    random_grid,
    right_or_refused,
    table,
)
from sparkmim.sparse import SparseExecution, UnsupportedOperation, run

KEYWORD_FORMS: dict[str, tuple[Any, ...]] = {
    "cat_axis": (lambda x: torch.cat([x, x * 2], axis=1), RIGHT),  # type: ignore[call-arg]
    "concatenate": (lambda x: torch.concatenate((x, x * 2), axis=1).sum(1, keepdim=True) * x, RIGHT),  # type: ignore[call-arg]
    "chunk": (lambda x: torch.chunk(x, chunks=2, dim=1)[0], RIGHT),
    "split": (lambda x: torch.split(x, split_size_or_sections=4, dim=1)[1], RIGHT),
    "split_method": (lambda x: x.split(split_size=4, dim=1)[1], RIGHT),
    "tensor_split": (lambda x: torch.tensor_split(x, sections=2, dim=1)[0], RIGHT),
    "stack_axis": (lambda x: torch.stack([x, x * 2], axis=1).sum(1), RIGHT),  # type: ignore[call-arg]
    "mean_input": (lambda x: x * torch.mean(input=x, dim=(2, 3), keepdim=True), RIGHT),
    "linear_input": (channels_last(lambda x: F.linear(input=x, weight=constant(8, 8))), RIGHT),
    "layer_norm_input": (channels_last(lambda x: F.layer_norm(input=x, normalized_shape=(8,))), RIGHT),
    "softmax_input": (lambda x: torch.softmax(input=x, dim=1), RIGHT),
    "normalize_input": (lambda x: F.normalize(input=x), RIGHT),
    "reshape_shape": (lambda x: torch.reshape(x, shape=(x.shape[0], 2, 4, *x.shape[2:])).sum(1), RIGHT),
    "permute_input": (lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)).permute(0, 3, 1, 2), RIGHT),
    "transpose_input": (lambda x: torch.transpose(input=x, dim0=1, dim1=0).transpose(0, 1), RIGHT),
    "unsqueeze_input": (lambda x: torch.unsqueeze(input=x, dim=1).sum(1), RIGHT),
    "flatten_input": (lambda x: torch.flatten(input=x.unflatten(1, (2, 4)), start_dim=1, end_dim=2), RIGHT),
    "expand_size": (lambda x: x[:, :1].expand(size=x.shape) * x, RIGHT),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, upscale_factor=2), RIGHT),
    "dropout": (lambda x: F.dropout(input=x, p=0.5, training=False), RIGHT),
    "relu": (lambda x: F.relu(input=x), RIGHT),
    "add": (lambda x: torch.add(input=x, other=x, alpha=2), RIGHT),
    "where": (lambda x: torch.where(condition=x > 0, input=x, other=-x), RIGHT),
    "where_one": (
        lambda x: torch.zeros_like(x).index_put(torch.where(x > 0), torch.tensor(1.0, dtype=x.dtype)),
        REFUSED,
    ),
    "max_pool": (lambda x: F.max_pool2d(input=x, kernel_size=3, stride=1, padding=1), RIGHT),
    "max_pool_method": (lambda x: torch.max_pool2d(x, kernel_size=[3], stride=[1], padding=[1]), RIGHT),
    "avg_pool": (
        lambda x: F.avg_pool2d(input=x, kernel_size=(3, 3), stride=1, padding=(1, 1), count_include_pad=False),
        RIGHT,
    ),
    "adaptive_pool": (lambda x: x * F.adaptive_avg_pool2d(input=x, output_size=1), RIGHT),
    "conv": (lambda x: F.conv2d(input=x, weight=constant(8, 8, 3, 3), padding=1), RIGHT),
    "conv_same": (lambda x: torch.conv2d(x, constant(8, 8, 3, 3), None, 1, "same"), RIGHT),
    "pad_keywords": (
        lambda x: F.conv2d(F.pad(input=x, pad=[1, 1, 1, 1], mode="constant", value=0.0), constant(8, 8, 3, 3)),
        RIGHT,
    ),
    "group_norm": (lambda x: F.group_norm(input=x, num_groups=2), RIGHT),
    "batch_norm": (lambda x: F.batch_norm(input=x, running_mean=None, running_var=None, training=True), RIGHT),
    "interpolate": (lambda x: F.interpolate(input=x, scale_factor=(2, 2), mode="nearest"), RIGHT),
    "squeeze": (lambda x: torch.squeeze(input=x[:, :1], dim=1)[:, None], RIGHT),
    "std_positional": (lambda x: x / x.std((2, 3), True)[..., None, None], RIGHT),
    "std_of_channels": (lambda x: x / x.std(1, True)[:, None], RIGHT),
    "norm_p": (lambda x: x / torch.norm(input=x, p=2, dim=(2, 3), keepdim=True), RIGHT),
    "linalg_norm": (lambda x: x / torch.linalg.norm(x, dim=(2, 3), keepdim=True), REFUSED),
    "matrix_norm": (lambda x: x / torch.linalg.norm(x, ord=2, dim=(2, 3), keepdim=True), REFUSED),
    "nuclear_norm": (lambda x: x / torch.norm(x, "nuc", dim=(2, 3), keepdim=True), REFUSED),
    "frobenius_norm": (lambda x: x / torch.norm(x, "fro", dim=(2, 3), keepdim=True), RIGHT),
    "mean_of_no_axis": (lambda x: x - x.mean(dim=()), RIGHT),
    "mean_of_none": (lambda x: x - x.mean(dim=None), RIGHT),
}
"""Functions called with arguments by name or in other forms, and what each comes to."""


@table(KEYWORD_FORMS, SIZES)
def test_odd_arguments(case: Function, block: tuple[int, int], expected: str) -> None:
    assert outcome_of(case, block) == expected


# What a network reads from `x.shape` is the size of the whole map; where that meets a tensor it is refused.
SIZES_READ: dict[str, tuple[Any, ...]] = {
    "sum_over_area": (lambda x: x - x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]), REFUSED),
    "simam": (lambda x: x / (x.square().sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] + 1)), REFUSED),
    "pool_by_size_gate": (lambda x: x * F.avg_pool2d(x, x.shape[2:]), RIGHT),
    "pool_by_size": (lambda x: F.avg_pool2d(x, x.size()[2:]), REFUSED),
    "pool_by_size_max": (lambda x: x * F.max_pool2d(x, kernel_size=x.size()[2:]), RIGHT),
    "pool_by_size_and_back": (lambda x: x + F.interpolate(F.avg_pool2d(x, x.shape[2:]), size=x.shape[2:]), RIGHT),
    "pool_to_its_own_size": (lambda x: x + F.adaptive_avg_pool2d(x, x.shape[2:]), RIGHT),
    "position_embedding": (lambda x: x + constant(1, CHANNELS, *x.shape[2:]), REFUSED),
    "position_embedding_interpolated": (
        lambda x: x + F.interpolate(constant(1, CHANNELS, 8, 12), size=x.shape[2:], mode="bilinear"),
        REFUSED,
    ),
    "position_embedding_cropped": (
        lambda x: x + constant(1, CHANNELS, 8, 12)[..., : x.shape[2], : x.shape[3]],
        REFUSED,
    ),
    "coordinates": (lambda x: x + torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype), REFUSED),
    "noise_by_position": (lambda x: x * constant(*x.shape[2:]), REFUSED),
    "scaled_by_size": (lambda x: x / x.shape[-1] ** 0.5, REFUSED),
    "written_constant": (
        lambda x: torch.cat([x, torch.ones_like(x[:, :1]) * torch.arange(x.shape[3])], 1),
        REFUSED,
    ),
}


@table(SIZES_READ, SIZES)
def test_sizes_read_from_a_patch(case: Function, block: tuple[int, int], expected: str) -> None:
    assert outcome_of(case, block) == expected


RESAMPLED: dict[str, tuple[Any, tuple[int, int], str]] = {
    "2, patches of 1 x 1": (2, (1, 1), REFUSED),
    "2, patches of 2 x 2": (2, (2, 2), REFUSED),
    "2, patches of 4 x 4": (2, (4, 4), REFUSED),
    "2, patches of 8 x 8": (2, (8, 8), REFUSED),
    "4, patches of 1 x 1": (4, (1, 1), REFUSED),
    "4, patches of 2 x 2": (4, (2, 2), REFUSED),
    "4, patches of 4 x 4": (4, (4, 4), REFUSED),
    "4, patches of 8 x 8": (4, (8, 8), REFUSED),
    "8, patches of 1 x 1": (8, (1, 1), REFUSED),
    "8, patches of 2 x 2": (8, (2, 2), REFUSED),
    "8, patches of 4 x 4": (8, (4, 4), REFUSED),
    "8, patches of 8 x 8": (8, (8, 8), REFUSED),
    "(4, 8), patches of 1 x 1": ((4, 8), (1, 1), REFUSED),
    "(4, 8), patches of 2 x 2": ((4, 8), (2, 2), REFUSED),
    "(4, 8), patches of 4 x 4": ((4, 8), (4, 4), REFUSED),
    "(4, 8), patches of 8 x 8": ((4, 8), (8, 8), REFUSED),
}


@pytest.mark.parametrize(("size", "block", "expected"), RESAMPLED.values(), ids=RESAMPLED)
def test_resampling_to_a_number_of_pixels(size: Any, block: tuple[int, int], expected: str) -> None:
    """A size written into the network is that of the whole map, which patches cannot be resampled to."""
    assert outcome_of(lambda x: F.interpolate(x, size=size), block) == expected


@pytest.mark.parametrize("block", [(2, 2), (4, 4)], ids=str)
def test_resampling_to_the_size_of_another_map(block: tuple[int, int]) -> None:
    """The usual way to bring a feature pyramid together must work."""
    assert right_or_refused(lambda x: x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]), block)
    assert right_or_refused(lambda x: x + F.interpolate(F.avg_pool2d(x, 2), x.shape[2:]), block)


NOISE_OF_AN_IMAGE: dict[str, tuple[Any, ...]] = {
    "new_empty": (lambda x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5), RIGHT),
    "new_empty_by_channel": (lambda x: x * x.new_empty(x.shape[0], x.shape[1], 1, 1).bernoulli_(0.5), RIGHT),
    "new_ones_by_channel": (lambda x: x * x.new_ones((*x.shape[:2], 1, 1)).uniform_(), RIGHT),
    "new_full_bernoulli": (
        lambda x: x * torch.bernoulli(x.new_full((x.shape[0], x.shape[1], 1, 1), 0.5)),
        RIGHT,
    ),
    "new_tensor_like": (lambda x: x * torch.rand_like(x.new_zeros((x.shape[0], x.shape[1], 1, 1))), RIGHT),
    "gate_like": (lambda x: x * torch.rand_like(x.mean((2, 3), keepdim=True)), RIGHT),
    "gate_dropout": (lambda x: x * F.dropout(x.mean((2, 3), keepdim=True) * 0 + 1, 0.5), RIGHT),
    "dropout2d": (lambda x: F.dropout2d(x, 0.5), RIGHT),
}
"""Noise that an image draws once."""


@table(NOISE_OF_AN_IMAGE, SIZES)
def test_noise_of_an_image_is_the_same_in_its_patches(case: Function, block: tuple[int, int], expected: str) -> None:
    grid = random_grid(batch=8)
    torch.manual_seed(0)
    ones = Apply(lambda x: case(x[:, :1].expand(-1, 8, -1, -1) * 0 + 1))
    try:
        (out,) = run(SparseExecution(grid), ones, images_of(block, batch=8))
    except UnsupportedOperation:
        assert expected == REFUSED
        return
    assert expected == RIGHT
    patches = grid.by_image(out)
    assert torch.equal(patches, patches[:, :1, :, :1, :1].expand_as(patches))
    assert len(out.unique()) > 1, "nothing was drawn"
