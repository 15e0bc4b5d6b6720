"""What an in-place write reaches is what it reaches in the ordinary network, however packed maps lie in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    BATCH,
    LARGE,
    REFUSED,
    RIGHT,
    SMALL,
    Apply,
    Host,
    all_visible,
    answer,
    assert_same_answer,
    constant,
    images_of,
    masked_dense,
    outcome,
    packed,
    random_grid,
)
from sparkmim.sparse import (
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    dense_fallback,
    require_compilable,
    run,
)

BLOCKS = pytest.mark.parametrize("block", [LARGE, SMALL], ids=["patches_4x2", "patches_1x1"])


def tokens(x: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, H * W, C)`, a view."""
    return x.flatten(2).transpose(1, 2)


def of_tokens(y: Tensor, x: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(x.shape)


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def first(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


def shuffled(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2)


Way = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]

WAYS: dict[str, Way] = {
    "contiguous": (lambda x: x.contiguous(), lambda y, x: y),
    "contiguous_twice": (lambda x: last(last(x).contiguous().permute(0, 3, 1, 2)).contiguous(), lambda y, x: first(y)),
    "channels_last": (lambda x: last(x).contiguous(), lambda y, x: first(y)),
    "channels_last_by_movedim": (lambda x: x.movedim(1, -1).contiguous(), lambda y, x: first(y)),
    "channels_last_by_name": (lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)).contiguous(), lambda y, x: first(y)),
    "transposed_by_name": (
        lambda x: torch.transpose(dim1=1, dim0=3, input=x).contiguous(),
        lambda y, x: y.transpose(dim1=3, dim0=1),
    ),
    "channels_last_by_reshape": (lambda x: last(x).reshape(last(x).shape), lambda y, x: first(y)),
    "channels_last_and_back": (lambda x: first(last(x)).contiguous(), lambda y, x: y),
    "clone": (lambda x: last(x).clone(), lambda y, x: first(y)),
    "format": (lambda x: x.contiguous(memory_format=torch.channels_last), lambda y, x: y),
    "format_by_position": (lambda x: x.to(torch.float64, memory_format=torch.channels_last), lambda y, x: y),
    "format_twice": (lambda x: x.contiguous(memory_format=torch.channels_last).contiguous(), lambda y, x: y),
    "format_kept": (
        lambda x: (z := x.to(memory_format=torch.channels_last)) + 0 * z.contiguous(memory_format=torch.channels_last),
        lambda y, x: y,
    ),
    "format_preserved": (lambda x: last(x).to(memory_format=torch.preserve_format), lambda y, x: first(y)),
    "format_contiguous": (lambda x: first(last(x)).to(memory_format=torch.contiguous_format), lambda y, x: y),
    "same_dtype": (lambda x: last(x).to(x.dtype).double().type_as(x), lambda y, x: first(y)),
    "other_dtype": (lambda x: last(x).float().double(), lambda y, x: first(y)),
    "tokens": (tokens, of_tokens),
    "tokens_contiguous": (lambda x: tokens(x).contiguous(), of_tokens),
    "tokens_by_reshape": (lambda x: last(x).reshape(x.shape[0], x.shape[2] * x.shape[3], x.shape[1]), of_tokens),
    "tokens_by_flatten": (lambda x: last(x).flatten(1, 2), of_tokens),
    "flattened": (lambda x: x.reshape(*x.shape[:2], -1), lambda y, x: y.reshape(x.shape)),
    "shuffled": (lambda x: shuffled(x).contiguous().view(x.shape), lambda y, x: y),
    "shuffled_by_reshape": (lambda x: shuffled(x).reshape(x.shape), lambda y, x: y),
    "shuffled_by_flatten": (lambda x: shuffled(x).flatten(1, 2), lambda y, x: y),
    "chunk": (lambda x: x.chunk(2, 1)[1].contiguous(), lambda y, x: torch.cat([y, y], 1)),
    "narrow": (lambda x: last(x).narrow(-1, 2, 4).flatten(3), lambda y, x: torch.cat([first(y)] * 2, 1)),
    "selected": (lambda x: x[:, 3].contiguous(), lambda y, x: y[:, None]),
    "sliced": (lambda x: x[:, 2:6].contiguous(), lambda y, x: torch.cat([y, y], 1)),
    "every_other": (lambda x: x[:, ::2].contiguous(), lambda y, x: torch.cat([y, y], 1)),
    "squeezed": (lambda x: x.unsqueeze(2).contiguous().squeeze(2), lambda y, x: y),
    "unflattened": (lambda x: last(x).unflatten(-1, (2, 4)).flatten(3), lambda y, x: first(y)),
    "after_mul": (lambda x: (last(x) * constant(8)).contiguous(), lambda y, x: first(y)),
    "after_linear": (lambda x: first(F.linear(last(x), constant(8, 8))).contiguous(), lambda y, x: y),
    "per_image": (lambda x: x.mean((2, 3)).contiguous(), lambda y, x: y[..., None, None]),
}  # fmt: skip
"""Functions of a map that the ordinary network answers by a view or a copy, and their way back to a map."""

