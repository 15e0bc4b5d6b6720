"""No wrong number comes without an error.

What has no meaning on visible patches raises :class:`UnsupportedOperation`, which names the function, the module that
calls it and the two ways out. Where a network may be answered after all, `right_or_refused` holds the answer against
the ordinary network (nothing hidden) and against the ordinary network on the cropped image (a rectangle visible).
"""

from __future__ import annotations

import copy
import pickle
import threading
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
from torch.utils.checkpoint import checkpoint

from sparkmim import sparse
from sparkmim.sparse import (
    Execution,
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    dense_fallback,
    run,
)
from sparkmim.sparse.registry import RULES

BATCH, CHANNELS, GRID = 2, 8, (2, 3)
SIZES = {"patches_4x4": (4, 4), "patches_1x1": (1, 1)}
BLOCKS = pytest.mark.parametrize("block", list(SIZES.values()), ids=list(SIZES))

Function = Callable[[Tensor], Any]


def constant(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Host(nn.Module):
    """A convolution and the part under test, whose path is 'stages.1'."""

    def __init__(self, part: nn.Module | Function) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.stem.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
        self.stages = nn.Sequential(nn.Identity(), part if isinstance(part, nn.Module) else Calls(part))

    def forward(self, x: Tensor) -> Any:
        return self.stages(self.stem(x))


def images_of(block: tuple[int, int], batch: int = BATCH) -> Tensor:
    size = tuple(g * b for g, b in zip(GRID, block, strict=True))
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_grid(batch: int = BATCH) -> PatchGrid:
    cells = torch.rand(batch, 6, generator=torch.Generator().manual_seed(7)).argsort(1)
    return PatchGrid((cells < 3).view(batch, *GRID), 3)


def all_visible(batch: int = BATCH) -> PatchGrid:
    return PatchGrid(torch.ones(batch, *GRID, dtype=torch.bool), 6)


def right_columns(batch: int = BATCH) -> PatchGrid:
    visible = torch.zeros(batch, *GRID, dtype=torch.bool)
    visible[:, :, 1:] = True
    return PatchGrid(visible, 4)


def refusal(part: nn.Module | Function, block: tuple[int, int], grid: PatchGrid | None = None) -> str:
    """The message of the error that a network of this part raises on patches."""
    with pytest.raises(UnsupportedOperation) as caught:
        run(SparseExecution(grid or random_grid()), Host(part), images_of(block))
    return str(caught.value)


def assert_names_the_ways_out(message: str) -> None:
    assert "sparkmim.sparse.register(" in message
    assert "sparkmim.sparse.dense_fallback(" in message


def values_and_gradients(run: Callable[[Tensor], Tensor], images: Tensor, network: nn.Module) -> list[Tensor]:
    images = images.clone().requires_grad_()
    out = run(images)
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * projection).sum(), [images, *network.parameters()])]


def assert_close(found: list[Tensor], expected: list[Tensor], truth: str) -> None:
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, msg=lambda m: f"{truth}: {m}")


