"""What has no meaning on visible patches raises :class:`UnsupportedOperation`.

The error names the function, the module that calls it and the two ways out.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

from engine_helpers import (
    BLOCKS,
    CHANNELS,
    SIZES,
    Apply,
    Function,
    Host,
    all_visible,
    assert_names_the_ways_out,
    cases,
    channels_last,
    constant,
    conv,
    images_of,
    random_grid,
    refusal,
)
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run


class Case(NamedTuple):
    """A part of a network, and what the error must name besides its path."""

    part: nn.Module | Function
    name: str


class Attention(nn.Module):
    """As in a vision transformer, on the tokens of a map."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, dtype=torch.float64)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(*tokens.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2).transpose(1, 2).view_as(x)


class ConvolutionalAttention(nn.Module):
    """Queries, keys and values by a 1 x 1 convolution, heads by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, 2, 4, -1).unbind(1)
        return (v @ (k.mT @ q).softmax(-2)).reshape(x.shape)


class AxialAttention(nn.Module):
    """Along the rows of a map whose channels are last: no reshaping gives it away."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return ((x @ x.mT).softmax(-1) @ x).permute(0, 3, 1, 2)


class PositionEmbedding(nn.Module):
    def __init__(self, *size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(constant(1, CHANNELS, *size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embedding


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(CHANNELS, CHANNELS, batch_first=True, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lstm(x.mean((2, 3)).unsqueeze(1))[0].transpose(1, 2)[..., None]


MIXING = {
    "attention": Case(Attention(fused=False), "matmul"),
    "attention_fused": Case(Attention(fused=True), "scaled_dot_product_attention"),
    "attention_convolutional": Case(ConvolutionalAttention(), "matmul"),
    "attention_axial": Case(AxialAttention(), "matmul"),
    "attention_of_rows": Case(
        channels_last(lambda x: F.scaled_dot_product_attention(x, x, x)), "scaled_dot_product_attention"
    ),
    "attention_of_positions": Case(lambda x: x @ x.transpose(-1, -2), "matmul"),
    "attention_weights": Case(lambda x: x.softmax(-1), "softmax"),
    "attention_module": Case(
        lambda x: nn.MultiheadAttention(8, 2, dtype=torch.float64)(x[:, :, 0], x[:, :, 0], x[:, :, 0])[0], "getitem"
    ),
    "tokens_of_all_images": Case(lambda x: x.permute(0, 2, 3, 1).reshape(-1, CHANNELS).cumsum(0), "reshape"),
    "tokens_and_channels": Case(lambda x: x.reshape(x.shape[0], -1).cumsum(1), "reshape"),
    "tokens_related": Case(lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2), "matmul"),
    "tokens_convolved": Case(lambda x: F.conv1d(x.flatten(2), constant(8, 8, 3), padding=1), "conv1d"),
    "tokens_normalized": Case(lambda x: F.instance_norm(x.flatten(2)), "instance_norm"),
    "tokens_padded": Case(lambda x: F.pad(x.flatten(2), (1, 1)), "pad"),
    "tokens_strided": Case(lambda x: x.flatten(2)[..., ::1][..., ::2], "getitem"),
    "tokens_picked": Case(lambda x: x.view(*x.shape[:2], -1)[..., 0], "getitem"),
    "tokens_mixed": Case(lambda x: F.linear(x.flatten(2), constant(*[x.shape[2:].numel()] * 2)), "linear"),
    "tokens_in_rows": Case(lambda x: x.flatten(2).reshape(x.shape[0], 8, x.shape[3], x.shape[2]), "reshape"),
    "mixer": Case(lambda x: F.linear(x, constant(x.shape[-1], x.shape[-1])), "linear"),
    "einsum_of_space": Case(lambda x: torch.einsum("bchw,bcxy->bhwxy", x, x), "einsum"),
    "einsum_of_rows": Case(lambda x: torch.einsum("bchw->bch", x), "einsum"),
    "bmm": Case(lambda x: torch.bmm(x[:, 0], x[:, 1]), "bmm"),
    "cdist": Case(lambda x: torch.cdist(x, x), "cdist"),
    "cosine_similarity": Case(lambda x: F.cosine_similarity(x, x.flip(1), dim=2), "cosine_similarity"),
    "recurrent": Case(Recurrent(), "lstm"),
    # reductions
    "mean_of_rows": Case(lambda x: x - x.mean(2, keepdim=True), "mean"),
    "mean_of_columns": Case(lambda x: x - torch.mean(x, dim=-1, keepdim=True), "mean"),
    "sum_of_one_after_another": Case(lambda x: x / x.sum(-1).mean(-1)[..., None, None], "sum"),
    "amax_of_rows": Case(lambda x: x - x.amax(dim=3, keepdim=True), "amax"),
    "std_of_rows": Case(lambda x: x / x.std(2, keepdim=True), "std"),
    "logsumexp_of_rows": Case(lambda x: x - x.logsumexp(-1, True), "logsumexp"),
    "mean_of_images": Case(lambda x: x - x.mean(0), "mean"),
    "sum_of_everything": Case(lambda x: x / torch.sum(x), "sum"),
    "norm_of_everything": Case(lambda x: x / x.norm(), "norm"),
    "max_of_rows": Case(lambda x: x - x.max(2, keepdim=True)[0], "max"),
    "min": Case(lambda x: x - x.min(3, keepdim=True).values, "min"),
    "argmax": Case(lambda x: x * x.argmax(-1, keepdim=True), "argmax"),
    "topk": Case(lambda x: x.topk(1, dim=-1)[0] * x, "topk"),
    "sort": Case(lambda x: x.sort(-1)[0], "sort"),
    "argsort": Case(lambda x: x.argsort(2), "argsort"),
    "median": Case(lambda x: x - x.median(2, keepdim=True)[0], "median"),
    "quantile": Case(lambda x: x - x.quantile(0.5), "quantile"),
    "cummax": Case(lambda x: x.cummax(2)[0], "cummax"),
    "prod": Case(lambda x: x.prod(2, keepdim=True) * x, "prod"),
    "any": Case(lambda x: x * (x > 0).any(), "any"),
    "unique": Case(lambda x: x * x.unique().shape[0], "unique"),
    "count_nonzero": Case(lambda x: x / x.count_nonzero(), "count_nonzero"),
    # picking out and moving positions
    "crop": Case(lambda x: x[:, :, 1:], "getitem"),
    "crop_end": Case(lambda x: x[..., :-1], "getitem"),
    "crop_middle": Case(lambda x: x[..., 1:2], "getitem"),
    "first_position": Case(lambda x: x - x[..., :1, :1], "getitem"),
    "first_image": Case(lambda x: x - x[0], "getitem"),
    "other_images": Case(lambda x: x + x[torch.arange(x.shape[0] - 1, -1, -1)], "getitem"),
    "positive": Case(lambda x: x - x[x > 0].mean(), "getitem"),
    "narrow": Case(lambda x: x.narrow(2, 0, 1) * x, "narrow"),
    "index_select": Case(lambda x: x.index_select(3, torch.arange(2)), "index_select"),
    "gather": Case(lambda x: x.gather(2, torch.zeros(x.shape, dtype=torch.int64)), "gather"),
    "take": Case(lambda x: x * x.take(torch.tensor([0])), "take"),
    "masked_select": Case(lambda x: x - x.masked_select(x > 0).mean(), "masked_select"),
    "nonzero": Case(lambda x: x[x.nonzero(as_tuple=True)], "nonzero"),
    "chunk": Case(lambda x: torch.cat(x.chunk(2, 2)[::-1], 2), "chunk"),
    "unbind": Case(lambda x: torch.stack(x.unbind(3)[::-1], 3), "unbind"),
    "loop": Case(lambda x: torch.stack(list(x)), "unbind"),
    "roll": Case(lambda x: x.roll((1, 1), (2, 3)), "roll"),
    "roll_images": Case(lambda x: x + x.roll(1, 0), "roll"),
    "flip": Case(lambda x: x.flip(3), "flip"),
    "fliplr": Case(lambda x: torch.fliplr(x), "fliplr"),
    "rot90": Case(lambda x: x.rot90(2, (2, 3)), "rot90"),
    "transpose_of_all": Case(lambda x: x.T, "T"),
    "diagonal": Case(lambda x: x * x.diagonal(dim1=2, dim2=3)[..., None], "diagonal"),
    "tril": Case(lambda x: x.tril(), "tril"),
    "cumsum": Case(lambda x: x.cumsum(2), "cumsum"),
    "diff": Case(lambda x: x.diff(dim=2), "diff"),
    "repeat": Case(lambda x: x.repeat(1, 1, 2, 2), "repeat"),
    "tile": Case(lambda x: x.tile((1, 1, 2, 2)), "tile"),
    "repeat_interleave": Case(lambda x: x.repeat_interleave(2), "repeat_interleave"),
    "cat_images": Case(lambda x: torch.cat([x, x]), "cat"),
    "cat_rows": Case(lambda x: torch.cat([x, x], dim=2), "cat"),
    "shift_by_cat": Case(lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2), "getitem"),
    "unfold": Case(lambda x: F.unfold(x, 3), "conv2d"),
    "unfold_tensor": Case(lambda x: x.unfold(2, 1, 1)[..., 0], "unfold"),
    "grid_sample": Case(
        lambda x: F.grid_sample(x, torch.zeros(x.shape[0], 2, 2, 2, dtype=x.dtype), align_corners=False), "grid_sample"
    ),
    "fft": Case(lambda x: torch.fft.fft2(x).real, "fft"),
    "rfft": Case(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]), "rfft"),
    "space_swapped": Case(lambda x: x + x.transpose(2, 3), "add"),
    # windows
    "pool_to_two": Case(nn.AdaptiveAvgPool2d(2), "adaptive_avg_pool2d"),
    "pool_to_rows": Case(nn.AdaptiveAvgPool2d((None, 1)), "adaptive_avg_pool2d"),
    "pool_to_columns": Case(nn.AdaptiveMaxPool2d((1, None)), "adaptive_max_pool2d"),
    "pool_to_two_max": Case(lambda x: F.adaptive_max_pool2d(x, (2, 2)), "adaptive_max_pool2d"),
    "pool_with_places": Case(lambda x: F.max_pool2d(x, 1, return_indices=True)[1] * x, "max_pool2d"),
    "pool_adaptive_with_places": Case(
        lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True)[1] * x, "max_pool2d"
    ),
    "pool_fractional": Case(lambda x: F.fractional_max_pool2d(x, 1, output_size=1), "fractional_max_pool2d"),
    "pool_lp": Case(lambda x: F.lp_pool2d(x, 2.0, 3, 1), "avg_pool2d"),
    "pool_unaligned": Case(nn.MaxPool2d(3, 2), "max_pool2d"),
    "pool_unaligned_avg": Case(lambda x: F.avg_pool2d(x, 3, 1), "avg_pool2d"),
    "pool_of_one_axis": Case(lambda x: F.avg_pool1d(x[:, 0], 1), "avg_pool1d"),
    "bilinear": Case(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), "interpolate"),
    "bilinear_positional": Case(lambda x: F.interpolate(x, None, 2, "bicubic", True), "interpolate"),
    "area": Case(lambda x: F.interpolate(x, scale_factor=1.5, mode="area"), "interpolate"),
    "upsample_module": Case(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "interpolate"),
    "upsample_by_one_and_a_half": Case(lambda x: F.interpolate(x, scale_factor=1.5), "interpolate"),
    "circular_one_side": Case(lambda x: F.pad(x, (1, 0, 0, 0), "circular"), "pad"),
    "circular": Case(nn.CircularPad2d(1), "pad"),
    "cropping_pad": Case(lambda x: F.pad(x, (-1, 1, 0, 0)).relu(), "relu"),
    "cropping_pad_padded": Case(lambda x: F.conv2d(F.pad(x, (-1, 0)), constant(8, 8, 1, 4), padding=(0, 2)), "conv2d"),
    "cropping_pad_padded_twice": Case(lambda x: F.pad(F.pad(x, (-1, 0, 0, 0)), (2, 0, 0, 0)), "pad"),
    "cropping_pad_reflected": Case(lambda x: F.pad(x, (-1, 1, 0, 0), "replicate"), "pad"),
    "cropping_pad_unaligned": Case(lambda x: F.avg_pool2d(F.pad(x, (-1, 0, -1, 0)), 1), "avg_pool2d"),
    "padding_of_images": Case(lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), "pad"),
    "padded_activation": Case(lambda x: F.pad(x, (1, 1, 1, 1)).sigmoid(), "sigmoid"),
    "padded_shuffle": Case(lambda x: F.channel_shuffle(F.pad(x, (1, 1, 1, 1)), 2), "channel_shuffle"),
    "padded_norm": Case(lambda x: F.batch_norm(F.pad(x, [1] * 4), None, None, training=True), "batch_norm"),
    "padded_mean": Case(lambda x: x - F.pad(x, (1, 1, 1, 1)).mean((2, 3), keepdim=True), "mean"),
    "padded_crop": Case(lambda x: F.pad(x, (1, 1, 1, 1))[..., 2:, 2:], "getitem"),
    "padded_view": Case(lambda x: F.pad(x, (1, 1, 1, 1)).flatten(1, 1), "flatten"),
    "conv_circular": Case(conv(3, padding=1, padding_mode="circular"), "pad"),
    "conv_unpadded": Case(conv(3), "conv2d"),
    "conv_padded_too_much": Case(nn.Sequential(conv(3, padding=2), nn.ReLU()), "conv2d"),
    "conv_stride": Case(conv(3, stride=3), "conv2d"),
    "conv_even": Case(conv(2), "conv2d"),
    "conv_dilated": Case(conv(3, padding=1, dilation=2), "conv2d"),
    "conv_transposed": Case(nn.ConvTranspose2d(8, 8, 3, 2, dtype=torch.float64), "conv_transpose2d"),
    "conv_of_one_axis": Case(lambda x: F.conv1d(x, constant(8, 8, 1)), "conv1d"),
    "conv_of_three_axes": Case(lambda x: F.conv3d(x, constant(8, 8, 1, 1, 1)), "conv3d"),
    "conv_of_a_new_axis": Case(lambda x: F.conv3d(x[:, :, None], constant(8, 8, 1, 1, 1))[:, :, 0], "conv3d"),
    "conv_of_rows": Case(lambda x: F.conv1d(x.transpose(1, 2).flatten(0, 1), constant(8, 8, 3), padding=1), "flatten"),
    "conv_transposed_of_one_axis": Case(lambda x: F.conv_transpose1d(x, constant(8, 8, 1)), "conv_transpose1d"),
    "conv_channels_last": Case(channels_last(lambda x: F.conv2d(x, constant(x.shape[1], x.shape[1], 1, 1))), "conv2d"),
    "conv_of_the_input": Case(
        lambda x: F.conv2d(x, F.linear(x.mean((2, 3)), constant(8, 8))[:, :, None, None]), "conv2d"
    ),
    "conv_bias_of_the_input": Case(lambda x: F.conv2d(x, constant(8, 8, 1, 1), x.mean((1, 2, 3))), "conv2d"),
    "conv_with_the_input": Case(lambda x: F.conv2d(constant(1, 8, 9, 9), x), "conv2d"),
    "bilinear_form": Case(lambda x: F.bilinear(x, x, constant(8, *[x.shape[-1].value] * 2)), "bilinear"),  # type: ignore[attr-defined]
    "layer_norm_of_rows": Case(lambda x: F.layer_norm(x, x.shape[3:]), "layer_norm"),
    "layer_norm_native": Case(
        channels_last(lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5)[0]), "native_layer_norm"
    ),
    "response_norm": Case(channels_last(nn.LocalResponseNorm(2)), "local_response_norm"),
    "batch_norm_of_padded": Case(lambda x: F.batch_norm(F.pad(x, [1] * 4), None, None, training=True), "batch_norm"),
    "group_norm_of_padded": Case(lambda x: F.group_norm(F.pad(x, [1] * 4), 2), "group_norm"),
    "shuffle_with_a_fifth_axis": Case(lambda x: F.pixel_shuffle(x.unsqueeze(-1), 2)[..., 0], "pixel_shuffle"),
    "batch_norm_channels_last": Case(
        channels_last(lambda x: F.batch_norm(x, None, None, training=True)), "batch_norm"
    ),
    # leaving torch, or what the engine can see of it
    "item": Case(lambda x: x * x.mean((1, 2, 3)).item(), "item"),
    "to_list": Case(lambda x: x * len(x.tolist()), "tolist"),
    "bool": Case(lambda x: x if x.mean((1, 2, 3)) > 0 else -x, "bool"),
    "numpy": Case(lambda x: torch.from_numpy(x.detach().numpy()), "numpy"),
    "asarray": Case(lambda x: torch.from_numpy(np.asarray(x.detach())), "array"),
    "asarray_of_torch": Case(lambda x: torch.asarray(x) * 2, "asarray"),
    "dlpack": Case(lambda x: torch.from_dlpack(x.detach()), "dlpack"),
    "storage": Case(lambda x: torch.tensor(list(x.untyped_storage())), "storage"),
    "as_strided": Case(lambda x: x.as_strided(x.shape, x.stride()), "as_strided"),
    "deepcopy": Case(lambda x: copy.deepcopy(x.detach()), "deepcopy"),
    "pickle": Case(lambda x: pickle.loads(pickle.dumps(x.detach())), "reduce_ex"),
    "sparse": Case(lambda x: x.to_sparse().to_dense(), "to_sparse"),
    "foreach": Case(lambda x: torch._foreach_add([x, x], 1)[0], "_foreach_add"),
    "overload": Case(lambda x: torch.ops.aten.avg_pool2d.default(x, [1, 1]), "avg_pool2d"),
    "overload_packet": Case(lambda x: torch.ops.aten.mul(x, 2), "mul"),
    "gradient": Case(lambda x: torch.autograd.grad(x, x, torch.ones_like(x))[0] * x, "grad"),
    "set_data": Case(lambda x: setattr(y := x * 2, "data", x) or y, "set"),  # type: ignore[func-returns-value]
    "bytes": Case(lambda x: x.view(torch.int64), "view"),
    # writing what the engine must not lose sight of
    "write_row": Case(lambda x: (x * 1).index_fill_(2, torch.tensor([0]), 0.0), "index_fill_"),
    "write_position": Case(lambda x: torch.Tensor.__setitem__(x * 1, (..., 0), 0.0), "setitem"),
    "write_running_mean": Case(lambda x: torch.zeros(8, dtype=x.dtype).lerp_(x.detach().mean((2, 3)), 0.1), "lerp_"),
    "scatter": Case(lambda x: torch.zeros(x.shape, dtype=x.dtype).scatter_(2, x.to(torch.int64) * 0, x), "scatter_"),
    "without_gradients": Case(lambda x: without_gradients(lambda: x.roll(1, 2)), "roll"),
}  # fmt: skip


