"""Networks generated at random, as source code: sizes, branches, joins, noise, reshapes, norms, pools and gates.

A network is a tree of blocks, each a few lines of Python on a map `x` of `CHANNELS` channels. The source of a network
is what a failure prints, and it runs as it stands (:func:`source`). :func:`verdict_of` holds a network against the
ordinary one, the masked-dense reference and the check.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, check, mask_at, run

CHANNELS = 8
CHECK_GRID, GRID = (3, 4), (5, 6)
"""Patches (or total strides, where those are larger) of the images of the check, and of those compared here."""

CHECK_BATCH, BATCH = 2, 3
TOLERANCE = 1e-7


# --- blocks -----------------------------------------------------------------------------------------------------------


class Scope:
    """What a block knows of the place where it stands, and the modules and parameters that it asks for.

    Args:
        seed: of the block's own choices, so that a network keeps its other blocks when one is taken away.
        stride: pixels of a position of `x`.
        unit: least common multiple of the patch size and the total stride, in pixels.
        made: constructors of modules and parameters, by name; blocks add to it.
    """

    def __init__(self, seed: int, stride: int, unit: int, made: dict[str, str]) -> None:
        self.random = random.Random(seed)
        self.stride, self.unit, self.made = stride, unit, made

    def add(self, constructor: str) -> str:
        """Return the name of a new module or parameter of the network."""
        name = f"m{len(self.made)}"
        self.made[name] = constructor
        return f"self.{name}"

    def name(self, prefix: str) -> str:
        """Return a variable that no other block uses."""
        self.made_names = getattr(self, "made_names", 0) + 1
        return f"{prefix}{len(self.made)}_{self.made_names}"

    def conv(self, kernel: int = 3, inputs: int = CHANNELS, outputs: int = CHANNELS, **settings: Any) -> str:
        settings.setdefault("padding", kernel // 2)
        rest = "".join(f", {key}={value!r}" for key, value in settings.items())
        return self.add(f"nn.Conv2d({inputs}, {outputs}, {kernel}{rest})")

    def parameter(self, *shape: int) -> str:
        return self.add(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    @property
    def cells(self) -> int:
        """Positions of `x` along each axis of a patch (or a total stride, where that is larger)."""
        return self.unit // self.stride

    @property
    def height(self) -> int:
        """An extent larger than that of any map of the check at this stride, and smaller than those compared here."""
        return CHECK_GRID[1] * self.cells

    @property
    def area(self) -> int:
        """Likewise, of positions."""
        return math.prod(CHECK_GRID) * self.cells**2


Write = Callable[[Scope], str]
BLOCKS: dict[str, dict[str, Write]] = {}
"""By kind and name, the functions that write a block's code, which replaces `x` by a map of the same shape."""


def table(kind: str, **blocks: Write | str) -> None:
    """Add blocks of a kind, each a function of the scope or the code itself."""
    BLOCKS[kind] = {name: block if callable(block) else _constant(block) for name, block in blocks.items()}


def _constant(code: str) -> Write:
    return lambda scope: code


table(
    "branch_on_size",
    on_height=lambda s: f"x = x * 2 if x.shape[2] > {s.height} else x * 3",
    on_width=lambda s: f"x = {s.conv()}(x) if x.size(-1) > {s.height} else x",
    on_smaller_side=lambda s: f"x = F.relu(x) if min(x.shape[-2:]) > {s.height} else x.sigmoid()",
    on_area=lambda s: f"x = x + 1 if x.shape[2] * x.shape[3] > {s.area} else x - 1",
    on_numel=lambda s: f"x = x * 0.5 if x.numel() > {BATCH * CHANNELS * 20 * s.cells**2} else -x",
    on_size_numel=lambda s: f"x = x * 0.5 if x.shape[2:].numel() > {s.area} else -x",
    on_batch=f"x = x * 2 if x.size(0) > {CHECK_BATCH} else x * 3",
    on_len=f"x = x * 2 if len(x) == {BATCH} else x * 3",
    on_equality=lambda s: f"x = x.tanh() if x.shape[-1] == {GRID[1] * s.cells} else x",
    on_product_unpacked=lambda s: f"b, c, h, w = x.shape\nx = x.exp().clamp(max=3) if h * w >= {s.area + 1} else x",
    on_difference=lambda s: f"x = x * 2 if x.shape[2] - {s.height} > 0 else x * 3",
    on_remainder=lambda s: f"x = x * 2 if x.shape[3] % {GRID[1] * s.cells} == 0 else x * 3",
    on_quotient=lambda s: f"x = x * 2 if x.shape[2] / {s.height} > 1 else x * 3",
    on_root=lambda s: f"x = x * 2 if math.sqrt(x.shape[2] * x.shape[3]) > {s.height} else x * 3",
    on_float=lambda s: f"x = x * 2 if float(x.shape[2]) > {s.height} else x * 3",
    on_tuple=lambda s: f"x = x * 2 if x.shape[2:] > ({s.height}, 1) else x * 3",
    on_flat_size=lambda s: f"x = x * 2 if x.flatten(2).shape[-1] > {s.area} else x * 3",
    on_padded_size=lambda s: (
        f"p = F.pad(x, (1, 1, 1, 1))\nx = {s.conv(padding=0)}(p) if p.shape[2] > {s.height + 2} else x"
    ),
    on_pooled_size=lambda s: (
        f"y = F.max_pool2d(x, 2)\nx = x * 2 if y.shape[2] > {s.height // 2} else x * 3" if s.cells % 2 == 0 else ""
    ),
    on_power=lambda s: f"x = x * 2 if x.shape[2] ** 2 > {s.height**2} else x * 3",
    on_shift=lambda s: f"x = x * 2 if x.shape[2] >> 1 > {s.height // 2 - (s.height < 5)} else x * 3",
    on_divmod=lambda s: f"n, rest = divmod(x.shape[2], {s.height + 1})\nx = x * 2 if n else x * 3 + (rest > 0)",
    on_sum=lambda s: f"x = x * 2 if sum(x.shape[2:]) > {2 * s.height} else x * 3",
    on_ceil=lambda s: f"x = x * 2 if math.ceil(x.shape[2] / {s.height}) > 1 else x * 3",
    on_round=lambda s: f"x = x * 2 if round(x.shape[2] * 0.5 + 0.1) > {s.height // 2} else x * 3",
    on_integer_root=lambda s: f"x = x * 2 if math.isqrt(x.shape[2] * x.shape[3]) > {s.height} else x * 3",
    on_negative=lambda s: f"x = x * 2 if -x.shape[2] < {-s.height} else x * 3",
    on_membership=lambda s: f"x = x * 2 if x.shape[2] in ({GRID[0] * s.cells}, {GRID[1] * s.cells}) else x * 3",
    on_equal_tuples=lambda s: (
        f"x = x * 2 if tuple(x.shape[-2:]) == ({GRID[0] * s.cells}, {GRID[1] * s.cells}) else x * 3"
    ),
    on_largest_of_list=lambda s: f"x = x * 2 if sorted(list(x.shape)[2:])[-1] > {s.height} else x * 3",
    on_range=lambda s: f"x = x * 2 if len(range(0, x.shape[2], 2)) > {(s.height + 1) // 2} else x * 3",
    on_text=lambda s: f"x = x * 2 if f'{{x.shape[2]}}' == '{GRID[0] * s.cells}' else x * 3",
    on_element_count=lambda s: f"x = x * 2 if x[0, 0].nelement() > {s.area} else x * 3",
    on_memory_stride=lambda s: f"x = x * 2 if x.contiguous().stride(1) > {s.area} else x * 3",
    on_size_of_coarse=lambda s: f"y = {s.conv(stride=2)}(x)\nx = x * 2 if y.size(2) > {(s.height + 1) // 2} else x * 3",
    on_size_of_tokens=lambda s: f"y = x.flatten(2).transpose(1, 2)\nx = x * 2 if y.size(1) > {s.area} else x * 3",
    on_size_of_gate="y = x.mean((2, 3), keepdim=True)\nx = x * 2 if y.shape[2] == 1 and y.shape[-1] < 2 else x * 3",
    on_same_size=lambda s: f"y = {s.conv()}(x)\nx = x + y if y.shape == x.shape else x * y.mean()",
    on_loop=lambda s: f"for _ in range(x.shape[2] // {s.height + 1}):\n    x = {s.conv()}(x)",
)