def right_or_refused(part: nn.Module | Function, block: tuple[int, int], batch: int = BATCH) -> bool:
    """Whether it was answered; a wrong answer fails, and so does an error of another kind."""
    network, images = Host(part), images_of(block, batch)
    whole, crop = all_visible(batch), right_columns(batch)
    first = block[1]

    def packed(images: Tensor) -> Tensor:
        return whole.unpack(run(SparseExecution(whole), network, images)[0])

    def packed_crop(images: Tensor) -> Tensor:
        out = crop.unpack(run(SparseExecution(crop), network, images)[0])
        return out[..., out.shape[-1] // GRID[1] :]

    answers = 0
    try:
        found = values_and_gradients(packed, images, network)
    except UnsupportedOperation as error:
        assert_names_the_ways_out(str(error))
    else:
        answers += 1
        assert_close(found, values_and_gradients(network, images, network), "nothing hidden")
    try:
        found = values_and_gradients(packed_crop, images, network)
    except UnsupportedOperation as error:
        assert_names_the_ways_out(str(error))
    else:
        answers += 1
        found[1] = found[1][..., first:]
        assert_close(found, values_and_gradients(network, images[..., first:], network), "a rectangle visible")
    assert answers in (0, 2), "whether it is refused depends on the mask"
    return answers == 2


# --- functions and modules that mix positions or images -------------------------------------------------------------


class Case(NamedTuple):
    """A part of a network, and what the error must name besides its path."""

    part: nn.Module | Function
    name: str


def nhwc(function: Function) -> Function:
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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


def conv(*args: Any, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, *args, dtype=torch.float64, **kwargs)


MIXING = {
    "attention": Case(Attention(fused=False), "mT"),
    "attention_fused": Case(Attention(fused=True), "scaled_dot_product_attention"),
    "attention_convolutional": Case(ConvolutionalAttention(), "mT"),
    "attention_axial": Case(AxialAttention(), "mT"),
    "attention_of_rows": Case(nhwc(lambda x: F.scaled_dot_product_attention(x, x, x)), "scaled_dot_product_attention"),
    "attention_of_positions": Case(lambda x: x @ x.transpose(-1, -2), "matmul"),
    "attention_weights": Case(lambda x: x.softmax(-1), "softmax"),
    "attention_module": Case(
        lambda x: nn.MultiheadAttention(8, 2, dtype=torch.float64)(x[:, :, 0], x[:, :, 0], x[:, :, 0])[0], "getitem"
    ),
    "tokens_of_all_images": Case(lambda x: x.permute(0, 2, 3, 1).reshape(-1, CHANNELS), "reshape"),
    "tokens_and_channels": Case(lambda x: x.reshape(x.shape[0], -1), "reshape"),
    "tokens_related": Case(lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2), "matmul"),
    "tokens_convolved": Case(lambda x: F.conv1d(x.flatten(2), constant(8, 8, 3), padding=1), "conv1d"),
    "tokens_normalised": Case(lambda x: F.instance_norm(x.flatten(2)), "instance_norm"),
    "tokens_padded": Case(lambda x: F.pad(x.flatten(2), (1, 1)), "pad"),
    "tokens_strided": Case(lambda x: x.flatten(2)[..., ::1][..., ::2], "getitem"),
    "tokens_picked": Case(lambda x: x.view(*x.shape[:2], -1)[..., 0], "getitem"),
    "tokens_mixed": Case(lambda x: F.linear(x.flatten(2), constant(*[x.shape[2:].numel()] * 2)), "linear"),
    "tokens_in_rows": Case(lambda x: x.flatten(2).reshape(x.shape[0], 8, x.shape[3], x.shape[2]), "reshape"),
    "mixer": Case(lambda x: F.linear(x, constant(x.shape[-1], x.shape[-1])), "linear"),
    "einsum_of_space": Case(lambda x: torch.einsum("bchw,bcxy->bhwxy", x, x), "einsum"),
    "einsum_of_channels": Case(lambda x: torch.einsum("bchw,dc->bdhw", x, constant(8, 8)), "einsum"),
    "bmm": Case(lambda x: torch.bmm(x[:, 0], x[:, 1]), "bmm"),
    "cdist": Case(lambda x: torch.cdist(x, x), "cdist"),
    "cosine_similarity": Case(lambda x: F.cosine_similarity(x, x.flip(1), dim=2), "cosine_similarity"),
    "recurrent": Case(Recurrent(), "lstm"),
    # reductions
    "mean_of_rows": Case(lambda x: x - x.mean(2, keepdim=True), "mean"),
    "mean_of_columns": Case(lambda x: x - torch.mean(x, dim=-1, keepdim=True), "mean"),
    "sum_in_turn": Case(lambda x: x / x.sum(-1).sum(-1)[..., None, None], "sum"),
    "amax_of_rows": Case(lambda x: x - x.amax(dim=3, keepdim=True), "amax"),
    "std_of_rows": Case(lambda x: x / x.std(2, keepdim=True), "std"),
    "logsumexp_of_rows": Case(lambda x: x - x.logsumexp(-1, True), "logsumexp"),
    "batch_mean": Case(lambda x: x - x.mean((0, 2, 3), keepdim=True), "mean"),
    "batch_variance": Case(lambda x: x / torch.var_mean(x, (0, 2, 3), keepdim=True)[0], "var_mean"),
    "mean_of_images": Case(lambda x: x - x.mean(0), "mean"),
    "mean_of_gates": Case(lambda x: x - x.mean((2, 3), keepdim=True).mean(0), "mean"),
    "mean_of_everything": Case(lambda x: x - x.mean(), "mean"),
    "sum_of_everything": Case(lambda x: x / torch.sum(x), "sum"),
    "norm_of_everything": Case(lambda x: x / x.norm(), "norm"),
    "max_of_everything": Case(lambda x: x / x.max(), "max"),
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
    "index_select": Case(lambda x: x.index_select(3, torch.arange(x.shape[3])), "index_select"),
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
    "diff": Case(lambda x: x.diff(dim=1), "diff"),
    "repeat": Case(lambda x: x.repeat(1, 1, 2, 2), "repeat"),
    "tile": Case(lambda x: x.tile((1, 1, 2, 2)), "tile"),
    "repeat_interleave": Case(lambda x: x.repeat_interleave(2, 3), "repeat_interleave"),
    "cat_images": Case(lambda x: torch.cat([x, x]), "cat"),
    "cat_rows": Case(lambda x: torch.cat([x, x], dim=2), "cat"),
    "shift_by_cat": Case(lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2), "getitem"),
    "unfold": Case(lambda x: F.unfold(x, 3, padding=1), "unfold"),
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
    "pool_with_places": Case(lambda x: F.max_pool2d(x, 1, return_indices=True)[1], "max_pool2d"),
    "pool_adaptive_with_places": Case(lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True)[1], "max_pool2d"),
    "pool_fractional": Case(lambda x: F.fractional_max_pool2d(x, 1, output_size=1), "fractional_max_pool2d"),
    "pool_lp": Case(lambda x: F.lp_pool2d(x, 2.0, 1), "lp_pool2d"),
    "pool_unaligned": Case(nn.MaxPool2d(3, 2), "max_pool2d"),
    "pool_unaligned_avg": Case(lambda x: F.avg_pool2d(x, 3, 1), "avg_pool2d"),
    "pool_of_one_axis": Case(lambda x: F.avg_pool1d(x[:, 0], 1), "avg_pool1d"),
    "bilinear": Case(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), "interpolate"),
    "bilinear_positional": Case(lambda x: F.interpolate(x, None, 2, "bicubic", True), "interpolate"),
    "area": Case(lambda x: F.interpolate(x, scale_factor=1, mode="area"), "interpolate"),
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
    "padded_norm": Case(lambda x: F.batch_norm(F.pad(x, [1] * 4), None, None, training=True), "batch_norm"),
    "padded_mean": Case(lambda x: x - F.pad(x, (1, 1, 1, 1)).mean((2, 3), keepdim=True), "mean"),
    "padded_crop": Case(lambda x: F.pad(x, (1, 1, 1, 1))[..., 2:, 2:], "getitem"),
    "padded_view": Case(lambda x: F.pad(x, (1, 1, 1, 1)).flatten(1, 1), "flatten"),
    "conv_circular": Case(conv(3, padding=1, padding_mode="circular"), "pad"),
    "conv_unpadded": Case(conv(3), "conv2d"),
    "conv_padded_too_much": Case(conv(3, padding=2), "conv2d"),
    "conv_stride": Case(conv(3, stride=3), "conv2d"),
    "conv_even": Case(conv(2), "conv2d"),
    "conv_dilated": Case(conv(3, padding=1, dilation=2), "conv2d"),
    "conv_transposed": Case(nn.ConvTranspose2d(8, 8, 2, 2, dtype=torch.float64), "conv_transpose2d"),
    "conv_channels_last": Case(nhwc(lambda x: F.conv2d(x, constant(x.shape[1], x.shape[1], 1, 1))), "conv2d"),
    "conv_of_the_input": Case(
        lambda x: F.conv2d(x, F.linear(x.mean((2, 3)), constant(8, 8))[:, :, None, None]), "conv2d"
    ),
    "conv_bias_of_the_input": Case(lambda x: F.conv2d(x, constant(8, 8, 1, 1), x.mean((1, 2, 3))), "conv2d"),
    "conv_with_the_input": Case(lambda x: F.conv2d(constant(1, 8, 9, 9), x), "conv2d"),
    "bilinear_form": Case(nhwc(lambda x: F.bilinear(x, x, constant(8, 8, 8))), "bilinear"),
    "layer_norm_of_space": Case(lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
    "layer_norm_native": Case(
        nhwc(lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5)[0]), "native_layer_norm"
    ),
    "response_norm": Case(nn.LocalResponseNorm(2), "local_response_norm"),
    "batch_norm_of_padded": Case(lambda x: F.batch_norm(F.pad(x, [1] * 4), None, None, training=True), "batch_norm"),
    "group_norm_of_padded": Case(lambda x: F.group_norm(F.pad(x, [1] * 4), 2), "group_norm"),
    "shuffle_with_a_fifth_axis": Case(lambda x: F.pixel_shuffle(x.unsqueeze(-1), 2)[..., 0], "pixel_shuffle"),
    "batch_norm_channels_last": Case(
        nhwc(lambda x: F.batch_norm(x, None, None, training=True)), "batch_norm"
    ),
    # leaving torch, or what the engine can see of it
    "item": Case(lambda x: x * x.mean((1, 2, 3)).item(), "item"),
    "to_list": Case(lambda x: x * len(x.tolist()), "tolist"),
    "bool": Case(lambda x: x if x.mean((1, 2, 3)) > 0 else -x, "bool"),
    "numpy": Case(lambda x: torch.from_numpy(x.detach().numpy()), "numpy"),
    "asarray": Case(lambda x: torch.from_numpy(np.asarray(x.detach())), "array"),
    "as_tensor": Case(lambda x: torch.as_tensor(x) * 2, "as_tensor"),
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
    "gradient_hook": Case(lambda x: x.register_hook(lambda g: g.roll(1, 2)) and x, "register_hook"),
    "set_data": Case(lambda x: setattr(y := x * 2, "data", x) or y, "set"),
    "bytes": Case(lambda x: x.view(torch.int64), "view"),
    # writing what the engine must not lose sight of
    "write_row": Case(lambda x: (x * 1).index_fill_(2, torch.tensor([0]), 0.0), "index_fill_"),
    "write_position": Case(lambda x: torch.Tensor.__setitem__(x * 1, (..., 0), 0.0), "setitem"),
    "write_outside": Case(lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x), "copy_"),
    "write_outside_part": Case(
        lambda x: torch.Tensor.__setitem__(torch.zeros(x.shape, dtype=x.dtype), slice(None), x), "setitem"
    ),
    "write_outside_sum": Case(lambda x: torch.zeros(x.shape, dtype=x.dtype).add_(x), "add_"),
    "write_outside_operator": Case(lambda x: torch.Tensor.__iadd__(torch.zeros(x.shape, dtype=x.dtype), x), "add_"),
    "write_outside_out": Case(lambda x: torch.mul(x.detach(), 2, out=torch.zeros(x.shape, dtype=x.dtype)), "mul"),
    "write_running_mean": Case(lambda x: torch.zeros(8, dtype=x.dtype).lerp_(x.detach().mean((2, 3)), 0.1), "lerp_"),
    "scatter": Case(lambda x: torch.zeros(x.shape, dtype=x.dtype).scatter_(2, x.to(torch.int64) * 0, x), "scatter_"),
    "without_gradients": Case(lambda x: without_gradients(lambda: x * 2), "mul"),
}  # fmt: skip


