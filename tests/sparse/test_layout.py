"""What the axes of a tensor mean is followed through whatever a network does to them.

Three truths hold whatever a function answers, in values and gradients: with nothing hidden the packed result is the
ordinary network's; with a rectangle visible it is the ordinary network's on the cropped images; with a random mask it
is the masked-dense oracle's. The first two matter most here, because both executions share the rules under test.

Everything is asked twice, of patches of 4 x 2 and of 1 x 1 pixels: there a position has no extent, so a rule that
looked at sizes would answer differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim.sparse import (
    Execution,
    Layout,
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    run,
)
from sparkmim.sparse.registry import RULES

BATCH, CHANNELS, GRID = 2, 8, (2, 3)
LARGE, SMALL = (4, 2), (1, 1)
BLOCKS = pytest.mark.parametrize("block", [LARGE, SMALL], ids=["patches_4x2", "patches_1x1"])

Function = Callable[[Tensor], Tensor]


def constant(*shape: int) -> Tensor:
    """Something that does not descend from the input, the same in every run."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5


# --- the three truths -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Host(nn.Module):
    """The function between a convolution and a pooling, which both look across the borders of patches."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.stem.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
        self.block = Block(function)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.block(self.stem(x)), 3, 1, 1)


class Answer(NamedTuple):
    """The result of a network on whole images, zero where hidden, and the gradients of images and parameters."""

    out: Tensor
    grads: list[Tensor]


def answer(network: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Answer:
    """Of `run`, which calls the network on images."""
    images = images.clone().requires_grad_(torch.is_grad_enabled())
    out = run(images)
    if not torch.is_grad_enabled():
        return Answer(out, [])
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return Answer(out.detach(), list(torch.autograd.grad((out * projection).sum(), [images, *network.parameters()])))


def assert_same(found: Answer, expected: Answer, truth: str) -> None:
    assert found.out.shape == expected.out.shape, f"{truth}: {tuple(found.out.shape)}, not {tuple(expected.out.shape)}"
    torch.testing.assert_close(found.out, expected.out, msg=lambda m: f"{truth}, values: {m}")
    for got, wanted in zip(found.grads, expected.grads, strict=True):
        torch.testing.assert_close(got, wanted, msg=lambda m: f"{truth}, gradients: {m}")


def packed(network: nn.Module, grid: PatchGrid) -> Callable[[Tensor], Tensor]:
    return lambda images: grid.unpack(run(SparseExecution(grid), network, images)[0])


def masked_dense(network: nn.Module, grid: PatchGrid) -> Callable[[Tensor], Tensor]:
    return lambda images: grid.unpack(grid.pack(run(MaskedDenseExecution(grid), network, images)[0]))


def random_grid(batch: int = BATCH) -> PatchGrid:
    cells = torch.rand(batch, 6, generator=torch.Generator().manual_seed(7)).argsort(1)
    return PatchGrid((cells < 3).view(batch, *GRID), 3)


def outcome(function: Function, block: tuple[int, int], batch: int = BATCH) -> str:
    """ "refusal", or "result" after having checked the result against all three truths."""
    network = Host(function)
    size = tuple(g * b for g, b in zip(GRID, block, strict=True))
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    grid = random_grid(batch)
    try:
        found = answer(network, packed(network, grid), images)
    except UnsupportedOperation:
        return "refusal"

    all_visible = PatchGrid(torch.ones(batch, *GRID, dtype=torch.bool), 6)
    identity = answer(network, packed(network, all_visible), images)
    assert_same(identity, answer(network, network, images), "nothing hidden")

    rectangle = torch.zeros(batch, *GRID, dtype=torch.bool)
    rectangle[:, :, 1:] = True
    crop = answer(network, all_but_first_column(packed(network, PatchGrid(rectangle, 4))), images)
    crop_grads = [g[..., block[1] :] if i == 0 else g for i, g in enumerate(crop.grads)]
    expected = answer(network, network, images[..., block[1] :])
    assert_same(Answer(crop.out, crop_grads), expected, "a rectangle visible")

    assert_same(found, answer(network, masked_dense(network, grid), images), "random mask")
    return "result"


def all_but_first_column(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of patches."""

    def cropped(images: Tensor) -> Tensor:
        out = run(images)
        return out[..., out.shape[-1] // GRID[1] :]

    return cropped


def cases(functions: dict[str, Function]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", list(functions.values()), ids=list(functions))


# --- the truths themselves can fail ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept_rules")
def test_a_wrong_rule_is_noticed() -> None:
    """A rule that lets a function mix positions inside a patch is caught by the truths."""
    assert outcome(lambda x: x.cumprod(1), LARGE) == "refusal"

    @Execution.register(torch.Tensor.cumprod)
    def rule(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layout = execution.layout(x)
        assert layout is not None
        return execution.mark(func(x, *args, **kwargs), layout)

    assert outcome(lambda x: x.cumprod(1), LARGE) == "result"
    with pytest.raises(AssertionError, match="nothing hidden"):
        outcome(lambda x: x.cumprod(2), LARGE)


# --- functions that must work, for patches of any size --------------------------------------------------------------


def nhwc(function: Function) -> Function:
    """`function` of the map with its channels last."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def on_a_copy(function: Callable[[Tensor], Any]) -> Function:
    """The copy after `function` wrote in it."""

    def wrapped(x: Tensor) -> Tensor:
        copy = x * 1.0
        function(copy)
        return copy

    return wrapped


def written(index: Any, value: Callable[[Tensor], Any]) -> Function:
    def assign(x: Tensor) -> None:
        x[index] = value(x)

    return on_a_copy(assign)


ALL = slice(None)

MOVED = {
    "permute": lambda x: (x.permute(0, 2, 3, 1) * constant(8)).permute(0, 3, 1, 2),
    "permute_negative": lambda x: (x.permute(0, -2, -1, -3) * constant(8)).permute(0, -1, 1, 2),
    "permute_of_a_tuple": lambda x: (torch.permute(x, (0, 2, 3, 1)) * constant(8)).permute((0, 3, 1, 2)),
    "permute_keyword": lambda x: (x.permute(dims=(0, 2, 3, 1)) * constant(8)).permute(dims=[0, 3, 1, 2]),
    "samples_second": lambda x: x.permute(1, 0, 2, 3).softmax(0).permute(1, 0, 2, 3),
    "samples_last": lambda x: (x.permute(1, 2, 3, 0) * constant(8, 1, 1, 1)).permute(3, 0, 1, 2),
    "space_swapped_and_back": lambda x: (x.transpose(2, 3) * 2 + x.permute(0, 1, 3, 2)).transpose(-1, -2),
    "transpose": lambda x: (x.transpose(1, 3) * constant(8)).transpose(1, -1),
    "transpose_keyword": lambda x: torch.transpose(torch.transpose(x, dim0=1, dim1=2), 1, 2),
    "swapaxes": lambda x: (x.swapaxes(1, 3) * constant(8)).swapdims(3, 1),
    "movedim": lambda x: (x.movedim(1, -1) * constant(8)).movedim(-1, 1),
    "movedim_of_several": lambda x: (torch.movedim(x, (0, 1), (1, 0)) * constant(8, 1, 1, 1)).moveaxis((1, 0), (0, 1)),
    "shuffle": lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).contiguous().view(x.shape),
    "shuffle_reshape": lambda x: (
        x.reshape(x.size(0), 4, 2, x.size(2), x.size(3)).transpose(1, 2).reshape(x.size(0), -1, x.size(2), x.size(3))
    ),
    "shuffle_chunk_and_view": lambda x: x.view(x.shape[0], 2, -1, x.shape[2], x.shape[3])[:, 1],
    "radix": lambda x: x.reshape(x.shape[0], 2, 4, *x.shape[2:]).sum(dim=1),
    "radix_softmax": lambda x: x.reshape([x.shape[0], 2, 4, *x.shape[2:]]).softmax(1).reshape(x.shape),
    "split_last": nhwc(lambda x: x.reshape(*x.shape[:3], 2, 4).softmax(-1).reshape(x.shape)),
    "view_as": lambda x: (x.view(x.shape[0], 2, 4, *x.shape[2:]) * 2).view_as(x),
    "reshape_as": lambda x: (x.view(x.shape[0], 2, 4, *x.shape[2:]) * 2).reshape_as(x),
    "one_group": lambda x: x.view(x.shape[0], 1, 8, *x.shape[2:]).softmax(2).view(x.shape),
    "flatten_channels": lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:]).flatten(1, 2),
    "flatten_negative": lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:]).flatten(start_dim=-4, end_dim=-3),
    "flatten_nothing": lambda x: x.flatten(1, 1) * 2,
    "flatten_an_axis_of_one": lambda x: x.unsqueeze(2).flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 4)).softmax(1).flatten(1, 2),
    "unflatten_unknown": lambda x: torch.unflatten(x, -3, (2, -1)).softmax(2).flatten(1, 2),
    "unflatten_to_one": lambda x: (x.unflatten(1, (8, 1)) * constant(3, 1, 1)).flatten(1, 2),
    "unflatten_from_one": lambda x: (x.unflatten(1, (1, 8)) * constant(3, 1, 1, 1)).flatten(1, 2),
    "unsqueeze": lambda x: (x.unsqueeze(1) * constant(3, 1, 1, 1)).sum(1),
    "unsqueeze_last": lambda x: (x.unsqueeze(-1) * constant(3)).sum(-1),
    "unsqueeze_front": lambda x: (x.unsqueeze(0) * constant(3, 1, 1, 1, 1)).sum(0),
    "unsqueeze_between_space": lambda x: (x.unsqueeze(3) * constant(3, 1)).sum(-2),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1).unsqueeze(1),
    "squeeze_of_several": lambda x: x[:, :1].unsqueeze(-1).squeeze((1, -1))[:, None],
    "squeeze_of_eight": lambda x: x.squeeze(1) * 2,
    "expand": lambda x: (x.unsqueeze(1).expand(-1, 3, -1, -1, -1) * constant(3, 8, 1, 1)).sum(1),
    "expand_front": lambda x: (x.expand(3, *x.shape) * constant(3, 1, 1, 1, 1)).sum(0),
    "expand_channels": lambda x: x[:, :1].expand([-1, 8, -1, -1]) * x,
    "expand_as": lambda x: x.mean(1, keepdim=True).expand_as(x) * x,
    "expand_constant_as": lambda x: constant(1, 8, 1, 1).expand_as(x) * x,
    "expand_gate_as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x) * x,
}

JOINED = {
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "cat_keyword": lambda x: torch.cat(tensors=(x, x.relu(), x * 2), dim=-3),
    "cat_axis": lambda x: torch.cat([x, x * 2], axis=1),
    "concatenate_axis": lambda x: torch.concatenate((x, x * 2), axis=1).sum(1, keepdim=True) * x,
    "concat_last": nhwc(lambda x: torch.concat([x, x * 2], dim=-1)),
    "cat_gates": lambda x: x * torch.cat([x.mean((2, 3), True), x.amax((2, 3), True)], 1)[:, 4:12],
    "cat_samples_second": lambda x: torch.cat([x.transpose(0, 1)] * 2, 0).transpose(0, 1),
    "stack": lambda x: (torch.stack([x, x.relu()], dim=1) * constant(2, 1, 1, 1)).sum(1),
    "stack_last": lambda x: (torch.stack((x, x.relu()), -1) * constant(2)).sum(-1),
    "stack_first": lambda x: (torch.stack((x, x.relu())) * constant(2, 1, 1, 1, 1)).sum(0),
    "chunk": lambda x: torch.mul(*x.chunk(2, 1)),
    "chunk_keyword": lambda x: torch.mul(*torch.chunk(x, 2, dim=-3)),
    "chunk_last": nhwc(lambda x: torch.mul(*x.chunk(2, -1))),
    "split": lambda x: sum(x.split(2, 1)),
    "split_sizes": lambda x: torch.cat(torch.split(x, [1, 3, 4], dim=1)[::-1], 1),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, (3,), dim=1)[::-1], 1),
    "unbind": lambda x: torch.mul(*x.unflatten(1, (2, 4)).unbind(1)),
    "unbind_nothing_left": lambda x: torch.stack(x.unbind(1)[::-1], 1),
}

INDEXED = {
    "channels": lambda x: x[:, 2:6],
    "channels_backwards": lambda x: x[:, -3:],
    "every_other_channel": lambda x: x[:, 1::2],
    "one_channel": lambda x: x[:, 3][:, None] * x,
    "last_channel": lambda x: x[:, -1].unsqueeze(1),
    "new_axis": lambda x: (x[:, None] * constant(3, 1, 1, 1))[:, 1],
    "new_last_axis": lambda x: (x[..., None] * constant(3))[..., 2],
    "new_first_axis": lambda x: (x[None] * constant(3, 1, 1, 1, 1))[1],
    "everything": lambda x: x[...] + x[:] + x[()] + x[:, :, :, :] + x[0:, ...],
    "ellipsis_last": nhwc(lambda x: x[..., :4]),
    "ellipsis_first": nhwc(lambda x: x[..., 5, None]),
    "select": lambda x: x.select(1, 2).unsqueeze(1) * x,
    "select_keyword": lambda x: torch.select(x, dim=1, index=-2).unsqueeze(1) * x,
    "narrow": lambda x: x.narrow(1, 2, 4),
    "narrow_keyword": lambda x: torch.narrow(x, dim=-3, start=1, length=2),
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 1, 1])),
    "write_channels": written((ALL, slice(0, 2)), lambda x: 0.0),
    "write_one_channel": written((ALL, 2), lambda x: x[:, 3] * 2),
    "write_map": written((ALL, slice(0, 4)), lambda x: x[:, 4:]),
    "write_gate": written((ALL, slice(0, 4)), lambda x: x[:, 4:].mean((2, 3), keepdim=True)),
    "write_constant": written((ALL, slice(0, 4)), lambda x: constant(4, 1, 1)),
    "write_last": nhwc(written((..., 0), lambda x: x[..., 1])),
    "write_everything": written((), lambda x: x * 2),
}

ALONG_CHANNELS = {
    "softmax": lambda x: x.softmax(1),
    "softmax_negative": lambda x: F.softmax(x, dim=-3),
    "softmax_named_input": lambda x: F.softmax(input=x, dim=1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "softmin_last": nhwc(lambda x: F.softmin(x, -1)),
    "glu": lambda x: F.glu(x, 1),
    "glu_last": nhwc(F.glu),
    "cumsum": lambda x: x.cumsum(dim=1),
    "flip": lambda x: x.flip(1),
    "flip_tuple": lambda x: torch.flip(x, dims=[1]),
    "flip_two": lambda x: x.unflatten(1, (2, 4)).flip(1, 2).flatten(1, 2),
    "roll": lambda x: x.roll(3, 1),
    "roll_keyword": lambda x: torch.roll(x, shifts=-2, dims=1),
    "normalize": F.normalize,
    "normalize_other_norm": lambda x: F.normalize(x, 1.0, 1),
    "normalize_last": nhwc(lambda x: F.normalize(x, dim=-1)),
    "linear": nhwc(lambda x: F.linear(x, constant(5, 8), constant(5))),
    "matmul": nhwc(lambda x: x @ constant(8, 5)),
    "layer_norm": nhwc(lambda x: F.layer_norm(x, (8,), constant(8), constant(8))),
    "layer_norm_int": nhwc(lambda x: F.layer_norm(x, [8])),
    "layer_norm_of_groups": nhwc(lambda x: F.layer_norm(x.unflatten(-1, (2, 4)), (2, 4)).flatten(-2)),
    "rms_norm": nhwc(lambda x: F.rms_norm(x, (8,))),
    "convnext": nhwc(lambda x: F.linear(F.gelu(F.linear(F.layer_norm(x, (8,)), constant(16, 8))), constant(8, 16))),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "mean_without_axis": lambda x: x * x.mean(1)[:, None],
    "mean_last": nhwc(lambda x: x - x.mean(-1, True)),
    "std": lambda x: x / x.std(1, keepdim=True),
    "std_unbiased_by_position": lambda x: x / x.std(1, True).unsqueeze(1),
    "var_biased_by_position": lambda x: x / x.var(1, False).unsqueeze(1),
    "var_mean": lambda x: x - torch.var_mean(x, 1, keepdim=True)[1],
    "layer_norm_2d": lambda x: (x - x.mean(1, True)) * torch.rsqrt(x.var(1, unbiased=False, keepdim=True) + 1e-6),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "norm_by_position": lambda x: x / x.norm(2, 1, True),
    "vector_norm": lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "linalg_norm": lambda x: x / torch.linalg.norm(x, dim=1, keepdim=True),
    "logsumexp": lambda x: x - x.logsumexp(1, True),
    "amax": lambda x: x - x.amax(dim=-3, keepdim=True),
    "sum_of_groups": lambda x: x.unflatten(1, (2, 4)).sum((1,)),
    "sum_axis": lambda x: x * torch.sum(x, axis=1, keepdims=True),
    "prelu": lambda x: F.prelu(x, constant(8)),
    "prelu_shared": lambda x: F.prelu(x, constant(1)),
}

POINTWISE = {
    "constant_first": lambda x: constant(8, 1, 1) * x + constant(1, 8, 1, 1) - x,
    "number_first": lambda x: 1 / (1 + x * x) + 2**x - (3 - x),
    "fewer_axes": lambda x: x * constant(1) + constant(1, 1),
    "more_axes": lambda x: (constant(3, 1, 1, 1, 1) * x).sum(0),
    "zero_axes": lambda x: x * constant() + torch.tensor(2.0),
    "addcmul": lambda x: torch.addcmul(constant(8, 1, 1), x, x * 2, value=0.5),
    "lerp": lambda x: torch.lerp(x, x * x, constant(8, 1, 1)),
    "where_numbers": lambda x: torch.where(x > 0, 1.0, 2.0) * x,
    "where": lambda x: torch.where(x > constant(8, 1, 1), x, -x),
    "where_method": lambda x: x.where(x > 0, constant(8, 1, 1)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.3),
    "masked_fill_of_a_constant": lambda x: constant(1, 8, 1, 1).masked_fill(x < 0, 0.0) * x,
    "clamp_by_tensors": lambda x: x.clamp(min=-constant(8, 1, 1), max=constant(8, 1, 1)),
    "comparison": lambda x: x * (x > 0) * (~(x > 1)),
    "to": lambda x: x.to(torch.float32).to(x.dtype) + x.detach() * x + x.data,
    "type_as_own": lambda x: (x > 0).type_as(x) * x,
    "constant_to": lambda x: x * constant(8, 1, 1).float().to(x),
    "constant_type_as": lambda x: x * constant(1, 8, 1, 1).float().type_as(x),
    "to_constant": lambda x: x.to(constant(3)),
    "zeros_like": lambda x: torch.zeros_like(x) + torch.full_like(x, 2.0) * x,
    "in_place": on_a_copy(lambda x: x.add_(1).mul_(x.relu()).clamp_(max=3)),
    "in_place_operators": lambda x: Inplace.operators(x),
    "in_place_by_argument": on_a_copy(lambda x: F.relu(x, inplace=True)),
    "in_place_by_function": on_a_copy(torch.sigmoid_),
    "in_place_part": on_a_copy(lambda x: x[:, :3].mul_(3)),
    "in_place_view": on_a_copy(lambda x: x.unflatten(1, (2, 4))[:, 0].fill_(2)),
    "in_place_permuted": on_a_copy(lambda x: x.permute(0, 2, 3, 1).mul_(constant(8))),
    "in_place_copy": on_a_copy(lambda x: x.copy_(x * 2)),
    "in_place_gate": on_a_copy(lambda x: x.mul_(x.mean((2, 3), keepdim=True))),
}


class Inplace:
    @staticmethod
    def operators(x: Tensor) -> Tensor:
        y = x * 1.0
        y += x
        y *= constant(8, 1, 1)
        y -= x.mean((2, 3), keepdim=True)
        y /= 2
        return y


GATES = {
    "squeeze_excite": lambda x: x * F.conv2d(x.mean((2, 3), keepdim=True), constant(8, 8, 1, 1)).sigmoid(),
    "linear_and_view": lambda x: x * F.linear(x.mean((2, 3)), constant(8, 8)).view(x.shape[0], -1, 1, 1),
    "linear_and_none": lambda x: x * F.linear(x.mean([-1, -2]), constant(8, 8))[:, :, None, None],
    "channels_last": nhwc(lambda x: x * F.linear(x.mean((1, 2), keepdim=True), constant(8, 8)).sigmoid()),
    "channels_last_viewed": nhwc(lambda x: x * x.mean((1, 2)).view(x.shape[0], 1, 1, -1)),
    "eca": lambda x: (
        x * F.conv1d(x.mean((2, 3)).view(x.shape[0], 1, -1), constant(1, 1, 3), padding=1).view(x.shape[0], -1, 1, 1)
    ),
    "adaptive_pool": lambda x: x * F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, (1, 1)),
    "gate_first": lambda x: x.mean((2, 3), keepdim=True) - x,
    "gate_of_image": lambda x: x - x.mean((1, 2, 3), keepdim=True),
    "gate_of_image_viewed": lambda x: x - x.mean((1, 2, 3)).view(-1, 1, 1, 1),
    "grn": nhwc(
        lambda x: (
            x * (x.norm(p=2, dim=(1, 2), keepdim=True) / x.norm(p=2, dim=(1, 2), keepdim=True).mean(-1, keepdim=True))
        )
    ),
    "where_gate": lambda x: torch.where(x.mean((2, 3), keepdim=True) > 0, x, -x),
    "lerp_gate": lambda x: torch.lerp(x, x * x, x.mean((2, 3), keepdim=True)),
    "addcmul_gate": lambda x: torch.addcmul(x, x, x.mean((2, 3), keepdim=True)),
    "selective": lambda x: (
        x.unflatten(1, (2, 4)) * F.softmax(x.mean((2, 3)).view(x.shape[0], 2, 4), 1)[..., None, None]
    ).sum(1),
    "split_attention": lambda x: (
        x.reshape(x.shape[0], 2, 4, *x.shape[2:])
        * x.mean((2, 3), keepdim=True).view(x.shape[0], 1, 2, -1).transpose(1, 2).softmax(1).reshape(-1, 2, 4, 1, 1)
    ).sum(1),
    "std_biased": lambda x: x / x.std((2, 3), False)[:, :, None, None],
    "std_unbiased": lambda x: x / x.std((2, 3), True)[:, :, None, None],
    "std_of_one_channel": lambda x: x / x[:, :1].std((2, 3), True)[:, :, None, None],
    "std_by_position": lambda x: x / x.std((2, 3), True, True),
    "std_correction": lambda x: x / torch.std(x, dim=(2, 3), correction=0, keepdim=True),
    "std_mean": lambda x: torch.div(*torch.std_mean(x, (2, 3), keepdim=True)[::-1]) * x,
    "var": lambda x: x / x.var(dim=(3, 2), unbiased=False, keepdim=True),
    "logsumexp": lambda x: x - torch.logsumexp(x, (2, 3), True),
    "amax_list": lambda x: x - x.amax([2, 3], True),
    "amin": lambda x: x - torch.amin(x, dim=(-2, -1), keepdim=True),
    "sum_axis": lambda x: x * torch.sum(x, axis=(2, 3), keepdims=True),
    "sum_by_position": lambda x: x * x.sum((2, 3))[..., None, None],
    "norm_by_position": lambda x: x / x.norm(2, (2, 3), True),
    "normalize": lambda x: F.normalize(x, dim=(2, 3)),
    "norm_infinite": lambda x: x / x.norm(float("inf"), dim=(2, 3), keepdim=True),
    "vector_norm": lambda x: x / torch.linalg.vector_norm(x, 2, (2, 3), True),
    "samples_second": lambda x: (x.transpose(0, 1) - x.transpose(0, 1).mean((2, 3), keepdim=True)).transpose(0, 1),
    "samples_last": lambda x: (
        x.permute(1, 2, 3, 0) - x.permute(1, 2, 3, 0).mean((1, 2))[:, None, None]
    ).permute(3, 0, 1, 2),
    "space_swapped": lambda x: x - x.transpose(2, 3).std((2, 3), keepdim=True),
    "of_groups": lambda x: (x.unflatten(1, (2, 4)) - x.unflatten(1, (2, 4)).mean((2, 3, 4), True)).flatten(1, 2),
    "gate_in_place": lambda x: x * F.relu(x.mean((2, 3), keepdim=True) * 2, inplace=True),
    "new_ones": lambda x: x * x.new_ones(x.shape[0], 1, 1, 1) * x.new_full((x.shape[0], 8, 1, 1), 2.0),
}  # fmt: skip

WORKING = {
    f"{kind}-{name}": function
    for kind, functions in (
        ("moved", MOVED),
        ("joined", JOINED),
        ("indexed", INDEXED),
        ("channels", ALONG_CHANNELS),
        ("pointwise", POINTWISE),
        ("gate", GATES),
    )
    for name, function in functions.items()
}


@BLOCKS
@cases(WORKING)
def test_is_followed(function: Function, block: tuple[int, int]) -> None:
    assert outcome(function, block) == "result"


@BLOCKS
@cases(
    {
        "relu": lambda x: x * x.mean((2, 3), keepdim=True).relu_(),
        "module": lambda x: x * nn.ReLU(inplace=True)(F.adaptive_avg_pool2d(x, 1)),
        "add": lambda x: x * x.mean((2, 3), keepdim=True).add_(1),
        "part": lambda x: x * on_a_copy(lambda gate: gate[:, :2].zero_())(x.mean((2, 3), keepdim=True)),
    }
)
def test_gates_of_a_single_image_can_be_written(function: Function, block: tuple[int, int]) -> None:
    """One value an image is repeated over its patches; a view would not bear being written, nor would its rows."""
    assert outcome(function, block, batch=1) == "result"


@BLOCKS
@cases(
    {
        "add": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
        "relu": lambda x: torch.mul(x, x, out=x),
        "clamp": lambda x: torch.clamp(x, min=0, out=torch.zeros_like(x)) + x,
    }
)
def test_out_argument(function: Function, block: tuple[int, int]) -> None:
    with torch.no_grad():
        assert outcome(function, block) == "result"


# --- functions whose answer depends on what a patch of one pixel cannot give ----------------------------------------


STRIDED = {
    "rows": lambda x: x[:, :, ::2, 1::2],
    "ellipsis": lambda x: x[..., 0::2, ::2] + x[..., 1::2, 1::2],
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
    "channels_last": nhwc(lambda x: x[:, ::2, ::2, 1:]),
    "of_a_channel": lambda x: x[:, 0, ::2, ::2][:, None],
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
}


@cases(STRIDED)
def test_strides_within_a_patch(function: Function) -> None:
    assert outcome(function, LARGE) == "result"
    assert outcome(function, SMALL) == "refusal"


@cases(
    {
        "number": written((ALL, ALL, slice(None, None, 2)), lambda x: 1.0),
        "map": written((..., slice(1, None, 2)), lambda x: x[..., ::2] * 2),
    }
)
def test_writing_with_strides_within_a_patch(function: Function) -> None:
    assert outcome(function, LARGE) == "result"
    assert outcome(function, SMALL) == "refusal"


@BLOCKS
def test_pixel_shuffle(block: tuple[int, int]) -> None:
    assert outcome(lambda x: F.pixel_shuffle(x, 2), block) == "result"


# --- functions that mix positions or images, refused for patches of any size ----------------------------------------


MIXING = {
    "flatten_space": lambda x: x.flatten(2),
    "flatten_all": lambda x: x.flatten(1),
    "flatten_samples": lambda x: x.flatten(0, 1),
    "flatten_default": lambda x: torch.flatten(x),
    "view_tokens": lambda x: x.view(x.shape[0], 8, -1),
    "view_tokens_last": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 8),
    "view_rows": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 8),
    "view_vectors": lambda x: x.reshape(x.shape[0], -1),
    "view_all": lambda x: x.reshape(-1),
    "view_samples_and_channels": lambda x: x.reshape(-1, 1, x.shape[2], x.shape[3]),
    "view_one_sample": lambda x: x.reshape(1, -1, x.shape[2], x.shape[3]),
    "view_channels_last": lambda x: x.reshape(x.shape[0], x.shape[2], x.shape[3], 8),
    "squeeze_without_axis": lambda x: x.squeeze(),
    "squeeze_space": lambda x: x.squeeze(-1),
    "unflatten_samples": lambda x: x.unflatten(0, (-1, 1)),
    "unflatten_space": lambda x: x.unflatten(3, (-1, 1)),
    "mean_of_one_axis": lambda x: x - x.mean(2, keepdim=True),
    "mean_of_both_in_turn": lambda x: x - x.mean(-1, keepdim=True).mean(-2, keepdim=True),
    "sum_of_both_in_turn": lambda x: x * x.sum(-1).sum(-1)[:, :, None, None],
    "mean_of_samples": lambda x: x - x.mean(0),
    "mean_of_everything": lambda x: x - x.mean(),
    "mean_of_nothing_named": lambda x: x - x.mean(()),
    "batch_statistics": lambda x: x - x.mean((0, 2, 3), keepdim=True),
    "std_of_everything": lambda x: x / x.std(False),
    "norm_of_everything": lambda x: x / x.norm(),
    "softmax_over_samples": lambda x: F.softmax(x, 0),
    "softmax_over_rows": lambda x: F.softmax(x, 2),
    "softmax_over_gates": lambda x: x * x.mean((2, 3), keepdim=True).softmax(0),
    "normalize_rows": lambda x: F.normalize(x, dim=2),
    "normalize_samples_and_space": lambda x: F.normalize(x, dim=(0, 2, 3)),
    "normalize_channels_last": nhwc(F.normalize),
    "cumsum": lambda x: x.cumsum(3),
    "flip": lambda x: x.flip(-1),
    "flip_both": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll(1, 2),
    "roll_flattened": lambda x: x.roll(1),
    "glu": lambda x: F.glu(x, 0),
    "layer_norm_of_space": lambda x: F.layer_norm(x, x.shape[1:]),
    "linear_of_space": lambda x: F.linear(x, constant(x.shape[-1], x.shape[-1])),
    "matmul_of_space": lambda x: x @ constant(x.shape[-1], x.shape[-1]),
    "matmul_from_the_left": lambda x: constant(x.shape[2], x.shape[2]) @ x,
    "matmul_reflected": lambda x: x.__rmatmul__(constant(x.shape[2], x.shape[2])),
    "matmul_reflected_channels_last": nhwc(lambda x: x.__rmatmul__(constant(x.shape[2], x.shape[2]))),
    "matmul_of_maps": lambda x: x @ x.mT,
    "cat_samples": lambda x: torch.cat([x, x], 0),
    "cat_default": lambda x: torch.cat([x, x]),
    "cat_space": lambda x: torch.cat([x, x], -1),
    "cat_axis_of_space": lambda x: torch.cat([x, x], axis=2),
    "cat_map_and_gate": lambda x: torch.cat([x, x.mean((2, 3), keepdim=True)], 1),
    "cat_map_and_constant": lambda x: torch.cat([x, torch.ones(x.shape, dtype=x.dtype)], 1),
    "cat_different_axes": lambda x: torch.cat([x, x.transpose(2, 3)], 1),
    "stack_different_axes": lambda x: torch.stack([x, x.transpose(2, 3)], 1).sum(1),
    "chunk_default": lambda x: x.chunk(2)[0],
    "chunk_space": lambda x: x.chunk(2, 2)[0],
    "split_default": lambda x: x.split(1)[0],
    "split_space": lambda x: torch.cat(x.split(1, 3), 1),
    "unbind_default": lambda x: torch.stack(x.unbind()),
    "unbind_space": lambda x: torch.stack(x.unbind(2), 2),
    "iterate": lambda x: torch.stack(list(x)),
    "first_sample": lambda x: x[0],
    "last_samples": lambda x: x[1:],
    "reversed_samples": lambda x: x[list(range(x.shape[0]))[::-1]],
    "every_other_sample": lambda x: x[::2],
    "first_row": lambda x: x - x[:, :, :1],
    "first_position": lambda x: x - x[:, :, 0, 0][:, :, None, None],
    "crop": lambda x: x[..., 1:],
    "crop_end": lambda x: x[:, :, :-1],
    "narrow_space": lambda x: x.narrow(2, 0, 1),
    "select_space": lambda x: x.select(-1, 0)[..., None] * x,
    "positive_values": lambda x: x[x > 0],
    "boolean_axis": lambda x: x - x[:, True].mean((3, 4)).squeeze(1)[:, :, None, None],
    "boolean_axis_reduced": lambda x: x[:, True].mean((3, 4)).unsqueeze(1),
    "boolean_axis_first": lambda x: x[True].mean((3, 4)).squeeze(0)[:, :, None, None] * x,
    "write_row": written((ALL, ALL, 0), lambda x: 0.0),
    "write_sample": written(0, lambda x: 0.0),
    "write_positive": on_a_copy(lambda x: x.__setitem__(x > 0, 1.0)),
    "write_swapped": written((ALL, 0), lambda x: x[:, 1].transpose(1, 2)),
    "swapped_space": lambda x: x + x.transpose(2, 3),
    "swapped_samples": lambda x: x + x.permute(1, 0, 2, 3),
    "swapped_for_good": lambda x: x.transpose(2, 3),
    "reversed_axes": lambda x: x.T,
    "matrix_transpose": lambda x: x.mT,
    "gate_of_other_axes": lambda x: x.permute(0, 2, 3, 1) * x.mean((2, 3), keepdim=True),
    "gate_without_axes": lambda x: x * x.mean((2, 3)),
    "gates_of_all_images": lambda x: x * (x.mean((2, 3)) + x.mean((2, 3), keepdim=True)).sum(),
    "map_of_other_size": lambda x: x * F.interpolate(x, scale_factor=2),
    "expand_samples": lambda x: x.mean((0,), keepdim=True).expand_as(x),
    "index_of_each_image": lambda x: x.index_select(1, (x.mean((1, 2, 3)) > 0).to(torch.int64)).sum(1, True) * x,
    "in_place_into_a_constant": lambda x: torch.zeros(x.shape, dtype=x.dtype).add_(x),
    "copy_into_a_constant": lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x),
    "pixel_shuffle_channels_last": nhwc(lambda x: F.pixel_shuffle(x, 1)),
    "linear_with_weight_of_the_input": nhwc(lambda x: F.linear(x, F.linear(x.mean((1, 2)), constant(8, 8)))),
    "repeat": lambda x: x.repeat(1, 1, 2, 2),
}  # fmt: skip


@BLOCKS
@cases(MIXING)
def test_is_refused(function: Function, block: tuple[int, int]) -> None:
    assert outcome(function, block) == "refusal"


def windows(x: Tensor, window: tuple[int, int], inner_last: bool) -> Tensor:
    """Windows by reshaping: `(B, C, h, window, w, window)`, or the window's axes first."""
    rows, columns = x.shape[2] // window[0], x.shape[3] // window[1]
    if inner_last:
        return x.reshape(*x.shape[:2], rows, window[0], columns, window[1])
    return x.reshape(*x.shape[:2], window[0], rows, window[1], columns).transpose(2, 3).transpose(4, 5)


@BLOCKS
@pytest.mark.parametrize("inner_last", [True, False], ids=["blocks", "dilated"])
@pytest.mark.parametrize("shape", ["patch", "half", "wide"])
@cases(
    {
        "pooled": lambda w, x: w.mean((3, 5)),
        "pooled_and_added": lambda w, x: w.mean((3, 5)) + x[:, :, :: w.shape[3], :: w.shape[5]],
        "biggest_and_added": lambda w, x: w.amax((3, 5)) + F.avg_pool2d(x, (w.shape[3], w.shape[5])),
        "between_windows": lambda w, x: (w - w.mean((2, 4), keepdim=True)).mean((3, 5)),
        "subtracted": lambda w, x: (w - w.mean((3, 5), keepdim=True)).reshape(x.shape),
        "gate": lambda w, x: w.mean((3, 5), keepdim=True).flatten(2).mean(2)[..., None, None] * x,
    }
)
def test_windows_by_reshaping(
    function: Callable[[Tensor, Tensor], Tensor], shape: str, inner_last: bool, block: tuple[int, int]
) -> None:
    """A window as large as a patch leaves axes of extent one: they are positions of windows, not free axes."""
    window = {"patch": block, "half": (max(block[0] // 2, 1), 1), "wide": (1, block[1])}[shape]
    # A result must be right, a refusal is fine.
    outcome(lambda x: function(windows(x, window, inner_last), x), block)


@cases(
    {
        "one_channel_as_tokens": lambda x: x * x[:, :1].reshape(x.shape[0], 1, -1).amax(2)[..., None, None],
        "one_channel_as_rows": lambda x: x * x[:, 0].reshape(x.shape[0], -1).amax(1)[:, None, None, None],
        "one_channel_last": lambda x: (
            x * x[:, :1].permute(0, 2, 3, 1).reshape(x.shape[0], -1, 1).amax(1)[..., None, None]
        ),
        "one_channel_of_plain_sizes": lambda x: (
            x * x[:, :1].reshape(x.shape[0], 1, math.prod(int(s) for s in x.shape[2:])).amax(2)[..., None, None]
        ),
        "to_the_front": lambda x: x.reshape(x.shape[0], 8, 1, *x.shape[2:]).mean(2),
        "groups_of_one": lambda x: x.reshape(x.shape[0], 8, 1, *x.shape[2:]).mean(1),
        "to_the_end": lambda x: x.reshape(*x.shape, 1).mean(-1),
        "between": lambda x: x.reshape(*x.shape[:3], 1, x.shape[3]).mean(3),
        "of_one_channel": lambda x: x[:, :1].reshape(x.shape[0], *x.shape[2:])[:, None] * x,
        "of_one_channel_first": lambda x: (
            x[:, :1].reshape(x.shape[0], *x.shape[2:], 1) * x.permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2),
        "of_channel_mean": lambda x: x.mean(1).reshape(x.shape[0], 1, *x.shape[2:]) * x,
        "of_channel_mean_last": lambda x: (
            x.mean(1).reshape(x.shape[0], *x.shape[2:], 1) * x.permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2),
        "gate_expanded": lambda x: x * x.mean((2, 3), keepdim=True).expand(x.shape),
        "gate_expanded_by_numbers": lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]),
        "gate_expanded_and_summed": lambda x: (
            x * x.mean((2, 3), keepdim=True).expand(x.shape).sum((2, 3), keepdim=True)
        ),
        "gate_expanded_and_convolved": lambda x: (
            F.conv2d(x.mean((2, 3), keepdim=True).expand(x.shape), constant(8, 8, 3, 3), padding=1).mean((2, 3), True)
            * x
        ),
        "squeezed_channel": lambda x: x[:, :1].squeeze(1)[:, None] * x,
        "zeros_of_the_same_shape": lambda x: x.new_zeros(x.shape) + x,
        "ones_of_the_same_shape": lambda x: x.new_ones(x.shape[0], 8, *x.shape[2:]) * x,
        "full_of_one_channel": lambda x: x.new_full((x.shape[0], 1, *x.shape[2:]), 2.0) * x,
    }
)
def test_does_not_depend_on_the_size_of_a_patch(function: Function) -> None:
    """Result or refusal, but the same for patches of one pixel as for larger ones."""
    assert outcome(function, LARGE) == outcome(function, SMALL)


# --- where tensors share memory -------------------------------------------------------------------------------------


def transposed_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.transpose_(2, 3)
    return y


def swapped_in_place(name: str, first: int, second: int) -> Function:
    def function(x: Tensor) -> Tensor:
        y = x * 1.0
        getattr(y, name)(first, second)
        z = y * constant(y.shape[1], 1, 1)
        getattr(z, name)(first, second)
        return z

    return function


def unsqueezed_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.unsqueeze_(1)
    return y.mean(1)


def squeezed_in_place(x: Tensor) -> Tensor:
    gate = x.mean((2, 3), keepdim=True)
    gate.squeeze_(3).squeeze_(2)
    return x * gate[:, :, None, None]


def written_after_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    padded = F.pad(y, (1, 1, 1, 1))
    y.add_(1)
    return F.conv2d(padded, constant(8, 8, 3, 3)) + y


def relu_after_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    padded = F.pad(y, (0, 1, 0, 1))
    z = F.relu(y, inplace=True)
    return F.max_pool2d(padded, 2, 1) + z


def written_after_empty_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    F.pad(y, (0, 0, 0, 0)).mul_(3)
    return y


def written_after_flatten(x: Tensor) -> Tensor:
    y = x.unflatten(1, (2, 4)) * 1.0
    y.flatten(1, 2).mul_(2)
    return y.flatten(1, 2)


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 1.0
    y.view(y.shape[0], 4, 2, *y.shape[2:])[:, :, 0].add_(2)
    y.view(y.shape).mul_(constant(8, 1, 1))
    return y


def written_through_data(x: Tensor) -> Tensor:
    y = x * 1.0
    y.data.mul_(2)
    y.detach().add_(1)
    return y


def written_after_expand(x: Tensor) -> Tensor:
    y = x.mean(1, keepdim=True)
    z = y.expand_as(x) * 1.0
    y.mul_(2)
    return y + z


def written_after_dropout(x: Tensor) -> Tensor:
    y = x * 1.0
    F.dropout2d(y, 0.5, training=False).mul_(2)
    F.dropout(y, 0.5, training=False).mul_(3)
    return y


@BLOCKS
@cases(
    {
        "transpose_": transposed_in_place,
        "transpose_twice": swapped_in_place("transpose_", 2, 3),
        "swapaxes_": swapped_in_place("swapaxes_", 1, 2),
        "swapdims_": swapped_in_place("swapdims_", 1, -1),
        "unsqueeze_": unsqueezed_in_place,
        "squeeze_": squeezed_in_place,
        "pad": written_after_padding,
        "pad_and_relu": relu_after_padding,
        "pad_by_nothing": written_after_empty_padding,
        "flatten": written_after_flatten,
        "view": written_through_a_view,
        "data": written_through_data,
        "expand": written_after_expand,
        "dropout": written_after_dropout,
    }
)
def test_writing_in_place_changes_what_it_should(function: Function, block: tuple[int, int]) -> None:
    """Who shares memory with whom is part of what a function means."""
    outcome(function, block)  # a result must be right, a refusal is fine


def padded_twice(value: float, channels: tuple[int, int], other: float, mode: str = "constant") -> Function:
    """Along space, then along channels, then seen by a convolution."""

    def function(x: Tensor) -> Tensor:
        around = F.pad(x * 2, (1, 1, 1, 1), mode, *([value] if mode == "constant" else []))
        return F.conv2d(F.pad(around, (0, 0, 0, 0, *channels), value=other), constant(8, 8 + sum(channels), 3, 3))

    return function


@cases(
    {
        "by_the_same": padded_twice(1.0, (1, 2), 1.0),
        "by_zeros": padded_twice(0.0, (0, 1), 0.0),
        "channels_left_out": padded_twice(1.0, (-1, 0), 0.0),
        "mirrored": padded_twice(0.0, (1, 1), 1.5, "reflect"),
    }
)
def test_channels_added_to_a_padded_map(function: Function) -> None:
    assert outcome(function, LARGE) == "result"


@BLOCKS
@cases({"zeros": padded_twice(1.0, (0, 1), 0.0), "ones": padded_twice(0.0, (1, 0), 1.0)})
def test_channels_that_differ_around_the_map_are_refused(function: Function, block: tuple[int, int]) -> None:
    """The ring of the new channels holds what they hold, that of the others what the map was padded with."""
    assert outcome(function, block) == "refusal"


@BLOCKS
@cases(
    {
        "pad": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), constant(8, 8, 3, 3)),
        "pad_twice": lambda x: F.max_pool2d(F.pad(F.pad(x, (1, 0, 0, 0)), (0, 1, 1, 1)), 3, 1),
        "pad_and_write": written_after_padding,
    }
)
def test_inference_mode(function: Function, block: tuple[int, int]) -> None:
    """Torch counts no writes to tensors there."""
    network, whole = Host(function), PatchGrid(torch.ones(BATCH, *GRID, dtype=torch.bool), 6)
    size = tuple(g * b for g, b in zip(GRID, block, strict=True))
    images = torch.randn(BATCH, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(packed(network, whole)(images), network(images))
        grid = random_grid()
        torch.testing.assert_close(packed(network, grid)(images), masked_dense(network, grid)(images))


def test_inference_mode_where_positions_hold_several_patches() -> None:
    def halved_and_doubled(x: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(F.pad(x, (1, 0, 0, 0)), constant(8, 8, 2, 3), stride=2), scale_factor=2)

    network, grid = Host(halved_and_doubled), PatchGrid(torch.eye(2, dtype=torch.bool).expand(BATCH, 2, 2), 2)
    images = torch.randn(BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = packed(network, grid)(images)
    with torch.inference_mode():
        torch.testing.assert_close(packed(network, grid)(images), expected)


def test_parameters_are_never_marked() -> None:
    """`weight.to(x)` and the like return the weight itself: marking it would make it part of the input, for good."""
    gamma = nn.Parameter(constant(1, CHANNELS, 1, 1))
    for function in (lambda x: x * gamma.to(x), lambda x: x * gamma.type_as(x), lambda x: x * gamma.clone()):
        network = Host(function)
        network.gamma = gamma
        images = torch.randn(BATCH, 3, 8, 6, dtype=torch.float64)
        for _ in range(2):
            result = run(SparseExecution(random_grid()), network, images)[0]
            assert result.shape == (6, CHANNELS, 4, 2)
        assert not any(hasattr(parameter, "_sparkmim_layout") for parameter in network.parameters())


# --- other numbers of axes ------------------------------------------------------------------------------------------


@cases(
    {
        "gate": lambda x: x * F.adaptive_avg_pool1d(x, 1),
        "mean": lambda x: x - x.mean(-1, keepdim=True),
        "mean_without_axis": lambda x: x - x.mean(2)[..., None],
        "channels_last": lambda x: F.layer_norm(x.transpose(1, 2), (4,)).transpose(1, 2),
        "groups": lambda x: x.view(x.shape[0], 2, 2, -1).softmax(1).view(x.shape),
        "unbatched_pool": lambda x: x * F.adaptive_avg_pool2d(x, 1),
        "strided": lambda x: x[..., ::2] * x[:, :, 1::2],
    }
)
def test_one_axis(function: Function) -> None:
    """Signals: with one spatial axis a function of two would take the channels for the other."""
    network = Block(function)
    signal = torch.randn(BATCH, 4, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, 4, dtype=torch.bool), 4)
    try:
        (found,) = run(SparseExecution(grid), network, signal)
    except UnsupportedOperation:
        assert function(signal).shape[-1] == 1 or "adaptive_avg_pool2d" in function.__code__.co_names
        return
    torch.testing.assert_close(grid.unpack(found), function(signal))


@cases(
    {
        "gate": lambda x: x * F.adaptive_avg_pool3d(x, 1),
        "mean": lambda x: x - x.mean((2, 3, 4), keepdim=True),
        "channels_last": lambda x: F.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1),
        "permuted": lambda x: (x.permute(0, 2, 3, 4, 1) * constant(4)).permute(0, 4, 1, 2, 3),
        "groups": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).softmax(1).view(x.shape),
        "strided": lambda x: x[..., ::2, ::2, 1::2],
    }
)
def test_three_axes(function: Function) -> None:
    network = Block(function)
    volume = torch.randn(BATCH, 4, 4, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, 2, 2, 3, dtype=torch.bool), 12)
    (found,) = run(SparseExecution(grid), network, volume)
    torch.testing.assert_close(grid.unpack(found), function(volume))