table(
    "number_of_size",
    kernel_by_size=lambda s: f"k = 5 if x.shape[2] > {s.height} else 3\nx = F.avg_pool2d(x, k, 1, k // 2)",
    dilation_by_size=lambda s: (
        f"d = max(1, x.shape[2] // {GRID[0] * s.cells // 2})\n"
        f"x = F.conv2d(x, {s.parameter(CHANNELS, CHANNELS, 3, 3)}, padding=d, dilation=d)"
    ),
    key_of_table=lambda s: f"x = x * {{{GRID[0] * s.cells}: 2.0, {GRID[0] * s.cells + 1}: 3.0}}.get(x.shape[2], 0.5)",
    key_by_text=lambda s: f"x = x * {{'{GRID[0] * s.cells}': 2.0}}.get(str(x.shape[2]), 0.5)",
    groups_by_channels="x = F.group_norm(x, max(1, x.shape[1] // 4))",
    divided_by_batch="x = x / x.shape[0]",
    divided_by_len="x = x / len(x)",
    divided_by_height="x = x / x.shape[2]",
    divided_by_int="x = x / int(x.shape[3])",
    times_float="x = x * float(x.shape[2])",
    times_root="x = x * math.sqrt(x.shape[2] * x.shape[3])",
    times_log="x = x * math.log(x.shape[2] + 1)",
    tensor_of_size="x = x / torch.tensor(x.shape[2] * x.shape[3], dtype=x.dtype)",
    sum_over_area="x = x * (x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])).sigmoid()",
    sum_times_inverse="x = x * (x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3]))).sigmoid()",
    sum_over_area_less_one="x = x + x.square().sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)",
    sum_over_numel="x = x * (x.sum((1, 2, 3), keepdim=True) / (x.numel() / x.shape[0])).sigmoid()",
    sum_over_size_numel="x = x * (x.sum((2, 3), keepdim=True) / x.shape[2:].numel()).sigmoid()",
    sum_by_sides="x = x * (x.sum((2, 3), keepdim=True) / x.shape[2] / x.shape[3]).sigmoid()",
    channels_by_size="x = torch.cat([x[:, : x.shape[2] % 7], x[:, x.shape[2] % 7 :] * 2], 1)",
    channels_by_batch="x = torch.cat([x[:, : x.shape[0]], x[:, x.shape[0] :] * 2], 1)",
    positions_arange="x = x + torch.arange(x.shape[2], dtype=x.dtype).view(1, 1, -1, 1) * 0.1",
    positions_linspace="x = x * torch.linspace(-1, 1, x.shape[3], dtype=x.dtype)",
    positions_parameter=lambda s: f"x = x + {s.parameter(1, CHANNELS, 64, 64)}[:, :, : x.shape[2], : x.shape[3]]",
    positions_interpolated=lambda s: (
        f"x = x + F.interpolate({s.parameter(1, CHANNELS, 7, 7)}, size=x.shape[2:], mode='bilinear')"
    ),
    zeros_of_size=f"x = x + torch.zeros(x.shape[0], {CHANNELS}, *x.shape[2:], dtype=x.dtype)",
    ones_convolved=(
        "k = torch.ones(1, 1, 3, 3, dtype=x.dtype)\n"
        "x = x * (9 / F.conv2d(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype), k, padding=1))"
    ),
    crop_to_itself="x = x[:, :, : x.shape[2], : x.shape[3]]",
    border_left_out="x = F.pad(x, (1, 1, 1, 1))[:, :, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1]",
    new_zeros_of_image=f"x = x * (x.new_zeros(len(x), {CHANNELS}, 1, 1) + x.mean((2, 3), keepdim=True)).sigmoid()",
)