WRITES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda y: y.mul_(2),
    "relu": lambda y: F.relu(y, inplace=True),
    "operator": lambda y: operator.iadd(y, 1.5),
    "part": lambda y: y.__setitem__(..., 0.5 * y),
    "data": lambda y: y.data.add_(1),
    "view": lambda y: y.unsqueeze(1).clamp_(min=0),
}


def compared(function: Callable[[Tensor], Tensor] | nn.Module, block: tuple[int, int]) -> None:
    """Compare both executions with the ordinary network, nothing hidden, in values and gradients."""
    network, grid, images = Host(function), all_visible(), images_of(block)
    expected = answer(network, network, images)
    assert_same_answer(answer(network, packed(network, grid), images), expected, "packed")
    assert_same_answer(answer(network, masked_dense(network, grid), images), expected, "masked-dense")


def writing(way: str, write: str, to_copy: bool) -> Callable[[Tensor], Tensor]:
    """Return a function of a map that writes to what was made of it, or to it, and uses both afterwards."""
    there, back = WAYS[way]

    def function(x: Tensor) -> Tensor:
        z = x * 1.0
        y = there(z)
        WRITES[write](y if to_copy else z)
        return z + back(y, z)

    return function


@BLOCKS
@pytest.mark.parametrize("way", WAYS)
def test_writing_to_what_may_be_a_copy(way: str, block: tuple[int, int]) -> None:
    compared(writing(way, "relu", to_copy=True), block)


@pytest.mark.parametrize("way", WAYS)
def test_writing_to_what_may_have_been_copied(way: str) -> None:
    compared(writing(way, "relu", to_copy=False), SMALL)


@pytest.mark.parametrize("way", ["contiguous", "channels_last", "tokens_by_reshape"])
@pytest.mark.parametrize("write", WRITES)
def test_every_form_of_writing(way: str, write: str) -> None:
    compared(writing(way, write, to_copy=True), LARGE)


def by_channels_last(x: Tensor) -> Tensor:
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), constant(8, 8, 1, 1))


@BLOCKS
@pytest.mark.parametrize("way", WAYS)
def test_writing_within_and_behind_a_dense_fallback(way: str, block: tuple[int, int]) -> None:
    """The module gets maps that lie in memory as the ordinary network's, and what it makes is known to lie so."""
    write = writing(way, "relu", to_copy=True)
    within, behind = dense_fallback(Apply(write)), dense_fallback(Apply(by_channels_last))
    compared(within, block)
    compared(nn.Sequential(Apply(lambda x: first(last(x).contiguous())), within), block)
    compared(nn.Sequential(behind, Apply(write)), block)


SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "copied_and_back": lambda x: first(last(x).contiguous()),
    "reshaped_and_back": lambda x: first(last(x).reshape(last(x).shape)),
    "format": lambda x: x.to(memory_format=torch.channels_last),
    "format_and_back": lambda x: x.to(memory_format=torch.channels_last).contiguous(),
    "rows_and_columns": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "cloned_and_back": lambda x: first(last(x).contiguous().clone()),
    "normed_and_back": lambda x: first(F.layer_norm(last(x), (8,))),
}  # fmt: skip
"""How the map lies in memory that a network then views or copies."""


@pytest.mark.parametrize("way", ["contiguous", "channels_last", "format", "tokens_contiguous", "flattened", "clone"])
@pytest.mark.parametrize("source", SOURCES)
def test_writing_from_maps_that_lie_otherwise(source: str, way: str) -> None:
    compared(lambda x: writing(way, "relu", to_copy=True)(SOURCES[source](x)), SMALL)


def test_writing_on_maps_that_become_coarser() -> None:
    """Where positions begin to hold several patches, how maps lie in memory is remembered (seed 2097 at random)."""

    def function(x: Tensor) -> Tensor:
        made = F.conv2d(first(last(x).contiguous()), constant(8, 8, 2, 2), stride=2)
        copy = last(made).contiguous()
        copy[..., :4] = 0
        return made + first(copy)

    visible = torch.ones(BATCH, 4, 4, dtype=torch.bool)
    network, images = Host(function), torch.randn(BATCH, 3, 4, 4, dtype=torch.float64)
    for execution in (SparseExecution(PatchGrid(visible, 16)), MaskedDenseExecution(PatchGrid(visible, 16))):
        with pytest.raises(UnsupportedOperation, match="how the ordinary network's maps lie in memory"):
            whole(execution, network, images)


# --- where the ordinary network's memory is not known ----------------------------------------------------------------


def unknown(x: Tensor) -> Tensor:
    """A map whose memory depends on the device in the ordinary network: a convolution's of one with channels last."""
    return F.conv2d(x.contiguous(memory_format=torch.channels_last), constant(8, 8, 3, 3), padding=1)


def written(y: Tensor) -> Tensor:
    y.relu_()
    return y