def without_gradients(function: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return function()


def parts(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases.values()), ids=list(cases))


@BLOCKS
@parts(MIXING)
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
        "attention", "attention_axial", "mean_of_rows", "batch_mean", "roll", "fft", "bilinear", "crop",
        "batch_norm_of_padded", "group_norm_of_padded", "shuffle_with_a_fifth_axis",
    ):  # fmt: skip
        with pytest.raises(UnsupportedOperation):
            run(MaskedDenseExecution(random_grid()), Host(MIXING[name].part), images_of((4, 4)))


def test_innermost_module_is_named() -> None:
    part = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Calls(lambda x: x.cummin(1)[0])))
    assert "in module 'stages.1.1.1'" in refusal(part, (4, 4))


def test_network_itself_is_not_named_by_an_empty_path() -> None:
    with pytest.raises(UnsupportedOperation, match=r"^[^']*cummin"):
        run(SparseExecution(random_grid()), Calls(lambda x: x.cummin(1)[0]), images_of((4, 4)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.max_pool3d(x, 1), "max_pool3d"),
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


# --- parts that are answered or refused, but never wrong ------------------------------------------------------------


def keyword_forms() -> dict[str, Function]:
    """Functions called as torch allows, though seldom done."""
    return {
        "cat_axis": lambda x: torch.cat([x, x * 2], axis=1),
        "concatenate": lambda x: torch.concatenate((x, x * 2), axis=1).sum(1, keepdim=True) * x,
        "chunk": lambda x: torch.chunk(x, chunks=2, dim=1)[0],
        "split": lambda x: torch.split(x, split_size_or_sections=4, dim=1)[1],
        "split_method": lambda x: x.split(split_size=4, dim=1)[1],
        "tensor_split": lambda x: torch.tensor_split(x, sections=2, dim=1)[0],
        "stack_axis": lambda x: torch.stack([x, x * 2], axis=1).sum(1),
        "mean_input": lambda x: x * torch.mean(input=x, dim=(2, 3), keepdim=True),
        "linear_input": nhwc(lambda x: F.linear(input=x, weight=constant(8, 8))),
        "layer_norm_input": nhwc(lambda x: F.layer_norm(input=x, normalized_shape=(8,))),
        "softmax_input": lambda x: torch.softmax(input=x, dim=1),
        "normalize_input": lambda x: F.normalize(input=x),
        "reshape_shape": lambda x: torch.reshape(x, shape=(x.shape[0], 2, 4, *x.shape[2:])).sum(1),
        "permute_input": lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)).permute(0, 3, 1, 2),
        "transpose_input": lambda x: torch.transpose(input=x, dim0=1, dim1=0).transpose(0, 1),
        "unsqueeze_input": lambda x: torch.unsqueeze(input=x, dim=1).sum(1),
        "flatten_input": lambda x: torch.flatten(input=x.unflatten(1, (2, 4)), start_dim=1, end_dim=2),
        "expand_size": lambda x: x[:, :1].expand(size=x.shape) * x,
        "pixel_shuffle": lambda x: F.pixel_shuffle(x, upscale_factor=2),
        "dropout": lambda x: F.dropout(input=x, p=0.5, training=False),
        "relu": lambda x: F.relu(input=x),
        "add": lambda x: torch.add(input=x, other=x, alpha=2),
        "where": lambda x: torch.where(condition=x > 0, input=x, other=-x),
        "where_one": lambda x: torch.zeros_like(x).index_put(torch.where(x > 0), torch.tensor(1.0, dtype=x.dtype)),
        "max_pool": lambda x: F.max_pool2d(input=x, kernel_size=3, stride=1, padding=1),
        "max_pool_method": lambda x: torch.max_pool2d(x, kernel_size=[3], stride=[1], padding=[1]),
        "avg_pool": lambda x: F.avg_pool2d(
            input=x, kernel_size=(3, 3), stride=1, padding=(1, 1), count_include_pad=False
        ),
        "adaptive_pool": lambda x: x * F.adaptive_avg_pool2d(input=x, output_size=1),
        "conv": lambda x: F.conv2d(input=x, weight=constant(8, 8, 3, 3), padding=1),
        "conv_same": lambda x: torch.conv2d(x, constant(8, 8, 3, 3), None, 1, "same"),
        "pad_keywords": lambda x: F.conv2d(
            F.pad(input=x, pad=[1, 1, 1, 1], mode="constant", value=0.0), constant(8, 8, 3, 3)
        ),
        "group_norm": lambda x: F.group_norm(input=x, num_groups=2),
        "batch_norm": lambda x: F.batch_norm(input=x, running_mean=None, running_var=None, training=True),
        "interpolate": lambda x: F.interpolate(input=x, scale_factor=(2, 2), mode="nearest"),
        "squeeze": lambda x: torch.squeeze(input=x[:, :1], dim=1)[:, None],
        "std_positional": lambda x: x / x.std((2, 3), True)[..., None, None],
        "std_of_channels": lambda x: x / x.std(1, True)[:, None],
        "norm_p": lambda x: x / torch.norm(input=x, p=2, dim=(2, 3), keepdim=True),
        "linalg_norm": lambda x: x / torch.linalg.norm(x, dim=(2, 3), keepdim=True),
        "matrix_norm": lambda x: x / torch.linalg.norm(x, ord=2, dim=(2, 3), keepdim=True),
        "nuclear_norm": lambda x: x / torch.norm(x, "nuc", dim=(2, 3), keepdim=True),
        "frobenius_norm": lambda x: x / torch.norm(x, "fro", dim=(2, 3), keepdim=True),
        "mean_of_no_axis": lambda x: x - x.mean(dim=()),
        "mean_of_none": lambda x: x - x.mean(dim=None),
    }  # fmt: skip