table(
    "size_given_back",
    gate_by_avg_pool="x = x * F.avg_pool2d(x, x.shape[2:]).sigmoid()",
    gate_by_max_pool="x = x * F.max_pool2d(x, (x.size(2), x.size(3))).sigmoid()",
    gate_by_square_pool="x = x * F.adaptive_avg_pool2d(x, 1).view(len(x), -1, 1, 1).sigmoid()",
    gate_by_view="b, c, h, w = x.size()\nx = x * x.view(b, c, h * w).mean(2).view(b, c, 1, 1).sigmoid()",
    gate_by_flat_max="x = x * x.view(x.size(0), x.size(1), -1).max(2)[0][:, :, None, None].sigmoid()",
    gate_expanded="x = x * x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]).sigmoid()",
    gate_repeated="x = x * x.mean((2, 3), keepdim=True).repeat(1, 1, x.shape[2], x.shape[3]).sigmoid()",
    gate_resampled="x = x + F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[-2:], mode='bilinear')",
    softmax_of_positions="x = x * x.view(x.size(0), x.size(1), -1).softmax(-1).view(x.shape)",
    down_and_up_by_size=lambda s: (
        f"y = {s.conv(stride=2)}(x)\n"
        f"x = x + F.interpolate(y, size=x.shape[2:], mode={s.random.choice(('nearest', 'bilinear'))!r})"
    ),
    pool_and_up_by_size="x = x + F.interpolate(F.max_pool2d(x, 3, 2, 1), size=(x.shape[2], x.shape[3]))",
    adaptive_to_half=lambda s: (
        "x = x + F.interpolate(F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)), scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    adaptive_to_itself="x = x + F.adaptive_avg_pool2d(x, x.shape[2:])",
    adaptive_to_fixed=lambda s: (
        f"x = x + F.interpolate(F.adaptive_avg_pool2d(x, {s.random.choice((2, 3, (1, 2)))}), size=x.shape[2:])"
    ),
    resampled_to_fixed="x = x * F.interpolate(x, size=(4, 4)).mean((2, 3), keepdim=True).sigmoid()",
    fixed_and_back="x = x + F.interpolate(F.interpolate(x, size=(4, 4), mode='bilinear'), size=x.shape[2:])",
    pool_of_half="x = x + F.interpolate(F.avg_pool2d(x, max(1, x.shape[2] // 2)), size=x.shape[2:])",
    pool_of_part=lambda s: (
        f"k = max(1, x.shape[2] // {GRID[0]})\nx = x + F.interpolate(F.avg_pool2d(x, k), size=x.shape[2:])"
    ),
    size_doubled=lambda s: (
        "y = F.max_pool2d(x, 2)\nx = x + F.interpolate(y, size=[2 * n for n in y.shape[2:]])"
        if s.cells % 2 == 0
        else ""
    ),
    scale_of_sizes=lambda s: (
        "y = F.avg_pool2d(x, 2)\nx = x + F.interpolate(y, scale_factor=x.shape[2] / y.shape[2])"
        if s.cells % 2 == 0
        else ""
    ),
    pool_by_ratio=lambda s: (
        f"y = {s.conv(stride=2)}(x)\ny = y + F.avg_pool2d(x, x.shape[2] // y.shape[2])\n"
        "x = x + F.interpolate(y, size=x.shape[2:])"
        if s.cells % 2 == 0
        else ""
    ),
    padded_by_difference=lambda s: (
        "y = F.interpolate(F.max_pool2d(x, 2), scale_factor=2)\n"
        "high, wide = x.size()[2] - y.size()[2], x.size()[3] - y.size()[3]\n"
        f"x = {s.conv(1, 16)}(torch.cat([x, F.pad(y, [wide // 2, wide - wide // 2, high // 2, high - high // 2])], 1))"
        if s.cells % 2 == 0
        else ""
    ),
    view_by_other=lambda s: f"y = {s.conv()}(x)\nb, c, h, w = y.shape\nx = x.flatten(2).view(b, c, h, w) + y",
    strips_split=(
        "y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)\n"
        "a, b = y.split([x.shape[2], x.shape[3]], 2)\nx = x * a.sigmoid() * b.transpose(2, 3).sigmoid()"
    ),
    expanded_like="x = x * x.mean((2, 3), keepdim=True).expand_as(x)",
    view_like="x = x.flatten(2).view_as(x)",
    new_full="x = x + x.new_full((x.shape[0], 1, 1, 1), 0.5)",
    coordinates_of_norm="x = x / x.flatten(1).norm(dim=1).view(len(x), 1, 1, 1).add(1)",
)

table(
    "noise",
    drop_path_rand=(
        "if self.training:\n    x = x * (0.7 + torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype)).floor() / 0.7"
    ),
    drop_path_rand_len="if self.training:\n    x = x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) < 0.7) / 0.7",
    drop_path_rand_ndim=(
        "if self.training:\n"
        "    keep = 0.7 + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)\n"
        "    x = x.div(0.7) * keep.floor_()"
    ),
    drop_path_rand_list=(
        "if self.training:\n    x = x / 0.7 * torch.floor(0.7 + torch.rand([x.size(0), 1, 1, 1], dtype=x.dtype))"
    ),
    drop_path_empty=(
        "if self.training:\n    x = x * torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(0.7) / 0.7"
    ),
    drop_path_new_empty="if self.training:\n    x = x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.7).div_(0.7)",
    drop_path_bernoulli=(
        "if self.training:\n    x = x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.7, dtype=x.dtype)) / 0.7"
    ),
    drop_path_ones=(
        "if self.training:\n    x = x * F.dropout(torch.ones(x.shape[0], 1, 1, 1, dtype=x.dtype), 0.3, True)"
    ),
    drop_path_uniform="if self.training:\n    x = x * torch.zeros(len(x), 1, 1, 1, dtype=x.dtype).uniform_(0.5, 1.5)",
    drop_path_randn="if self.training:\n    x = x * (1 + 0.1 * torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype))",
    drop_path_later_axes=(
        "if self.training:\n    x = x * (torch.rand(x.shape[0], dtype=x.dtype)[:, None, None, None] > 0.3) / 0.7"
    ),
    drop_path_randint=(
        "if self.training:\n    x = x * torch.randint(0, 2, (x.shape[0], 1, 1, 1)).to(x.dtype) * 2"
    ),
    dropout2d="x = F.dropout2d(x, 0.3, self.training)",
    dropout="if self.rate:\n    x = F.dropout(x, self.rate, self.training)",
    gaussian="if self.training and self.rate:\n    x = x + self.rate * torch.randn_like(x)",
    uniform_like="if self.training and self.rate:\n    x = x * (1 - self.rate * torch.rand_like(x))",
    dropout_of_gate="x = x * F.dropout(x.mean((2, 3), keepdim=True).sigmoid(), 0.3, self.training)",
)  # fmt: skip

table(
    "reshape",
    shuffle=(
        "b, c, h, w = x.shape\nx = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)"
    ),
    shuffle_without_batch="x = x.reshape(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(-1, 8, *x.shape[2:])",
    shuffle_function="x = F.channel_shuffle(x, 2)",
    channels_last=lambda s: f"x = {s.add('nn.Linear(8, 8)')}(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
    tokens=lambda s: f"x = {s.add('nn.Linear(8, 8)')}(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)",
    tokens_by_sizes=lambda s: (
        "b, c, h, w = x.shape\n"
        f"y = {s.add('nn.Linear(8, 8)')}(x.permute(0, 2, 3, 1).reshape(b, h * w, c))\n"
        "x = y.view(b, h, w, c).permute(0, 3, 1, 2)"
    ),
    rows_of_all=lambda s: (
        f"b, c, h, w = x.shape\n"
        f"x = {s.add('nn.BatchNorm1d(8)')}(x.permute(0, 2, 3, 1).reshape(-1, c)).view(b, h, w, c).permute(0, 3, 1, 2)"
    ),
    batch_norm_of_flat=lambda s: f"x = {s.add('nn.BatchNorm1d(8)')}(x.flatten(2)).unflatten(2, x.shape[2:])",
    unflatten=lambda s: f"x = {s.add('nn.Conv1d(8, 8, 1)')}(x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))",
    groups_as_batch=lambda s: (
        f"b, c, h, w = x.shape\nx = {s.add('nn.GroupNorm(2, 4)')}(x.reshape(b * 2, c // 2, h, w)).reshape(b, c, h, w)"
    ),
    depth_axis=lambda s: f"x = {s.add('nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))')}(x.unsqueeze(1)).squeeze(1)",
    spare_axis="x = x[:, None].expand(-1, 2, -1, -1, -1).sum(1)",
    transposed=lambda s: f"x = {s.conv()}(x.transpose(2, 3)).transpose(2, 3)",
    space_to_depth=lambda s: (
        "b, c, h, w = x.shape\n"
        "y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, c * 4, h // 2, w // 2)\n"
        f"x = x + F.interpolate({s.conv(1, 32)}(y), scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    unshuffle=lambda s: (
        f"x = F.pixel_shuffle({s.conv(3, 32, 32)}(F.pixel_unshuffle(x, 2)), 2)" if s.cells % 2 == 0 else ""
    ),
    focus=lambda s: (
        "y = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)\n"
        f"x = x + F.interpolate({s.conv(3, 32)}(y), scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    every_second=lambda s: (
        f"x = x + F.interpolate({s.conv(1)}(x[:, :, ::2, ::2]), scale_factor=2)" if s.cells % 2 == 0 else ""
    ),
    cells=lambda s: (
        "b, c, h, w = x.shape\n"
        f"y = x.view(b, c, h // 2, 2, w // 2, 2).{s.random.choice(('mean', 'amax'))}((3, 5))\n"
        "x = x + F.interpolate(y, scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    windows=lambda s: (
        "b, c, h, w = x.shape\n"
        "y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)\n"
        f"y = {s.add('nn.Linear(8, 8)')}(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4)\n"
        "x = y.reshape(b, c, h, w)"
        if s.cells % 2 == 0
        else ""
    ),
    einsum=lambda s: f"x = torch.einsum('bchw,dc->bdhw', x, {s.parameter(8, 8)})",
    matmul=lambda s: f"x = ({s.parameter(8, 8)} @ x.flatten(2)).view(x.shape)",
    bmm=lambda s: f"x = torch.bmm({s.parameter(8, 8)}.expand(len(x), 8, 8), x.flatten(2)).view(x.shape)",
    channel_attention=(
        "q = F.normalize(x.flatten(2), dim=-1)\n"
        "x = x + ((q @ q.transpose(1, 2)).softmax(-1) @ x.flatten(2)).view(x.shape)"
    ),
    repeated="x = x.repeat(1, 2, 1, 1)[:, 4:12]",
    reversed_channels="x = x[:, [7, 6, 5, 4, 3, 2, 1, 0]] + x.flip(1)",
    rolled="x = x.roll(1, 1) - x",
)  # fmt: skip

table(
    "norm",
    batch=lambda s: f"x = {s.add('nn.BatchNorm2d(8)')}(x)",
    batch_untracked=lambda s: f"x = {s.add('nn.BatchNorm2d(8, track_running_stats=False)')}(x)",
    group=lambda s: f"x = {s.add('nn.GroupNorm(2, 8)')}(x)",
    instance=lambda s: f"x = {s.add('nn.InstanceNorm2d(8, affine=True)')}(x)",
    layer=lambda s: f"x = {s.add('nn.LayerNorm(8)')}(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
    layer_by_hand=lambda s: (
        "u = x.mean(1, keepdim=True)\nx = (x - u) / ((x - u).pow(2).mean(1, keepdim=True) + 1e-3).sqrt()\n"
        f"x = x * {s.parameter(8, 1, 1)}"
    ),
    group_by_view=lambda s: (
        "b, c, h, w = x.shape\ny = x.view(b, 2, -1)\n"
        "y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-3).sqrt()\n"
        "x = y.view(b, c, h, w)"
    ),
    response=lambda s: (
        "g = x.norm(dim=(2, 3), keepdim=True)\n"
        f"x = x * {s.parameter(8, 1, 1)} * g / (g.mean(1, keepdim=True) + 1e-3) + x"
    ),
    local_response="x = F.local_response_norm(x, 3)",
    unit_length="x = F.normalize(x, dim=1)",
    deviation=lambda s: f"x = {s.parameter(8, 1, 1)} * x\nx = x / x.std(1, keepdim=True)",
    root_after_scale=lambda s: f"x = x * {s.parameter(8, 1, 1)}\nx = x.sign() * (x.abs() + 1e-12).sqrt()",
)  # fmt: skip

table(
    "pool",
    max_same="x = F.max_pool2d(x, 3, 1, 1)",
    average_same=lambda s: f"x = F.avg_pool2d(x, 3, 1, 1, count_include_pad={s.random.random() < 0.5})",
    min_same="x = -F.max_pool2d(-x, 3, 1, 1)",
    pyramid="x = torch.cat([x[:, :2], *(F.max_pool2d(x[:, :2], k, 1, k // 2) for k in (3, 5, 7))], 1)",
    down_up=lambda s: (
        f"x = x + F.interpolate(F.{s.random.choice(('max', 'avg'))}_pool2d(x, 2), scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    power="x = x + (x.abs() + 0.1).pow(3).mean((2, 3), keepdim=True).pow(1 / 3)",
    maximum_of_channels=(
        "y = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)\nx = x * y.sum(1, keepdim=True).sigmoid()"
    ),
    max_with_indices="x = x - x.max(1, keepdim=True)[0]",
    top_channels="x = x + x.topk(2, dim=1)[0].sum(1, keepdim=True)",
    log_sum_exp="x = x + torch.logsumexp(x.flatten(2), 2)[..., None, None]",
    chained_mean="x = x * x.mean(3).mean(2)[..., None, None].sigmoid()",
    chained_mean_kept="x = x * x.mean(2, keepdim=True).mean(3, keepdim=True).sigmoid()",
    strip="x = x * x.mean(3, keepdim=True).sigmoid()",
    blur=lambda s: (
        "k = torch.ones(8, 1, 3, 3, dtype=x.dtype) / 9\n"
        "x = x + F.interpolate(F.conv2d(x, k, stride=2, padding=1, groups=8), scale_factor=2)"
        if s.cells % 2 == 0
        else ""
    ),
    transposed=lambda s: (
        f"x = x + {s.add('nn.ConvTranspose2d(8, 8, 2, 2)')}(F.avg_pool2d(x, 2))" if s.cells % 2 == 0 else ""
    ),
)  # fmt: skip

table(
    "pointwise",
    conv=lambda s: f"x = {s.conv(s.random.choice((1, 3, 5)))}(x)",
    depthwise=lambda s: f"x = {s.conv(s.random.choice((3, 5, 7)), groups=8)}(x)",
    dilated=lambda s: f"x = {s.conv(3, padding=2, dilation=2)}(x)",
    relu="x = F.relu(x)",
    gelu="x = F.gelu(x)",
    gated="a, b = torch.cat([x, x.flip(1)], 1).chunk(2, 1)\nx = a * b.sigmoid()",
    scale=lambda s: f"x = x * {s.parameter(8, 1, 1)}",
    shift=lambda s: f"x = x + {s.parameter(1, 8, 1, 1)}",
    where="x = torch.where(x > 0, x, 0.1 * x)",
    masked="x = x.clone()\nx[x < 0] = 0",
    padded=lambda s: f"x = {s.conv(padding=0)}(F.pad(x, (1, 1, 1, 1)))",
    padded_by_edge=lambda s: f"x = {s.conv(padding_mode='replicate')}(x)",
    maximum="x = torch.max(x, -x.flip(1))",
    squeeze_excite=lambda s: (
        f"x = x * {s.conv(1)}(F.relu({s.conv(1)}(x.mean((2, 3), keepdim=True)))).sigmoid()"
    ),
    neighbor_channels=lambda s: (
        f"y = {s.add('nn.Conv1d(1, 1, 3, padding=1)')}(x.mean((2, 3))[:, None]).transpose(1, 2)\n"
        "x = x * y.unsqueeze(-1).sigmoid()"
    ),
    spatial_gate=lambda s: (
        f"x = x * {s.conv(7, 2, 1)}(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()"
    ),
)  # fmt: skip

table(
    "in_place",
    relu_of_conv=lambda s: f"x = F.relu({s.conv()}(x), inplace=True)",
    added_to_copy="y = x.contiguous()\ny = y.mul_(2)\nx = x + y",
    copy_of_permuted="y = F.relu(x.permute(0, 2, 3, 1).contiguous(), inplace=True)\nx = x + y.permute(0, 3, 1, 2)",
    copy_of_tokens="y = x.flatten(2).transpose(1, 2).contiguous()\ny += 1\nx = x + y.transpose(1, 2).view(x.shape)",
    copy_channels_last="y = x.contiguous(memory_format=torch.channels_last)\ny.relu_()\nx = x + y",
    view_of_flat="y = x * 1\ny.view(len(y), 8, -1).relu_()\nx = x + y",
    part_of_channels="y = x.clone()\ny[:, ::2] *= 2\nx = x + y",
    narrow="y = x.clone()\ny.narrow(1, 0, 4).relu_()\nx = y",
    part_of_permuted="y = x.permute(0, 2, 3, 1).contiguous()\ny[..., :4] = 0\nx = x + y.permute(0, 3, 1, 2)",
    clone_and_write="y = x.clone(memory_format=torch.contiguous_format)\ny.relu_()\nx = x + y",
    source_of_padding=lambda s: f"y = x * 1\np = F.pad(y, (1, 1, 1, 1))\ny.mul_(2)\nx = y + {s.conv(padding=0)}(p)",
    accumulated=lambda s: f"y = torch.zeros_like(x)\ny += {s.conv()}(x)\ny += x\nx = y",
    shared_sum="y = x + 1\nz = y\nz += x\nx = y * 0.5",
)

JOINS: dict[str, str] = {
    "residual": "x = {0} + x",
    "product": "x = x + {0} * {1}.sigmoid()",
    "cat": "x = {conv}(torch.cat([{0}, {1}], 1))",
    "stack": "x = torch.stack([{0}, {1}, x]).mean(0)",
    "stack_behind": "x = torch.stack([{0}, x], 2).flatten(1, 2)[:, :8]",
    "maximum": "x = torch.maximum({0}, {1})",
    "mixed_channels": "x = torch.cat([{0}[:, :4], {1}[:, 4:]], 1)",
    "sum_of_list": "x = sum([{0}, {1}, x])",
    "gate_of_branch": "x = x * {0}.mean((2, 3), keepdim=True).sigmoid()",
    "fused": "x = torch.addcmul(x, {0}, {1})",
    "written_into": "y = torch.empty_like(x)\ny[:, :4] = {0}[:, :4]\ny[:, 4:] = {1}[:, 4:]\nx = y",
}
"""Ways to bring branches together: `{0}` and `{1}` are what two branches make of `x`."""

CROSSINGS: dict[str, str] = {
    "size": "x = x + F.interpolate({0}, size=x.shape[2:], mode={mode!r})",
    "factor": "x = x + F.interpolate({0}, scale_factor=2, mode={mode!r})",
    "gate_of_coarse": "x = x * {0}.mean((2, 3), keepdim=True).sigmoid()",
    "pooled_to_coarse": "x = x + F.interpolate(F.adaptive_avg_pool2d(x, {0}.shape[2:]) + {0}, size=x.shape[2:])",
}
"""Ways to bring a branch of twice the stride back: `{0}` is what it made of `x`."""


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A node of a network's tree.

    Attributes:
        kind: of `BLOCKS`; "join", "crossing" or "down" for those that hold or change more than a map.
        name: within the kind.
        seed: of the block's own choices.
        branches: of a join or a crossing, each a sequence of blocks.
    """

    kind: str
    name: str
    seed: int = 0
    branches: tuple[tuple[Block, ...], ...] = ()

    def __str__(self) -> str:
        inner = "; ".join(", ".join(map(str, branch)) for branch in self.branches)
        return f"{self.kind}.{self.name}" + (f"[{inner}]" if self.branches else "")


@dataclass(frozen=True)
class Network:
    """A network to build: its stem, blocks and the patches that it is run on.

    Attributes:
        stem: stride of the first convolution, whose kernel is as large (or 3).
        patch: pixels of a patch; may be smaller than the total stride.
        body: its blocks, in order.
        seed: of its parameters, images and masks.
    """

    stem: int
    patch: int
    body: tuple[Block, ...]
    seed: int

    @property
    def stride(self) -> int:
        """Total stride."""
        return self.stem * 2 ** sum(block.kind == "down" for block in self.body)

    @property
    def unit(self) -> int:
        """Return the least common multiple of patch size and total stride."""
        return math.lcm(self.patch, self.stride)

    def __str__(self) -> str:
        return f"stem /{self.stem}, patch {self.patch}: {', '.join(map(str, self.body))}"


def generate(seed: int) -> Network:
    """Return the network of a seed."""
    rng = random.Random(seed)
    stem = rng.choice((1, 2, 2, 4))
    body = [_block(rng, depth=0) for _ in range(rng.randint(1, 4))]
    downs = rng.randint(0, 1 if stem == 4 else 2)
    for _ in range(downs):
        body.insert(
            rng.randint(0, len(body)), Block("down", rng.choice(("conv", "max", "patchify")), rng.getrandbits(32))
        )
    total = stem * 2**downs
    patch = total * rng.choice((1, 2, 2, 4)) if rng.random() < 0.7 or total < 4 else total // rng.choice((2, 2, 4))
    return Network(stem, min(patch, 16), tuple(body), seed)


RARE = {
    "divided_by_height", "divided_by_int", "times_float", "times_root", "times_log", "tensor_of_size", "sum_over_area",
    "sum_times_inverse", "sum_over_area_less_one", "sum_over_numel", "sum_over_size_numel", "sum_by_sides",
    "positions_arange", "positions_linspace", "positions_parameter", "positions_interpolated", "zeros_of_size",
    "ones_convolved", "border_left_out", "adaptive_to_itself", "adaptive_to_fixed", "resampled_to_fixed",
    "fixed_and_back", "pool_of_half", "pool_of_part", "coordinates_of_norm", "channel_attention", "depth_axis",
    "transposed", "windows", "rows_of_all", "strip", "channels_by_size", "strips_split",
}  # fmt: skip
"""Blocks that are refused, most of them for good reasons: a network with one of them shows nothing of its others."""

OF_SIZE = {"times_log", "channels_by_size", "resampled_to_fixed", "fixed_and_back", "adaptive_to_fixed", "pool_of_half"}
"""Blocks that are another function at each size, by numbers that nothing follows: right, yet not on a cropped image."""

WEIGHTS = {
    "branch_on_size": 3, "number_of_size": 2, "size_given_back": 3, "noise": 2, "reshape": 3, "norm": 2, "pool": 2,
    "pointwise": 4, "in_place": 2, "join": 4, "crossing": 2,
}  # fmt: skip


def _block(rng: random.Random, depth: int) -> Block:
    kinds = [kind for kind in WEIGHTS if depth < 2 or kind in BLOCKS]
    kind = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
    choice = list({"join": JOINS, "crossing": CROSSINGS}.get(kind) or BLOCKS[kind])
    name = rng.choices(choice, [0.05 if name in RARE else 1 for name in choice])[0]
    branches = 2 if kind == "join" else int(kind == "crossing")
    return Block(
        kind,
        name,
        rng.getrandbits(32),
        tuple(tuple(_block(rng, depth + 1) for _ in range(rng.choice((1, 1, 2)))) for _ in range(branches)),
    )


def alone() -> Iterator[Network]:
    """Yield each block by itself: patches of a position, of two by two, and positions of two by two patches."""
    kinds: dict[str, Any] = {**BLOCKS, "join": JOINS, "crossing": CROSSINGS}
    for kind, of_kind in kinds.items():
        for name in of_kind:
            inner = (Block("pointwise", "conv", 1),)
            branches = {"join": (inner, (Block("pointwise", "gelu"),)), "crossing": (inner,)}.get(kind, ())
            block, down = Block(kind, name, 3, branches), Block("down", "conv", 4)
            yield Network(2, 2, (block,), seed=2)
            yield Network(2, 4, (block,), seed=4)
            yield Network(2, 2, (down, block, down), seed=1)


def names(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the names of blocks and of those in their branches."""
    for block in blocks:
        yield block.name
        for branch in block.branches:
            yield from names(branch)


def source(network: Network) -> str:
    """Return the code of a network: the constructors of its modules, and its `forward`."""
    made: dict[str, str] = {}
    kernel = network.stem if network.stem > 1 else 3
    made["stem"] = f"nn.Conv2d(3, {CHANNELS}, {kernel}, {network.stem}, {0 if network.stem > 1 else 1})"
    lines = ["x = self.stem(x)", *_lines(network.body, network.stem, network.unit, made)]
    made["last"] = f"nn.Conv2d({CHANNELS}, {CHANNELS}, 3, padding=1)"
    lines.append("return self.last(x)")
    constructors = "".join(f"        self.{name} = {constructor}\n" for name, constructor in made.items())
    forward = "".join(f"        {line}\n" for line in lines)
    return (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.rate = 0.3\n"
        f"{constructors}\n    def forward(self, x):\n{forward}"
    )


def _lines(blocks: Sequence[Block], stride: int, unit: int, made: dict[str, str]) -> list[str]:
    lines: list[str] = []
    for block in blocks:
        scope = Scope(block.seed, stride, unit, made)
        if block.kind == "down":
            lines.append(_down(block.name, scope))
            stride *= 2
        elif block.kind in ("join", "crossing"):
            lines += _joined(block, scope)
        else:
            lines += BLOCKS[block.kind][block.name](scope).splitlines()
    return lines


def _down(name: str, scope: Scope) -> str:
    if name == "max":
        return "x = F.max_pool2d(x, 2)"
    return f"x = {scope.conv(stride=2) if name == 'conv' else scope.conv(2, stride=2, padding=0)}(x)"


def _joined(block: Block, scope: Scope) -> list[str]:
    """Return the code of branches, each of which begins with the same `x`, and of what brings them together."""
    crossing = block.kind == "crossing"
    code = (CROSSINGS if crossing else JOINS)[block.name]
    if crossing and scope.cells % 2:
        return []
    start = f"start{len(scope.made)}"
    scope.made[start] = "nn.Identity()"
    lines, results = [f"{start} = x"], []
    for number, branch in enumerate(block.branches):
        stride = scope.stride
        if crossing:
            lines.append(f"x = {scope.conv(stride=2)}(x)")
            stride *= 2
        lines += _lines(branch, stride, scope.unit, scope.made)
        results.append(f"{start}_{number}")
        lines += [f"{results[-1]} = x", f"x = {start}"]
    mode = scope.random.choice(("nearest", "bilinear"))
    conv = scope.conv(1, 2 * CHANNELS) if "{conv}" in code else ""
    return [*lines, *code.format(*results, conv=conv, mode=mode).splitlines()]


def build(network: Network) -> nn.Module:
    """Return the module of a network, in float64, with parameters drawn from its seed."""
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math}
    exec(source(network), space)
    with torch.random.fork_rng():
        torch.manual_seed(network.seed)
        module: nn.Module = space["Net"]().double()
        for parameter in module.parameters():
            if parameter.min() == parameter.max():  # those of norms
                parameter.data.uniform_(0.5, 1.0)
    return module


# --- what a network comes to ------------------------------------------------------------------------------------------

EQUAL, REFUSED, SKIPPED = "equal", "refused", "skipped"
"""Outcomes that are right; "skipped" is a network that does not run by itself."""


@dataclass(frozen=True)
class Verdict:
    """What a network comes to.

    Attributes:
        outcome: `EQUAL`, `REFUSED`, `SKIPPED`, or what is wrong.
        detail: the reason of a refusal, or numbers.
    """

    outcome: str
    detail: str = ""

    @property
    def right(self) -> bool:
        """Whether the network is equal to the references or refused."""
        return self.outcome in (EQUAL, REFUSED, SKIPPED)


class _Pass(NamedTuple):
    values: Tensor
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]