def without_gradients(function: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return function()


@BLOCKS
@cases(MIXING)
def test_is_refused_by_name(case: Case, block: tuple[int, int]) -> None:
    message = refusal(case.part, block)
    assert case.name in message.partition(" cannot be carried out")[0], message
    assert "in module 'stages.1" in message
    assert_names_the_ways_out(message)


@pytest.mark.parametrize("name", ["attention", "mean_of_rows", "roll", "conv_unpadded", "circular"])
def test_is_refused_with_nothing_hidden(name: str) -> None:
    """No mask makes a function that mixes positions of packed patches harmless."""
    refusal(MIXING[name].part, SIZES["patches_4x4"], all_visible())


def test_circular_padding_is_refused() -> None:
    message = refusal(nn.CircularPad2d(1), SIZES["patches_4x4"])
    assert "pad" in message
    assert "circular" in message


def test_reference_refuses_too() -> None:
    """What mixes positions has no more meaning densely than packed."""
    for name in (
        "attention", "attention_axial", "mean_of_rows", "mean_of_images", "roll", "fft", "bilinear", "crop",
        "batch_norm_of_padded", "group_norm_of_padded", "shuffle_with_a_fifth_axis",
    ):  # fmt: skip
        with pytest.raises(UnsupportedOperation):
            run(MaskedDenseExecution(random_grid()), Host(MIXING[name].part), images_of((4, 4)))


def test_innermost_module_is_named() -> None:
    part = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Apply(lambda x: x.tril())))
    assert "in module 'stages.1.1.1'" in refusal(part, (4, 4))