@cases(
    {
        "mean_of_two": lambda x: x - x.mean((3, 4), keepdim=True),
        "pool_of_two": lambda x: F.adaptive_avg_pool2d(x, 1),
        "flatten_two": lambda x: x.flatten(3),
    }
)
def test_three_axes_are_reduced_together(function: Function) -> None:
    grid = PatchGrid(torch.ones(BATCH, 2, 2, 3, dtype=torch.bool), 12)
    with pytest.raises((UnsupportedOperation, RuntimeError)):
        run(SparseExecution(grid), Block(function), torch.randn(BATCH, 4, 4, 8, 12))


# --- every function that has a rule, under many forms of arguments --------------------------------------------------

# Random, or without a value that a comparison could check.
NOT_COMPARED = (
    "bernoulli",
    "uniform",
    "normal_",
    "exponential",
    "rand",
    "rrelu",
    "dropout",
    "empty",
    "cuda",
    "get_device",
)
# Takes sizes, and whether those are of the map or of a patch a rule cannot know: see test_fail_closed.py.
NOT_COMPARED += ("interpolate",)

ARGUMENTS: list[Callable[[Tensor], tuple[Any, ...]]] = [
    lambda x: (),
    lambda x: (1,),
    lambda x: (0.5,),
    lambda x: (0.1, 0.9),
    lambda x: (-1,),
    lambda x: (0,),
    lambda x: (2,),
    lambda x: ((2, 3),),
    lambda x: ([2, 3], True),
    lambda x: ((-1, -2), False),
    lambda x: ((2, 3), True, True),
    lambda x: (1, True),
    lambda x: (1, False),
    lambda x: (1, True, True),
    lambda x: (2, (2, 3)),
    lambda x: (2, 1, True),
    lambda x: (2, 3),
    lambda x: (1, -1),
    lambda x: (1, (2, 4)),
    lambda x: (2, 1, 1),
    lambda x: ((1, 2, 5), 1),
    lambda x: (1, 0, 4),
    lambda x: (0, 2, 3, 1),
    lambda x: ((1, 0, 3, 2),),
    lambda x: (x * 2,),
    lambda x: (x > 0, x),
    lambda x: (x > 0, 0.5),
    lambda x: (x.mean((2, 3), keepdim=True),),
    lambda x: (constant(8, 1, 1),),
    lambda x: (constant(1, 8, 1, 1), 0.5),
    lambda x: (constant(8, 8),),
    lambda x: (constant(8, 8, 3, 3), None, 1, 1),
    lambda x: (constant(8, 1, 3, 3), None, 1, 1, 1, 8),
    lambda x: ((Ellipsis, None),),
    lambda x: ((slice(None), slice(1, 5)),),
    lambda x: ((slice(None), 3),),
    lambda x: ((slice(None), True),),
    lambda x: ((slice(None), None, 2),),
    lambda x: ((Ellipsis, slice(1, None, 2)),),
    lambda x: ((slice(None), slice(0, 4)), 1.0),
    lambda x: (None, 2, "nearest"),
    lambda x: (3, 1, 1),
    lambda x: ((0, 0, 0, 0, 2, 1),),
    lambda x: (2, None, None, None, None, True),
]
SHAPES: list[Callable[[Tensor], tuple[Any, ...]]] = [  # for functions that take a shape, which others read otherwise
    lambda x: (x.shape[0], 2, 4, *x.shape[2:]),
    lambda x: ([x.shape[0], -1, *x.shape[2:]],),
    lambda x: ((x.shape[0], 8, x.shape[2], 1, x.shape[3]),),
    lambda x: (x.shape[0], 8, -1),
    lambda x: ((x.shape[0], 1, 1, 1),),
    lambda x: (tuple(x.shape),),
]
TAKE_SHAPES = ("reshape", "view", "new_zeros", "new_ones")
KEYWORDS: list[dict[str, Any]] = [
    {},
    {"dim": 1},
    {"axis": 1},
    {"dim": -3, "keepdim": True},
    {"dim": (2, 3)},
    {"axis": (2, 3), "keepdim": True},
]


