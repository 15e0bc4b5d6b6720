"""What the axes of a tensor mean is followed through whatever a network does to them.

Three truths hold whatever a function answers, in values and gradients: with nothing hidden the packed result is the
ordinary network's; with a rectangle visible it is the ordinary network's on the cropped images; with a random mask it
is the masked-dense oracle's. The first two matter most here, because both executions share the rules under test.

Everything is asked twice, of patches of 4 x 2 and of 1 x 1 pixels: there a position has no extent, so a rule that
looked at sizes would answer differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    LARGE,
    REFUSED,
    RIGHT,
    SMALL,
    Function,
    cases,
    channels_last,
    constant,
    outcome,
)
from sparkmim.sparse import Execution
from sparkmim.sparse.registry import RULES

BLOCK_SIZES = {"patches_4x2": LARGE, "patches_1x1": SMALL}
BLOCKS = pytest.mark.parametrize("block", list(BLOCK_SIZES.values()), ids=list(BLOCK_SIZES))


# --- the truths themselves can fail -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept_rules")
def test_a_wrong_rule_is_noticed() -> None:
    """A rule that lets a function mix positions inside a patch is caught by the truths."""
    del RULES[torch.Tensor.cumprod]
    assert outcome(lambda x: x.cumprod(1), LARGE) == REFUSED

    @Execution.register(torch.Tensor.cumprod)
    def rule(execution: Execution, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layout = execution.layout(x)
        assert layout is not None
        return execution.mark(func(x, *args, **kwargs), layout)

    assert outcome(lambda x: x.cumprod(1), LARGE) == RIGHT
    with pytest.raises(AssertionError, match="nothing hidden"):
        outcome(lambda x: x.cumprod(2), LARGE)


# --- functions that must work, for patches of any size ----------------------------------------------------------------


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
    "split_last": channels_last(lambda x: x.reshape(*x.shape[:3], 2, 4).softmax(-1).reshape(x.shape)),
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
    "cat_axis": lambda x: torch.cat([x, x * 2], axis=1),  # type: ignore[call-arg]
    "concatenate_axis": lambda x: torch.concatenate((x, x * 2), axis=1).sum(1, keepdim=True) * x,  # type: ignore[call-arg]
    "concat_last": channels_last(lambda x: torch.concat([x, x * 2], dim=-1)),
    "cat_gates": lambda x: x * torch.cat([x.mean((2, 3), True), x.amax((2, 3), True)], 1)[:, 4:12],
    "cat_samples_second": lambda x: torch.cat([x.transpose(0, 1)] * 2, 0).transpose(0, 1),
    "stack": lambda x: (torch.stack([x, x.relu()], dim=1) * constant(2, 1, 1, 1)).sum(1),
    "stack_last": lambda x: (torch.stack((x, x.relu()), -1) * constant(2)).sum(-1),
    "stack_first": lambda x: (torch.stack((x, x.relu())) * constant(2, 1, 1, 1, 1)).sum(0),
    "chunk": lambda x: torch.mul(*x.chunk(2, 1)),
    "chunk_keyword": lambda x: torch.mul(*torch.chunk(x, 2, dim=-3)),
    "chunk_last": channels_last(lambda x: torch.mul(*x.chunk(2, -1))),
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
    "ellipsis_last": channels_last(lambda x: x[..., :4]),
    "ellipsis_first": channels_last(lambda x: x[..., 5, None]),
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
    "write_last": channels_last(written((..., 0), lambda x: x[..., 1])),
    "write_everything": written((), lambda x: x * 2),
}

ALONG_CHANNELS = {
    "softmax": lambda x: x.softmax(1),
    "softmax_negative": lambda x: F.softmax(x, dim=-3),
    "softmax_named_input": lambda x: F.softmax(input=x, dim=1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "softmin_last": channels_last(lambda x: F.softmin(x, -1)),
    "glu": lambda x: F.glu(x, 1),
    "glu_last": channels_last(F.glu),
    "cumsum": lambda x: x.cumsum(dim=1),
    "flip": lambda x: x.flip(1),
    "flip_tuple": lambda x: torch.flip(x, dims=[1]),
    "flip_two": lambda x: x.unflatten(1, (2, 4)).flip(1, 2).flatten(1, 2),
    "roll": lambda x: x.roll(3, 1),
    "roll_keyword": lambda x: torch.roll(x, shifts=-2, dims=1),
    "channel_shuffle": nn.ChannelShuffle(4),
    "channel_shuffle_of_groups": lambda x: torch.channel_shuffle(x.unflatten(1, (4, 2)), groups=2).flatten(1, 2),
    "normalize": F.normalize,
    "normalize_other_norm": lambda x: F.normalize(x, 1.0, 1),
    "normalize_last": channels_last(lambda x: F.normalize(x, dim=-1)),
    "linear": channels_last(lambda x: F.linear(x, constant(5, 8), constant(5))),
    "matmul": channels_last(lambda x: x @ constant(8, 5)),
    "layer_norm": channels_last(lambda x: F.layer_norm(x, (8,), constant(8), constant(8))),
    "layer_norm_int": channels_last(lambda x: F.layer_norm(x, [8])),
    "layer_norm_of_groups": channels_last(lambda x: F.layer_norm(x.unflatten(-1, (2, 4)), (2, 4)).flatten(-2)),
    "rms_norm": channels_last(lambda x: F.rms_norm(x, (8,))),
    "convnext": channels_last(
        lambda x: F.linear(F.gelu(F.linear(F.layer_norm(x, (8,)), constant(16, 8))), constant(8, 16))
    ),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "mean_without_axis": lambda x: x * x.mean(1)[:, None],
    "mean_last": channels_last(lambda x: x - x.mean(-1, True)),
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
    "sum_axis": lambda x: x * torch.sum(x, axis=1, keepdims=True),  # type: ignore[call-overload]
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
    "channels_last": channels_last(lambda x: x * F.linear(x.mean((1, 2), keepdim=True), constant(8, 8)).sigmoid()),
    "channels_last_viewed": channels_last(lambda x: x * x.mean((1, 2)).view(x.shape[0], 1, 1, -1)),
    "eca": lambda x: (
        x * F.conv1d(x.mean((2, 3)).view(x.shape[0], 1, -1), constant(1, 1, 3), padding=1).view(x.shape[0], -1, 1, 1)
    ),
    "adaptive_pool": lambda x: x * F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, (1, 1)),
    "gate_first": lambda x: x.mean((2, 3), keepdim=True) - x,
    "gate_of_image": lambda x: x - x.mean((1, 2, 3), keepdim=True),
    "gate_of_image_viewed": lambda x: x - x.mean((1, 2, 3)).view(-1, 1, 1, 1),
    "grn": channels_last(
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
    "sum_axis": lambda x: x * torch.sum(x, axis=(2, 3), keepdims=True),  # type: ignore[call-overload]
    "sum_by_position": lambda x: x * x.sum((2, 3))[..., None, None],
    "norm_by_position": lambda x: x / x.norm(2, (2, 3), True),
    "normalize": lambda x: F.normalize(x, dim=(2, 3)),  # type: ignore[arg-type]
    "norm_infinite": lambda x: x / x.norm(float("inf"), dim=(2, 3), keepdim=True),
    "vector_norm": lambda x: x / torch.linalg.vector_norm(x, 2, (2, 3), True),
    "samples_second": lambda x: (x.transpose(0, 1) - x.transpose(0, 1).mean((2, 3), keepdim=True)).transpose(0, 1),
    "samples_last": lambda x: (
        x.permute(1, 2, 3, 0) - x.permute(1, 2, 3, 0).mean((1, 2))[:, None, None]
    ).permute(3, 0, 1, 2),
    "space_swapped": lambda x: x - x.transpose(2, 3).std((2, 3), keepdim=True),
    "of_groups": lambda x: (x.unflatten(1, (2, 4)) - x.unflatten(1, (2, 4)).mean((2, 3, 4), True)).flatten(1, 2),
    "channel_shuffle": lambda x: x * F.channel_shuffle(x.mean((2, 3), keepdim=True), 2),
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
def test_is_followed(case: Function, block: tuple[int, int]) -> None:
    assert outcome(case, block) == RIGHT


@BLOCKS
@cases(
    {
        "relu": lambda x: x * x.mean((2, 3), keepdim=True).relu_(),
        "module": lambda x: x * nn.ReLU(inplace=True)(F.adaptive_avg_pool2d(x, 1)),
        "add": lambda x: x * x.mean((2, 3), keepdim=True).add_(1),
        "part": lambda x: x * on_a_copy(lambda gate: gate[:, :2].zero_())(x.mean((2, 3), keepdim=True)),
    }
)
def test_gates_of_a_single_image_can_be_written(case: Function, block: tuple[int, int]) -> None:
    """One value an image is repeated over its patches; a view would not bear being written, nor would its rows."""
    assert outcome(case, block, batch=1) == RIGHT


@BLOCKS
@cases(
    {
        "add": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
        "relu": lambda x: torch.mul(x, x, out=x),
        "clamp": lambda x: torch.clamp(x, min=0, out=torch.zeros_like(x)) + x,
    }
)
def test_out_argument(case: Function, block: tuple[int, int]) -> None:
    with torch.no_grad():
        assert outcome(case, block) == RIGHT


# --- functions whose answer depends on what a patch of one pixel cannot give ------------------------------------------


STRIDED = {
    "rows": lambda x: x[:, :, ::2, 1::2],
    "ellipsis": lambda x: x[..., 0::2, ::2] + x[..., 1::2, 1::2],
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
    "channels_last": channels_last(lambda x: x[:, ::2, ::2, 1:]),
    "of_a_channel": lambda x: x[:, 0, ::2, ::2][:, None],
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
}


@cases(STRIDED)
def test_strides_within_a_patch(case: Function) -> None:
    assert outcome(case, LARGE) == RIGHT
    assert outcome(case, SMALL) == REFUSED


@cases(
    {
        "number": written((ALL, ALL, slice(None, None, 2)), lambda x: 1.0),
        "map": written((..., slice(1, None, 2)), lambda x: x[..., ::2] * 2),
    }
)
def test_writing_with_strides_within_a_patch(case: Function) -> None:
    assert outcome(case, LARGE) == RIGHT
    assert outcome(case, SMALL) == REFUSED


@BLOCKS
def test_pixel_shuffle(block: tuple[int, int]) -> None:
    assert outcome(lambda x: F.pixel_shuffle(x, 2), block) == RIGHT


# --- functions that mix positions or images, refused for patches of any size ------------------------------------------


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
    "mean_of_samples": lambda x: x - x.mean(0),
    "norm_of_everything": lambda x: x / x.norm(),
    "softmax_over_samples": lambda x: F.softmax(x, 0),
    "softmax_over_rows": lambda x: F.softmax(x, 2),
    "softmax_over_gates": lambda x: x * x.mean((2, 3), keepdim=True).softmax(0),
    "normalize_rows": lambda x: F.normalize(x, dim=2),
    "normalize_samples_and_space": lambda x: F.normalize(x, dim=(0, 2, 3)),  # type: ignore[arg-type]
    "normalize_channels_last": channels_last(F.normalize),
    "cumsum": lambda x: x.cumsum(3),
    "flip": lambda x: x.flip(-1),
    "flip_both": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll(1, 2),
    "roll_flattened": lambda x: x.roll(1),
    "glu": lambda x: F.glu(x, 0),
    "channel_shuffle_channels_last": channels_last(lambda x: F.channel_shuffle(x, x.shape[1])),
    "channel_shuffle_samples_second": lambda x: F.channel_shuffle(x.transpose(0, 1), x.shape[0]).transpose(0, 1),
    "layer_norm_of_rows": lambda x: F.layer_norm(x, x.shape[3:]),
    "linear_of_space": lambda x: F.linear(x, constant(x.shape[-1], x.shape[-1])),
    "matmul_of_space": lambda x: x @ constant(x.shape[-1], x.shape[-1]),
    "matmul_from_the_left": lambda x: constant(x.shape[2], x.shape[2]) @ x,
    "matmul_reflected": lambda x: x.__rmatmul__(constant(x.shape[2], x.shape[2])),
    "matmul_reflected_channels_last": channels_last(lambda x: x.__rmatmul__(constant(x.shape[2], x.shape[2]))),
    "matmul_of_maps": lambda x: x @ x.mT,
    "cat_samples": lambda x: torch.cat([x, x], 0),
    "cat_default": lambda x: torch.cat([x, x]),
    "cat_space": lambda x: torch.cat([x, x], -1),
    "cat_axis_of_space": lambda x: torch.cat([x, x], axis=2),  # type: ignore[call-arg]
    "cat_map_and_gate": lambda x: torch.cat([x, x.mean((2, 3), keepdim=True)], 1),
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
    "pixel_shuffle_channels_last": channels_last(lambda x: F.pixel_shuffle(x, 1)),
    "linear_with_weight_of_the_input": channels_last(lambda x: F.linear(x, F.linear(x.mean((1, 2)), constant(8, 8)))),
    "repeat": lambda x: x.repeat(1, 1, 2, 2),
}  # fmt: skip


@BLOCKS
@cases(MIXING)
def test_is_refused(case: Function, block: tuple[int, int]) -> None:
    assert outcome(case, block) == REFUSED