def verdict_of(network: Network) -> Verdict:
    """Return what a network comes to, in evaluation and in training mode: equal everywhere, refused, or wrong."""
    module = build(network)
    code = source(network)
    modes = (False, True) if "self.training" in code or "BatchNorm" in code else (True,)
    verdicts = [_compared(network, module, train) for train in modes]
    for verdict in verdicts:
        if not verdict.right:
            return _found_by_check(network, module, verdict)
    refused = [verdict for verdict in verdicts if verdict.outcome != EQUAL]
    if refused:
        return refused[0]
    report = _check(network, module, modes)
    if isinstance(report, str):
        return Verdict("the check crashes", report)
    wrong = [r for r in report.results if not r.passed]
    failed = ", ".join(f"{r.check}/{r.mode} {r.error or f'{r.deviation:.0e}'}" for r in wrong)
    if wrong and all(r.error for r in wrong):
        return Verdict(REFUSED, f"{wrong[0].error} (at the size of the check)")
    if wrong and all(r.check == "crop" and r.error is None for r in wrong) and OF_SIZE & set(names(network.body)):
        return Verdict(REFUSED, "by the check: it is another function on the cropped image")
    return Verdict(f"equal, but the check fails: {failed}"[:300]) if failed else Verdict(EQUAL)


def _found_by_check(network: Network, module: nn.Module, verdict: Verdict) -> Verdict:
    report = _check(network, module)
    told = "crashes" if isinstance(report, str) else "passes" if report.passed else "fails"
    return replace(verdict, outcome=f"{verdict.outcome}; the check {told}")