def as_whole(grid: PatchGrid | None, tensor: Tensor, layout: Layout) -> Tensor:
    """A tensor by what its layout says: `(images, free axes, *space)`, whole if it is packed in `grid`; the positions
    of space that is one axis are one axis again."""
    free = [axis for axis in range(tensor.ndim) if axis not in layout.tracked_axes]
    tensor = tensor.permute(layout.batch, *free, *layout.space)
    if grid is None:
        return tensor
    if not layout.is_map:
        rows = grid.by_image(tensor)
        assert torch.equal(rows.nan_to_num(), rows[:, :1].expand_as(rows).nan_to_num()), "one value an image"
        return rows[:, 0]
    tensor = tensor.unflatten(-1, layout.flattened) if layout.flattened else tensor
    flat = tensor.flatten(1, len(free)) if free else tensor.unsqueeze(1)
    whole = grid.unpack(flat).reshape(
        grid.batch, *[tensor.shape[1 + i] for i in range(len(free))], *_size(grid, tensor)
    )
    return whole.flatten(-len(layout.flattened)) if layout.flattened else whole


def _size(grid: PatchGrid, tensor: Tensor) -> list[int]:
    return [g * b for g, b in zip(grid.shape, tensor.shape[-len(grid.shape) :], strict=True)]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def functions_by_name() -> dict[str, list[Any]]:
    functions: dict[str, list[Any]] = {}
    for function in RULES:
        name = getattr(function, "__name__", "")
        if name not in ("", "__get__", "fn") and not any(word in name for word in NOT_COMPARED):
            functions.setdefault(name, []).append(function)
    return functions