def test_network_itself_is_not_named_by_an_empty_path() -> None:
    with pytest.raises(UnsupportedOperation, match=r"^[^']*tril"):
        run(SparseExecution(random_grid()), Apply(lambda x: x.tril()), images_of((4, 4)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.max_unpool2d(x, torch.zeros_like(x).long(), 1), "max_unpool2d"),  # type: ignore[arg-type]
        (lambda x: F.fractional_max_pool2d(x, 1, output_size=1), "fractional_max_pool2d"),
        (lambda x: torch.ops.aten.cummin(x, 1)[0], "aten"),
        (lambda x: x.imag, "imag"),
    ],
)
def test_functions_are_named_as_they_are_written(function: Function, name: str) -> None:
    """Not by what implements them: 'boolean_dispatch.<locals>.fn' or 'pybind11_detail...' help nobody."""
    message = refusal(function, (4, 4))
    named = message.partition(" cannot be carried out")[0]
    assert name in named
    assert "<locals>" not in named
    assert "pybind" not in named


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what newer releases of torch deprecate
    scripted_swish = torch.jit.script(swish)


def calls_a_scripted_function(x: Tensor) -> Tensor:
    return scripted_swish(x) + 1


class KeepsFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = scripted_swish

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.conv2d(self.act(x), constant(8, 8, 1, 1))
        return out