def _check(network: Network, module: nn.Module, modes: Sequence[bool] = (False, True)) -> Any:
    unit, patch = network.unit, network.patch
    grid = [n * unit // patch for n in CHECK_GRID]
    size, stride = (patch, patch), (network.stride, network.stride)
    told = ["train" if train else "eval" for train in modes]
    try:
        return check(copy.deepcopy(module), patch_size=size, stride=stride, grid=grid, batch=CHECK_BATCH, modes=told)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compared(network: Network, module: nn.Module, train: bool) -> Verdict:
    """Compare packed, masked-dense and ordinary execution in one mode, on images larger than those of the check."""
    module = copy.deepcopy(module).train(train)
    vars(module)["rate"] = 0.0  # noise of each position is drawn in another order by each execution
    generator = torch.Generator().manual_seed(network.seed)
    grid = tuple(n * network.unit // network.patch for n in GRID)
    size = [n * network.unit for n in GRID]
    images = torch.randn(BATCH, 3, *size, generator=generator, dtype=torch.float64)
    whole = torch.ones(BATCH, *grid, dtype=torch.bool)
    some = torch.rand(BATCH, math.prod(grid), generator=generator).argsort(1) < max(1, math.prod(grid) * 2 // 5)
    some = some.view(whole.shape)
    try:
        ordinary = _passed(module, images, None, None)
        _passed(module, images[:CHECK_BATCH, :, : 2 * network.unit, : 2 * network.unit], None, None)
    except Exception as error:
        return Verdict(SKIPPED, f"{type(error).__name__}: {error}")
    if not all(t.isfinite().all() for t in (ordinary.values, *ordinary.gradients.values())):
        return Verdict(SKIPPED, "not finite by itself")
    holes = images.where(mask_at(some, size)[:, None], torch.nan)
    outcomes: list[_Pass | str] = []
    for kind, visible, shown in (
        (SparseExecution, whole, images),
        (SparseExecution, some, holes),
        (MaskedDenseExecution, some, holes),
    ):
        try:
            outcomes.append(_passed(module, shown, visible, kind))
        except UnsupportedOperation as error:
            outcomes.append(str(error))
        except Exception as error:
            return Verdict(f"{kind.__name__} raises {type(error).__name__}", f"{error}"[:300])
    identity, packed, dense = outcomes
    if isinstance(identity, str) or isinstance(packed, str):
        if isinstance(identity, str) != isinstance(packed, str):
            return Verdict("refused or not by the mask", str(packed if isinstance(packed, str) else identity))
        return Verdict(REFUSED, f"{packed}{'' if isinstance(dense, str) else ' (the reference carries it out)'}")
    mode = "train" if train else "eval"
    deviation = _deviation(identity, ordinary)
    if deviation > TOLERANCE:
        return Verdict("wrong with nothing hidden", f"{mode} {deviation:.0e}")
    if isinstance(dense, str):
        return Verdict("packed answers what the reference refuses", dense)
    deviation = _deviation(packed, dense)
    return Verdict("wrong on a mask", f"{mode} {deviation:.0e}") if deviation > TOLERANCE else _twins(
        module, holes, some, packed, dense
    )  # fmt: skip


def _twins(module: nn.Module, images: Tensor, visible: Tensor, packed: _Pass, dense: _Pass) -> Verdict:
    """Compare with the network that adds the bias of each convolution afterwards, which is the same function.

    What stands at hidden positions is another; so whatever reads one gives other numbers.
    """
    twin = _bias_afterwards(module)
    for kind, found in ((SparseExecution, packed), (MaskedDenseExecution, dense)):
        try:
            other = _passed(twin, images, visible, kind)
        except UnsupportedOperation as error:
            return Verdict("refused with the bias of convolutions added afterwards", str(error))
        except Exception as error:
            return Verdict(f"{kind.__name__} raises {type(error).__name__}", f"{error}"[:300])
        deviation = _relative(other.values, found.values)
        if not deviation <= TOLERANCE:
            return Verdict(f"{kind.__name__} reads what is hidden", f"{deviation:.0e}")
    return Verdict(EQUAL)


class _BiasAfterwards(nn.Module):
    """Add the bias of a convolution to its result."""

    def __init__(self, conv: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.conv, self.bias = conv, bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.bias.view(-1, *[1] * (y.ndim - 2))


def _bias_afterwards(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    for name, part in list(module.named_children()):
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            bias, part.bias = part.bias, None
            setattr(module, name, _BiasAfterwards(part, bias))
    return module


def _passed(module: nn.Module, images: Tensor, visible: Tensor | None, kind: type[Any] | None) -> _Pass:
    """Run forward and backward on a copy, always with the same noise and the same gradients of the result."""
    module = copy.deepcopy(module)
    images = images.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if kind is None or visible is None:
            values = module(images)
        else:
            execution = kind(PatchGrid(visible, int(visible[0].sum())))
            values = execution.whole_map(run(execution, module, images)[0])
    weights = torch.cos(torch.arange(values.numel(), dtype=values.dtype)).view(values.shape)
    if visible is not None:
        weights = weights * mask_at(visible, values.shape[2:])[:, None]
    (values * weights).sum().backward()
    named = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert images.grad is not None
    return _Pass(values.detach(), {**named, "images": images.grad}, dict(module.named_buffers()))


def _deviation(found: _Pass, expected: _Pass) -> float:
    """Return the largest relative deviation of values, gradients and running statistics."""
    if found.gradients.keys() != expected.gradients.keys():
        return math.inf
    floor = 1e-5 * math.sqrt(sum(g.norm().item() ** 2 for g in expected.gradients.values()))
    pairs = [
        (found.values, expected.values, 0.0),
        *((found.gradients[n], g, floor) for n, g in expected.gradients.items()),
        *((found.statistics[n].double(), s.double(), 0.0) for n, s in expected.statistics.items()),
    ]
    return max(_relative(*pair) for pair in pairs)


def _relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    if found.shape != expected.shape:
        return math.inf
    difference = (found - expected).norm().item()
    if math.isnan(difference):
        return math.inf
    return difference / (expected.norm().item() + floor + 1e-12) if difference else 0.0


# --- smaller networks that fail alike ---------------------------------------------------------------------------------


def shrink(network: Network, verdict: Verdict) -> Network:
    """Return a smaller network that is wrong in the same way, by taking away blocks one at a time."""
    kind = verdict.outcome.split(";")[0].split(":")[0]
    for smaller in _smaller(network.body):
        candidate = replace(network, body=smaller)
        if candidate.unit == network.unit and verdict_of(candidate).outcome.startswith(kind):
            return shrink(candidate, verdict)
    return network


def _smaller(body: tuple[Block, ...]) -> Iterator[tuple[Block, ...]]:
    for i, block in enumerate(body):
        before, after = body[:i], body[i + 1 :]
        yield (*before, *after)
        for j, branch in enumerate(block.branches):
            if block.kind == "join":
                yield (*before, *branch, *after)
            for fewer in _smaller(branch):
                branches = (*block.branches[:j], fewer, *block.branches[j + 1 :])
                yield (*before, replace(block, branches=branches), *after)