FUNCTIONS = functions_by_name()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_whatever_is_answered_is_right(name: str) -> None:
    """With nothing hidden: what a rule answers, and what it leaves in its argument, is what its layout says it is."""
    images = torch.randn(BATCH, CHANNELS, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, *GRID, dtype=torch.bool), 6)
    joins = name in ("cat", "concat", "concatenate", "stack")
    answered = []
    for function in FUNCTIONS[name]:
        for number, arguments in enumerate(ARGUMENTS + (SHAPES if name in TAKE_SHAPES else [])):
            for keywords in KEYWORDS if number < 8 else KEYWORDS[:1]:

                def call(x: Tensor) -> tuple[Tensor, Any]:
                    y = x * 1.0
                    first = [y, y * 2] if joins else y
                    return y, function(first, *arguments(x), **keywords)  # noqa: B023

                try:
                    ordinary = tensors_in(call(images))
                except Exception:  # not a form of arguments that this function has
                    continue
                execution = SparseExecution(grid)
                with execution:
                    try:
                        mine = call(execution.prepare(images))
                    except Exception:  # an error, of whatever kind, is not a wrong number
                        continue
                what = f"{function}, arguments {number}, {keywords}"
                found = tensors_in(mine)
                assert len(found) == len(ordinary), what
                for got, wanted in zip(found, ordinary, strict=True):
                    layout = execution.layout(got)
                    if layout is None:  # a constant, which combining with a map checks
                        assert got.shape != wanted.shape or torch.equal(got, wanted), what
                    elif layout.padding is None and got.numel():
                        assert max(layout.tracked_axes) < got.ndim, f"{what}: {layout} of {got.ndim} axes"
                        torch.testing.assert_close(
                            as_whole(grid, got, layout),
                            as_whole(None, wanted, layout),
                            equal_nan=True,
                            msg=lambda m: f"{what}, {layout}: {m}",  # noqa: B023
                        )
                        answered.append(what)
    assert answered or name not in ("add", "mul", "relu", "softmax", "mean", "cat", "reshape", "permute", "conv2d")