@BLOCKS
@parts(keyword_forms())
def test_odd_arguments(case: Function, block: tuple[int, int]) -> None:
    right_or_refused(case, block)


# What a network reads from `x.shape` is the size of a patch and the number of patches. A rule sees a number and cannot
# know where it comes from, so not all of these can be refused: then `check` must find them.
SIZES_READ = {
    "sum_over_area": lambda x: x - x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]),
    "simam": lambda x: x / (x.square().sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] + 1)),
    "pool_by_size_gate": lambda x: x * F.avg_pool2d(x, x.shape[2:]),
    "pool_by_size": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "pool_by_size_max": lambda x: x * F.max_pool2d(x, kernel_size=x.size()[2:]),
    "pool_by_size_and_back": lambda x: x + F.interpolate(F.avg_pool2d(x, x.shape[2:]), size=x.shape[2:]),
    "pool_to_its_own_size": lambda x: x + F.adaptive_avg_pool2d(x, x.shape[2:]),
    "position_embedding": lambda x: x + constant(1, CHANNELS, *x.shape[2:]),
    "position_embedding_interpolated": lambda x: (
        x + F.interpolate(constant(1, CHANNELS, 8, 12), size=x.shape[2:], mode="bilinear")
    ),
    "position_embedding_cropped": lambda x: x + constant(1, CHANNELS, 8, 12)[..., : x.shape[2], : x.shape[3]],
    "coordinates": lambda x: x + torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype),
    "noise_by_position": lambda x: x * constant(*x.shape[2:]),
    "scaled_by_size": lambda x: x / x.shape[-1] ** 0.5,
    "written_constant": lambda x: torch.cat([x, torch.ones_like(x[:, :1]) * torch.arange(x.shape[3])], 1),
}  # fmt: skip


@BLOCKS
@parts(SIZES_READ)
def test_sizes_read_from_a_patch(case: Function, block: tuple[int, int]) -> None:
    right_refused_or_found(case, block)


def right_refused_or_found(case: Function, block: tuple[int, int]) -> None:
    try:
        right_or_refused(case, block)
    except AssertionError:
        assert not sparse.check(Host(case), patch_size=block, grid=GRID).passed


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (4, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4, 8, (4, 8)], ids=str)
def test_resampling_to_a_number_of_pixels(size: Any, block: tuple[int, int]) -> None:
    """A size written into the network is that of the whole map, `x.shape` is that of a patch."""
    right_refused_or_found(lambda x: F.interpolate(x, size=size), block)


@pytest.mark.parametrize("block", [(2, 2), (4, 4)], ids=str)
def test_resampling_to_the_size_of_another_map(block: tuple[int, int]) -> None:
    """The usual way to bring a feature pyramid together must work."""
    assert right_or_refused(lambda x: x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]), block)
    assert right_or_refused(lambda x: x + F.interpolate(F.avg_pool2d(x, 2), x.shape[2:]), block)


# --- out of sight ---------------------------------------------------------------------------------------------------


def neighbours(x: Tensor) -> Tensor:
    """What an engine that does not see it gets wrong."""
    return F.avg_pool2d(x, 3, 1, 1)


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1)


class WithoutFunctions(torch.autograd.Function):
    """A custom function whose forward is out of sight, as that of an extension in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return neighbours(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbours(grad)


class WithFunctions(torch.autograd.Function):
    """A custom function whose forward is seen, but not its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbours(grad)


class Same(torch.autograd.Function):
    """The input itself, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbours(grad)


class InPlace(torch.autograd.Function):
    """Writes its input, as activated batch norm does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        with torch._C.DisableTorchFunction():
            x.copy_(neighbours(x))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return neighbours(grad)


def in_a_thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(neighbours(x)))
    thread.start()
    thread.join()
    return found[0]


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Neighbours())


def scripted_function() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(neighbours)


def traced() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Neighbours(), torch.zeros(2, 8, 4, 4, dtype=torch.float64), check_trace=False)


HIDDEN = {
    "scripted": scripted(),
    "scripted_function": scripted_function(),
    "traced": traced(),
    "function_out_of_sight": WithoutFunctions.apply,
    "function_in_sight": WithFunctions.apply,
    "function_of_the_same": Same.apply,
    "parameter": lambda x: neighbours(nn.Parameter(x)),
    "constructor": lambda x: neighbours(torch.DoubleTensor(x)),
    "vmap": torch.vmap(neighbours),
    "thread": in_a_thread,
    "data_through_another_tensor": lambda x: neighbours(torch._C._autograd._get_data_attr(x)),
}