DOUBTFUL: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "copy_written_and_both_used": (lambda x: (z := unknown(x)) * first(written(last(z).contiguous())), REFUSED),
    "source_written_and_both_used": (lambda x: (y := (z := unknown(x)).contiguous()) * written(z) + y, REFUSED),
    "source_as_result": (lambda x: (z := unknown(x), written(z.contiguous()))[0], REFUSED),
    "copy_written_and_used": (lambda x: first(written(last(unknown(x)).contiguous())), RIGHT),
    "copy_written_through_a_view": (lambda x: (z := unknown(x)) * (written(z.contiguous()[:, 1:]), z)[1], REFUSED),
    "reshaped": (lambda x: (z := unknown(x)) * first(written(last(z).reshape(last(z).shape))), RIGHT),
    "flattened": (lambda x: (z := unknown(x)) * of_tokens(written(last(z).flatten(1, 2)), z), REFUSED),
    "two_doubts": (lambda x: (z := unknown(x)) * of_tokens(written(tokens(z).contiguous()), z), REFUSED),
    "cloned_first": (lambda x: (z := unknown(x)) * first(written(last(z).contiguous().clone())), RIGHT),
    "not_written": (lambda x: (z := unknown(x)) * first(last(z).contiguous()), RIGHT),
    "other_map_written": (lambda x: (z := unknown(x)) * first(last(z).contiguous()) + written(unknown(x)), RIGHT),
}  # fmt: skip


@BLOCKS
@pytest.mark.parametrize("case", DOUBTFUL)
def test_refused_where_it_depends_on_the_device(case: str, block: tuple[int, int]) -> None:
    function, expected = DOUBTFUL[case]
    assert outcome(function, block) == expected


def every_other(write: Callable[[Tensor, Tensor], Tensor], copies: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that writes to a map or to its every other position, with the slice copied first or not."""

    def function(x: Tensor) -> Tensor:
        made = x * 1
        part = made[..., ::2, ::2]
        return write(made, part.clone() if copies else part)

    return function


WRITES_TO_SLICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "to the slice": lambda made, part: (part.mul_(2), F.avg_pool2d(made, 2))[1],
    "to the map": lambda made, part: (made.mul_(2), part * 1)[1],
    "to the map, both used": lambda made, part: (made.mul_(2), F.avg_pool2d(made, 2) + part)[1],
    "to the slice, both used": lambda made, part: (part.relu_(), F.avg_pool2d(made, 2) + part)[1],
}


@pytest.mark.parametrize("write", WRITES_TO_SLICES.values(), ids=WRITES_TO_SLICES)
def test_slices_of_one_pixel_patches(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The slice is a copy here and a view in the ordinary network: refused, and right after the `clone()` advised."""
    visible = torch.rand(BATCH, 16, generator=torch.Generator().manual_seed(0)).argsort(1).lt(9).view(BATCH, 4, 4)
    grid, images = PatchGrid(visible, 9), torch.randn(BATCH, 3, 4, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedOperation, match=r"written to in place.*clone\(\) first"):
        packed(Host(every_other(write, copies=False)), grid)(images)
    network = Host(every_other(write, copies=True))
    torch.testing.assert_close(
        whole(SparseExecution(grid), network, images), whole(MaskedDenseExecution(grid), network, images)
    )
    everything = PatchGrid(torch.ones_like(visible), 16)
    torch.testing.assert_close(whole(SparseExecution(everything), network, images), network(images))
    in_larger_patches = PatchGrid(torch.ones(BATCH, 2, 2, dtype=torch.bool), 4)
    view = Host(every_other(write, copies=False))
    torch.testing.assert_close(packed(view, in_larger_patches)(images), view(images))


def whole(execution: SparseExecution | MaskedDenseExecution, network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's map, whose positions may hold several patches."""
    return execution.whole_map(run(execution, network, images)[0])


def test_inference_mode_refuses_what_it_cannot_see() -> None:
    """Torch counts no writes there."""
    function, _ = DOUBTFUL["copy_written_and_both_used"]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="how the ordinary network's maps lie in memory"):
        packed(Host(function), random_grid(BATCH))(images_of(LARGE))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("way", ["contiguous", "channels_last", "clone", "format", "shuffled", "same_dtype", "narrow"])
def test_compiled(way: str) -> None:
    network, grid = Host(writing(way, "relu", to_copy=True)), all_visible()
    require_compilable(grid, network, images_of(SMALL))
    compiled = torch.compile(packed(network, grid), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images_of(SMALL)), network(images_of(SMALL)))


def test_contiguous_maps_are_not_copied() -> None:
    """Neither where the ordinary network copies nothing, nor where packed maps lie otherwise."""
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        copies = x.contiguous(), x.reshape(*x.shape[:2], -1)
        with torch._C.DisableTorchFunction():
            seen.extend(copy.data_ptr() == x.data_ptr() for copy in copies)
        return x

    packed(Host(function), random_grid(BATCH))(images_of(LARGE))
    assert seen == [True, True]