@pytest.mark.parametrize("gradients", [True, False])
@cases(
    {
        "at the end": lambda x: scripted_swish(x),
        "before a convolution": lambda x: F.conv2d(scripted_swish(x), constant(8, 8, 1, 1)),
        "added": lambda x: x + scripted_swish(x),
        "in a function": calls_a_scripted_function,
        "attribute": KeepsFunction(),
    }
)
def test_scripted_functions_are_named(case: nn.Module | Function, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        message = refusal(case, SIZES["patches_4x4"])
    assert "scripted functions, which may be the reason: swish" in message
    assert_names_the_ways_out(message)


def test_functions_that_are_not_scripted_are_not_named() -> None:
    assert "scripted functions" not in refusal(lambda x: x + torch.rand(x.shape[2], 1), SIZES["patches_4x4"])


# --- noise of unknown origin ------------------------------------------------------------------------------------------


NOISE = {
    "drop_block": lambda x: torchvision.ops.drop_block2d(x, 0.5, 1),
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: x * x.mean((2, 3)).exp().multinomial(1)[..., None, None],
}  # fmt: skip


@BLOCKS
@cases(NOISE)
def test_noise_of_unknown_origin(case: nn.Module | Function, block: tuple[int, int]) -> None:
    assert_names_the_ways_out(refusal(case, block))


# --- networks that attend ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pvt_v2_b0", 64),
        ("caformer_s18", 64),
        ("twins_svt_small", 224),
        ("xcit_nano_12_p8_224", 224),
        ("efficientvim_m1", 224),
        ("coatnet_0_rw_224", 224),
    ],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch", [1, 2])
def test_timm_networks_with_attention(
    networks: dict[str, nn.Module], name: str, size: int, training: bool, batch: int
) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    if name not in networks:
        networks[name] = timm.create_model(name, num_classes=0, pretrained=False)
    network: Any = networks[name].train(training)

    def features(x: Tensor) -> Any:
        if hasattr(network, "forward_intermediates"):
            return network.forward_intermediates(x, intermediates_only=True)
        return network.forward_features(x)

    visible = torch.zeros(batch, size // 32, size // 32, dtype=torch.bool)
    visible[:, 0] = True
    grid = PatchGrid(visible, size // 32)
    with pytest.raises(UnsupportedOperation) as caught:
        run(SparseExecution(grid), network, torch.randn(batch, 3, size, size), features)
    message = str(caught.value)
    assert message.startswith(("in module '", "torch.Tensor.add"))  # the network itself may add a position embedding
    functions = ("scaled_dot_product_attention", "reshape", "add", "matmul", "arange", "conv2d")
    assert any(function in message for function in functions)
    assert_names_the_ways_out(message)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Made once: they are large."""
    return {}