LED_BACK = {
    "alone": lambda hidden, x: hidden,
    "added": lambda hidden, x: x + hidden,
    "convolved": lambda hidden, x: F.conv2d(hidden, constant(8, 8, 3, 3), padding=1),
    "concatenated": lambda hidden, x: torch.cat([x, hidden], 1),
    "gate": lambda hidden, x: x * F.adaptive_avg_pool2d(hidden, 1),
    "written": lambda hidden, x: (x * 1).copy_(hidden),
}


@BLOCKS
@pytest.mark.parametrize("back", LED_BACK)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_out_of_sight(hidden: str, back: str, block: tuple[int, int]) -> None:
    """Whatever the engine cannot follow, its result must not find a way back into the network."""
    right_or_refused(lambda x: LED_BACK[back](HIDDEN[hidden](x), x), block)


@BLOCKS
@pytest.mark.parametrize(
    "hidden", ["scripted", "scripted_function", "traced", "function_out_of_sight", "vmap", "thread"]
)
def test_what_is_hidden_is_refused(hidden: str, block: tuple[int, int]) -> None:
    for back in ("alone", "added", "convolved"):
        refusal(lambda x: LED_BACK[back](HIDDEN[hidden](x), x), block)  # noqa: B023


@pytest.mark.parametrize("hidden", ["scripted", "function_out_of_sight", "thread"])
@pytest.mark.parametrize("reduced", ["number", "channels"])
def test_constant_from_out_of_sight(hidden: str, reduced: str) -> None:
    """What is the same for all samples and positions looks like a weight, but descends from the input."""

    def part(x: Tensor) -> Tensor:
        y = HIDDEN[hidden](x)
        return x * (y.mean() if reduced == "number" else y.mean((0, 2, 3), keepdim=True))

    right_or_refused(part, (4, 4))


class HiddenStatistic(torch.autograd.Function):
    """The mean of all samples and positions, which looks like a weight, `(1, C, 1, 1)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x.mean((0, 2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@parts(
    {
        "multiplied": lambda x: x * HiddenStatistic.apply(x),
        "in_a_list": lambda x: x * torch.cat([HiddenStatistic.apply(x)]),
        "in_a_list_with_a_constant": lambda x: x * torch.stack([HiddenStatistic.apply(x), constant(1, 8, 1, 1)]).sum(0),
        "weight_of_a_convolution": lambda x: F.conv2d(x, HiddenStatistic.apply(x).view(8, 1, 1, 1), groups=8),
        "bias_of_a_convolution": lambda x: F.conv2d(x, constant(8, 8, 1, 1), HiddenStatistic.apply(x).flatten()),
        "weight_of_a_linear_map": lambda x: F.linear(
            x.permute(0, 2, 3, 1), HiddenStatistic.apply(x).flatten().diag()
        ).permute(0, 3, 1, 2),
        "factor_of_a_product": lambda x: (x.permute(0, 2, 3, 1) @ HiddenStatistic.apply(x).flatten().diag()).permute(
            0, 3, 1, 2
        ),
        "weight_of_a_norm": lambda x: F.group_norm(x, 2, HiddenStatistic.apply(x).flatten()),
        "weight_of_an_activation": lambda x: F.prelu(x, HiddenStatistic.apply(x).flatten()),
    }
)
def test_statistic_from_out_of_sight_is_refused(case: Function) -> None:
    assert "out of sight" in refusal(case, (4, 4))


@parts(
    {
        "chunk": lambda x, w: x * w.chunk(2)[0] + w.chunk(2)[1],
        "split": lambda x, w: F.conv2d(x, w.view(16, 1, 1, 1).split(8)[1], groups=8),
        "unbind": lambda x, w: x * w.view(2, 8, 1, 1).unbind(0)[1],
        "iteration": lambda x, w: sum(x * part for part in w.view(2, 8, 1, 1)),
        "std_mean": lambda x, w: x * torch.std_mean(w)[0],
        "max": lambda x, w: x * w.view(2, 8, 1, 1).max(0).values,
        "list": lambda x, w: x * torch.cat([w[:4], w[12:]]),
    }
)
def test_results_of_parameters_are_constants(case: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Those that come in tuples too."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(constant(16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return case(x, self.weight)

    assert right_or_refused(Scaled(), (4, 4))


def test_parameters_may_be_results() -> None:
    """Those that `torch.func.functional_call` puts in the place of a network's own: of a meta-learner, say."""
    network, grid = Host(Gate()), random_grid()
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return run(SparseExecution(grid), self.network, x)[0]

    own = {name: parameter.detach() for name, parameter in Packed().named_parameters()}
    expected = Packed()(images_of((4, 4)))
    replaced = {name: value * gain for name, value in own.items()}
    found = torch.func.functional_call(Packed(), replaced, (images_of((4, 4)),))
    torch.testing.assert_close(found, expected)
    (along_gain,) = torch.autograd.grad(found.square().sum(), gain)
    of_each = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
    total = sum(
        (g * own[f"network.{name}"]).sum() for (name, _), g in zip(network.named_parameters(), of_each, strict=True)
    )
    torch.testing.assert_close(along_gain, total)


def test_custom_function_is_refused_without_gradients_too() -> None:
    with torch.no_grad():
        refusal(lambda x: x + WithoutFunctions.apply(x), (4, 4))


def test_custom_function_that_writes_its_input() -> None:
    """It gives back the very tensor it was given, which the engine takes for what it was."""
    grid, network = all_visible(), Host(lambda x: InPlace.apply(x * 1) * 2)
    with pytest.raises((UnsupportedOperation, SystemError)):  # torch hides an exception of ours while it wraps its own
        run(SparseExecution(grid), network, images_of((4, 4)))


class Remembers(nn.Module):
    def __init__(self, keep: Function) -> None:
        super().__init__()
        self.keep, self.kept = keep, None

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.kept is None else x + self.kept
        self.kept = self.keep(x)
        return out


@BLOCKS
@parts(
    {
        "map": lambda x: x,
        "detached": lambda x: x.detach() * 0.9,
        "gate": lambda x: x.mean((2, 3), keepdim=True),
    }
)
def test_tensor_of_an_earlier_pass(case: Function, block: tuple[int, int]) -> None:
    network = Host(Remembers(case))
    run(SparseExecution(random_grid()), network, images_of(block))
    with pytest.raises(UnsupportedOperation, match="another pass") as caught:
        run(SparseExecution(random_grid()), network, images_of(block))
    assert "in module 'stages.1'" in str(caught.value)
    assert_names_the_ways_out(str(caught.value))


# --- randomness -----------------------------------------------------------------------------------------------------


NOISE = {
    "empty": lambda x: x * torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(0.5),
    "empty_of_a_list": lambda x: x * torch.empty([x.size(0)] + [1] * (x.ndim - 1), dtype=x.dtype).uniform_(),
    "rand": lambda x: x * torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "rand_by_channel": lambda x: x * torch.rand(x.shape[:2], dtype=x.dtype)[..., None, None],
    "rand_by_position": lambda x: x * torch.rand(x.shape, dtype=x.dtype),
    "full": lambda x: x * torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype).bernoulli(),
    "torchvision": lambda x: torchvision.ops.stochastic_depth(x, 0.5, "row", training=True),
    "drop_block": lambda x: torchvision.ops.drop_block2d(x, 0.5, 1),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, training=True),
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: x * x.mean((2, 3)).exp().multinomial(1)[..., None, None],
}  # fmt: skip


@BLOCKS
@parts(NOISE)
def test_noise_of_unknown_origin(case: nn.Module | Function, block: tuple[int, int]) -> None:
    assert_names_the_ways_out(refusal(case, block))


@BLOCKS
@parts(
    {
        "new_empty": lambda x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5),
        "new_empty_by_channel": lambda x: x * x.new_empty(x.shape[0], x.shape[1], 1, 1).bernoulli_(0.5),
        "new_ones_by_channel": lambda x: x * x.new_ones((*x.shape[:2], 1, 1)).uniform_(),
        "new_full_bernoulli": lambda x: x * torch.bernoulli(x.new_full((x.shape[0], x.shape[1], 1, 1), 0.5)),
        "new_tensor_like": lambda x: x * torch.rand_like(x.new_zeros((x.shape[0], x.shape[1], 1, 1))),
        "gate_like": lambda x: x * torch.rand_like(x.mean((2, 3), keepdim=True)),
        "gate_dropout": lambda x: x * F.dropout(x.mean((2, 3), keepdim=True) * 0 + 1, 0.5),
        "dropout2d": lambda x: F.dropout2d(x, 0.5),
    }
)
def test_noise_of_an_image_is_the_same_in_its_patches(case: Function, block: tuple[int, int]) -> None:
    """Or refused: with patches of one pixel, noise for every channel of an image has the shape of a map."""
    grid = random_grid(batch=8)
    torch.manual_seed(0)
    ones = Calls(lambda x: case(x[:, :1].expand(-1, 8, -1, -1) * 0 + 1))
    try:
        (out,) = run(SparseExecution(grid), ones, images_of(block, batch=8))
    except UnsupportedOperation:
        return
    patches = grid.by_image(out)
    assert torch.equal(patches, patches[:, :1, :, :1, :1].expand_as(patches))
    assert len(out.unique()) > 1, "nothing was drawn"


# --- recomputation --------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Nothing of it that backward keeps tells an image's mean from a patch's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(constant(CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * x.mean((2, 3), keepdim=True)


class Checkpointed(nn.Module):
    """`inner` computed again in backward: the module, or a method that calls what it does."""

    def __init__(self, inner: nn.Module, method: bool, **kwargs: Any) -> None:
        super().__init__()
        self.inner, self.method, self.kwargs = inner, method, kwargs

    def called(self, x: Tensor) -> Tensor:
        return self.inner.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.called if self.method else self.inner, x, **self.kwargs)


RECOMPUTED = {
    "gate": Gate,
    "conv": lambda: conv(3, padding=1),
    "depthwise": lambda: conv(7, padding=3, groups=CHANNELS),
    "max_pool": lambda: nn.MaxPool2d(3, 1, 1),
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "group_norm": lambda: nn.GroupNorm(2, CHANNELS, dtype=torch.float64),
    "instance_norm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True, dtype=torch.float64),
    "two_gates": lambda: nn.Sequential(Gate(), nn.Sigmoid(), Gate()),
    "gate_and_conv": lambda: nn.Sequential(Gate(), conv(3, padding=1), Gate()),
}


@pytest.fixture(params=["module", "method"])
def method(request: pytest.FixtureRequest) -> bool:
    return request.param == "method"


@BLOCKS
@pytest.mark.parametrize("inner", RECOMPUTED)
@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_reentrant_checkpoint_is_refused(
    inner: str, execution: type[Execution], method: bool, block: tuple[int, int]
) -> None:
    network = Host(Checkpointed(RECOMPUTED[inner](), method, use_reentrant=True))
    with pytest.raises(UnsupportedOperation, match="use_reentrant=False") as caught:
        run(execution(random_grid()), network, images_of(block))
    assert_names_the_ways_out(str(caught.value))


@BLOCKS
@pytest.mark.parametrize("inner", RECOMPUTED)
@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_recomputation_is_right(inner: str, execution: type[Execution], method: bool, block: tuple[int, int]) -> None:
    """In backward the execution is over: what is computed again must not be computed as if nothing were hidden."""
    grid = random_grid()
    part = RECOMPUTED[inner]()

    def found(network: nn.Module) -> list[Tensor]:
        def answer(images: Tensor) -> Tensor:
            return run(execution(grid), network, images)[0]

        return values_and_gradients(answer, images_of(block), network)

    network = Host(Checkpointed(part, method, use_reentrant=False))
    assert_close(found(network), found(Host(part)), "recomputed")


def test_checkpoint_without_gradients() -> None:
    """Nothing is computed again: both kinds do no harm."""
    grid = random_grid()
    with torch.no_grad():
        expected = run(SparseExecution(grid), Host(Gate()), images_of((4, 4)))[0]
        for reentrant in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = Host(Checkpointed(Gate(), False, use_reentrant=reentrant))
                torch.testing.assert_close(run(SparseExecution(grid), network, images_of((4, 4)))[0], expected)


# --- the network after all that -------------------------------------------------------------------------------------


def test_execution_follows_the_gradient_mode_of_its_run() -> None:
    """Made with gradients and run without, or the other way round."""
    grid, network = random_grid(), Host(Gate())
    expected = run(SparseExecution(grid), network, images_of((4, 4)))[0].detach()
    made = SparseExecution(grid)
    with torch.no_grad():
        torch.testing.assert_close(run(made, network, images_of((4, 4)))[0], expected)
        made = SparseExecution(grid)
    torch.testing.assert_close(run(made, network, images_of((4, 4)))[0].detach(), expected)


def test_a_refusal_leaves_no_trace() -> None:
    network = Host(nn.Sequential(dense_fallback(conv(1)), Calls(lambda x: x.roll(1, 2))))
    images = images_of((4, 4))
    before = network(images)
    keys = set(network.state_dict())
    for execution in (SparseExecution, MaskedDenseExecution):
        with pytest.raises(UnsupportedOperation):
            run(execution(random_grid()), network, images)
    torch.testing.assert_close(network(images), before)
    assert set(network.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(hasattr(parameter, "_sparkmim_layout") for parameter in network.parameters())
    assert not torch.overrides._get_current_function_mode_stack()


def test_an_error_of_the_network_is_passed_on() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("of the network")

    with pytest.raises(KeyError, match="of the network"):
        run(SparseExecution(random_grid()), Host(broken), images_of((4, 4)))
    assert not torch.overrides._get_current_function_mode_stack()


@parts(
    {
        "constant": lambda x: torch.zeros(2, 8, 8, 12),
        "gate": lambda x: x.mean((2, 3), keepdim=True),
        "vector": lambda x: x.mean((2, 3)),
        "channels_last": lambda x: x.permute(0, 2, 3, 1),
        "space_swapped": lambda x: x.transpose(2, 3),
        "padded": lambda x: F.pad(x, (1, 1, 1, 1)),
        "three_axes": lambda x: x.mean(1),
        "number": lambda x: 1.0,
        "dictionary": lambda x: {"map": x},
        "nothing": lambda x: None,
        "nested": lambda x: [[x]],
    }
)
def test_outputs_that_are_not_maps(case: Function) -> None:
    with pytest.raises((UnsupportedOperation, TypeError)):
        run(SparseExecution(random_grid()), Host(case), images_of((4, 4)))


# --- ways out -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept_rules")
class TestRegister:
    part = nn.LocalResponseNorm(3)

    def test_makes_an_unknown_function_work(self) -> None:
        assert not right_or_refused(self.part, (4, 4))

        @sparse.register(F.local_response_norm)
        def local_response_norm(execution: Execution, function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Neighbouring channels of each position alone."""
            layout = execution.layout(x)
            assert layout is not None
            assert layout.batch == 0
            assert 1 not in layout.space
            return execution.mark(function(x, *args, **kwargs), layout)

        for block in SIZES.values():
            assert right_or_refused(self.part, block)
        grid, images = random_grid(), images_of((4, 4))
        (packed,) = run(SparseExecution(grid), Host(self.part), images)
        (dense,) = run(MaskedDenseExecution(grid), Host(self.part), images)
        torch.testing.assert_close(packed, grid.pack(dense))

    def test_for_one_execution(self) -> None:
        @SparseExecution.register(torch.erfinv, torch.Tensor.erfinv)
        def erfinv(execution: Execution, function: Any, x: Tensor) -> Tensor:
            layout = execution.layout(x)
            assert layout is not None
            return execution.mark(function(x), layout)

        part = Calls(lambda x: x.tanh().erfinv() + torch.erfinv(x.tanh()))
        assert right_or_refused(part, (4, 4))
        with pytest.raises(UnsupportedOperation, match="erfinv"):
            run(MaskedDenseExecution(random_grid()), Host(part), images_of((4, 4)))

    def test_replaces_a_rule(self) -> None:
        @sparse.register(torch.Tensor.relu)
        def relu(execution: Execution, function: Any, x: Tensor) -> Tensor:
            layout = execution.layout(x)
            assert layout is not None
            return execution.mark(function(x) + 1, layout)

        (out,) = run(SparseExecution(all_visible()), Calls(lambda x: x.relu()), images_of((4, 4)))
        torch.testing.assert_close(all_visible().unpack(out), images_of((4, 4)).relu() + 1)

    def test_rule_that_forgets_to_mark_is_refused(self) -> None:
        sparse.register(torch.Tensor.cummin)(lambda execution, function, x, dim: function(x, dim))
        assert "does not descend" in refusal(lambda x: x.cummin(1)[0], (4, 4))


def test_rules_of_the_tests_are_forgotten() -> None:
    """Or what these tests register would hide a missing rule from the others."""
    for function in (F.local_response_norm, torch.erfinv, torch.Tensor.erfinv, torch.Tensor.cummin):
        assert function not in RULES
    assert "relu" not in str(RULES[torch.Tensor.relu]["Execution"].__name__)


class Unseen(nn.Module):
    """Mixes positions in ways without a rule, and knows how large the whole map is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, padding=1, padding_mode="replicate")
        self.scale = nn.Parameter(constant(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).roll(1, 2) + x.mean(3, keepdim=True)
        return (y * torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None]).softmax(-1) * self.scale


class AroundUnseen(nn.Module):
    """Two parts on patches around one that is not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.tail = part, conv(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.part(x.relu()))


@pytest.mark.parametrize("block", [(4, 6), (1, 1)], ids=["patches_4x6", "patches_1x1"])
class TestDenseFallback:
    """Patches of 4 x 6 can themselves be cut into the grid, so that one could be mistaken for a map."""

    def test_identity(self, block: tuple[int, int]) -> None:
        assert "in module 'stages.1.part" in refusal(AroundUnseen(Unseen()), block)
        network, images, grid = Host(AroundUnseen(dense_fallback(Unseen()))), images_of(block), all_visible()

        def packed(images: Tensor) -> Tensor:
            return grid.unpack(run(SparseExecution(grid), network, images)[0])

        expected = values_and_gradients(network, images, network)
        assert_close(values_and_gradients(packed, images, network), expected, "nothing hidden")

    @pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
    def test_hidden(self, execution: type[Execution], block: tuple[int, int]) -> None:
        """The whole map with zeros where hidden, and the visible positions of what comes of it."""
        part, images, grid = dense_fallback(Unseen()), images_of(block), random_grid()
        network = Host(AroundUnseen(part))
        host: Any = network

        def mine(images: Tensor) -> Tensor:
            (out,) = run(execution(grid), network, images)
            return grid.unpack(out if execution is SparseExecution else grid.pack(out))

        def by_hand(images: Tensor) -> Tensor:
            whole = grid.unpack(run(SparseExecution(grid), host.stem, images)[0])
            return grid.unpack(grid.pack(host.stages[1].tail(part(whole.relu()))))

        assert_close(
            values_and_gradients(mine, images, network), values_and_gradients(by_hand, images, network), "by hand"
        )

    def test_taken_back(self, block: tuple[int, int]) -> None:
        part = dense_fallback(dense_fallback(Unseen()), enable=False)
        assert "in module 'stages.1" in refusal(part, block)

    def test_ordinary_network_is_not_affected(self, block: tuple[int, int]) -> None:
        part = Unseen()
        expected = part(constant(2, 8, 4, 6))
        torch.testing.assert_close(dense_fallback(part)(constant(2, 8, 4, 6)), expected)

    def test_other_arguments(self, block: tuple[int, int]) -> None:
        class Several(nn.Module):
            def forward(self, x: Tensor, factor: float, other: Tensor | None = None, constant: Any = None) -> Any:
                assert other is not None
                return x.roll(1, 2) * factor + constant, other.flip(3)

        several = dense_fallback(Several())

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.several = several

            def forward(self, x: Tensor) -> Tensor:
                a, b = self.several(x, 3.0, other=x * 2, constant=constant(8, 1, 1))
                return a * b

        assert whole_is_right(Part(), block)

    def test_inner_fallback(self, block: tuple[int, int]) -> None:
        """A module that runs on the whole map runs its parts on it too."""
        inner = dense_fallback(Unseen())
        assert whole_is_right(dense_fallback(nn.Sequential(inner, nn.ReLU(), inner)), block)

    def test_called_twice(self, block: tuple[int, int]) -> None:
        part = dense_fallback(Unseen())
        assert whole_is_right(nn.Sequential(part, nn.ReLU(), part), block)

    def test_list_of_maps(self, block: tuple[int, int]) -> None:
        class Joins(nn.Module):
            def forward(self, maps: list[Tensor]) -> Tensor:
                return torch.cat(maps, 1).roll(1, 2)

        joins = dense_fallback(Joins())
        whole_is_right(Lists(joins, lambda x: [x, x * 2]), block)

    def test_list_of_maps_without_mixing(self, block: tuple[int, int]) -> None:
        """What would pass by the rules must not be taken for a whole map after that."""

        class Joins(nn.Module):
            def forward(self, maps: Any) -> Tensor:
                return torch.cat(maps["maps"] if isinstance(maps, dict) else maps, 1)

        for make in (lambda x: [x, x * 2], lambda x: (x, x), lambda x: {"maps": [x, x]}):
            whole_is_right(Lists(dense_fallback(Joins()), make), block)

    def test_list_of_outputs(self, block: tuple[int, int]) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [x.roll(1, 2), x.flip(3)]

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.two = dense_fallback(Two())

            def forward(self, x: Tensor) -> Tensor:
                return torch.mul(*self.two(x))

        assert whole_is_right(Part(), block)

    @pytest.mark.parametrize(
        "part",
        [
            Calls(lambda x: x.mean((2, 3))),
            Calls(lambda x: x.mean((2, 3), keepdim=True)),
            Calls(lambda x: x.flatten(2)),
            Calls(lambda x: x.mean(1)),
            Calls(lambda x: F.pad(x, (0, 1, 0, 1))),
            Calls(lambda x: x[:1]),
            Calls(lambda x: x.shape),
            Calls(lambda x: None),
        ],
        ids=["vector", "gate", "tokens", "three_axes", "unaligned", "one_image", "shape", "nothing"],
    )
    def test_output_that_is_not_a_map(self, part: nn.Module, block: tuple[int, int]) -> None:
        """Refused, as a `ValueError` about grids from the depth of the engine names neither module nor remedy."""
        message = refusal(dense_fallback(part), block)
        assert "stages.1" in message

    def test_input_that_is_not_a_map(self, block: tuple[int, int]) -> None:
        part = dense_fallback(conv(1))
        for function in (
            lambda x: x * part(x.mean((2, 3), keepdim=True)),
            lambda x: part(F.pad(x, (1, 1, 1, 1))),
            lambda x: part(x.transpose(2, 3)),
        ):
            message = refusal(Owner(part, function), block)
            assert_names_the_ways_out(message)
            assert "None cannot" not in message, "the module is to be named"

    def test_channels_last(self, block: tuple[int, int]) -> None:
        """Right or refused: what is scattered as (batch, channel, *space) must be that."""
        for module in (nn.Linear(8, 8, dtype=torch.float64), nn.GELU(), nn.LayerNorm(8, dtype=torch.float64)):
            part = dense_fallback(module)
            whole_is_right(Owner(part, lambda x: part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), block)  # noqa: B023
            gated = Owner(part, lambda x: x * part(x.permute(0, 2, 3, 1)).mean((1, 2))[..., None, None])  # noqa: B023
            whole_is_right(gated, block)

    def test_of_a_constant(self, block: tuple[int, int]) -> None:
        """A module that is given weights, not maps, gives what it gives."""
        part = dense_fallback(conv(1))
        assert whole_is_right(Owner(part, lambda x: x * part(constant(1, 8, 1, 1))), block)

    def test_result_is_followed(self, block: tuple[int, int]) -> None:
        message = refusal(nn.Sequential(dense_fallback(Unseen()), Calls(lambda x: x.roll(1, 2))), block)
        assert "in module 'stages.1.1'" in message
        assert "roll" in message


class Lists(nn.Module):
    """A module that is given a list of maps."""

    def __init__(self, module: nn.Module, make: Function) -> None:
        super().__init__()
        self.module, self.make = module, make

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self.make(x))


class Owner(nn.Module):
    """A function that calls a module of the network."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def whole_is_right(part: nn.Module, block: tuple[int, int]) -> bool:
    """Whether a part run on whole maps is answered, as the ordinary network answers with nothing hidden."""
    network, images, grid = Host(part), images_of(block), all_visible()

    def packed(images: Tensor) -> Tensor:
        return grid.unpack(run(SparseExecution(grid), network, images)[0])

    try:
        found = values_and_gradients_of_used(packed, images, network)
    except UnsupportedOperation:
        return False
    assert_close(found, values_and_gradients_of_used(network, images, network), "nothing hidden")
    return True


def values_and_gradients_of_used(run: Callable[[Tensor], Tensor], images: Tensor, network: nn.Module) -> list[Tensor]:
    images = images.clone().requires_grad_()
    out = run(images)
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    wanted = [images, *network.parameters()]
    grads = torch.autograd.grad((out * projection).sum(), wanted, materialize_grads=True)
    return [out.detach(), *grads]


# --- networks that are not convolutional ----------------------------------------------------------------------------


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
    assert any(function in message for function in ("scaled_dot_product_attention", "reshape", "add", "matmul"))
    assert_names_the_ways_out(message)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Made once: they are large."""
    return {}
