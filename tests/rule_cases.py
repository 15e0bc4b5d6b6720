"""Functions of a map `(N, 8, h, w)` that have a rule, and such that are refused: for tests of every execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import Function, channels_last, constant

PERMUTATION = torch.tensor([3, 1, 2, 0, 7, 6, 5, 4])


def written(write: Callable[[Tensor], Any]) -> Function:
    """Return a function that writes into a copy of the map and returns it."""

    def wrapped(x: Tensor) -> Tensor:
        copy = x * 1.0
        write(copy)
        return copy

    return wrapped


def hooked(hook: Callable[[Tensor], Tensor | None]) -> Function:
    """Return a function whose gradient a hook is given."""

    def wrapped(x: Tensor) -> Tensor:
        y = x * 1.0
        y.register_hook(hook)
        return y

    return wrapped


def channel_attention(x: Tensor) -> Tensor:
    """Attend among channels, as XCiT does: nothing relates positions to one another."""
    heads = x.flatten(2).view(x.shape[0], 2, 4, -1)
    query, key, value = heads, heads * 2 + 1, heads.sin()
    weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)).softmax(-1)
    return (weights @ value).view(x.shape)


def dual_attention(x: Tensor) -> Tensor:
    """Attend among channels, as DANet does."""
    flat = x.view(x.shape[0], x.shape[1], -1)
    energy = torch.bmm(flat, flat.permute(0, 2, 1))
    energy = torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy
    return torch.bmm(energy.softmax(-1), flat).view(x.shape)


ALONG_CHANNELS: dict[str, Function] = {
    "max": lambda x: x * x.max(1, keepdim=True)[0],
    "max_free_function": lambda x: x * torch.max(x, 1)[0][:, None],
    "max_values": lambda x: x * x.max(dim=1).values[:, None],
    "max_named": lambda x: x * torch.max(input=x, dim=1, keepdim=True).values,
    "min_last": channels_last(lambda x: x - x.min(-1, True)[0]),
    "max_of_two": lambda x: torch.max(x, x * 2) + torch.min(x, other=x.flip(1)),
    "max_of_gates": lambda x: x * x.mean((2, 3)).max(1)[0][:, None, None, None],
    "topk": lambda x: torch.cat([x.topk(4, dim=1)[0]] * 2, 1),
    "topk_indices": lambda x: x.gather(1, x.topk(3, 1, largest=False)[1]),
    "argmax": lambda x: x + x.argmax(1, keepdim=True) * 0.5,
    "sort": lambda x: x.sort(1)[0],
    "sort_descending": lambda x: x.sort(descending=True, dim=1)[0],
    "argsort": lambda x: x.gather(1, x.argsort(1)),
    "kthvalue": lambda x: x * x.kthvalue(3, 1)[0][:, None],
    "median": lambda x: x - x.median(1, True)[0],
    "mode": lambda x: x - x.round().mode(1, True)[0],
    "prod": lambda x: x * x.prod(1, True),
    "prod_named": lambda x: x * torch.prod(x, dim=1, keepdim=True),
    "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1).values,
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "any": lambda x: x * (x > 1).any(1, True) + x * (x > -1).all(1, keepdim=True),
    "count_nonzero": lambda x: x * (x > 0).count_nonzero(1)[:, None],
    "quantile": lambda x: x * x.quantile(0.3, 1, True),
    "aminmax": lambda x: (  # torch 2.6 knows no derivative of it
        x * x.detach().aminmax(dim=1, keepdim=True)[0] + x.detach().aminmax(dim=1, keepdim=True).max
    ),
    "diff": lambda x: x.diff(dim=1),
    "local_response_norm": nn.LocalResponseNorm(3),
    "cosine_similarity": lambda x: x * F.cosine_similarity(x, x * 2 + 1, dim=1).unsqueeze(1),
    "pairwise_distance": channels_last(lambda x: x * F.pairwise_distance(x, x * 2, keepdim=True)),
    "one_hot": lambda x: x * F.one_hot(x.argmax(1), 8).permute(0, 3, 1, 2),
    "codebook": channels_last(
        lambda x: x + F.embedding((x.unsqueeze(-2) - constant(5, 8)).pow(2).sum(-1).argmin(-1), constant(5, 8))
    ),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(1), 1),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x * 2),
    "scatter_add": lambda x: x.scatter_add(1, x.argmax(1, keepdim=True), x[:, :1]),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0, 3]), 0.5),
    "maxout": lambda x: x.view(x.shape[0], 4, 2, *x.shape[2:]).max(2)[0],
}

OF_POSITIONS: dict[str, Function] = {
    "max": lambda x: x * x.flatten(2).max(-1)[0][..., None, None],
    "min": lambda x: x * x.flatten(2).min(dim=-1, keepdim=True).values[..., None],
    "max_pooled": lambda x: x * F.adaptive_max_pool2d(x, 1, return_indices=True)[0],
    "mean_in_turn": lambda x: x * x.mean(3).mean(2)[..., None, None],
    "mean_in_turn_kept": lambda x: x * x.mean(2, keepdim=True).mean(3, keepdim=True),
    "mean_in_turn_last": channels_last(lambda x: x * x.mean(1, True).mean(2, True)),
    "mean_in_turn_and_channels": lambda x: x * x.mean(3, True).mean((1, 2), True),
    "sum_in_turn": lambda x: x * x.sum(-1).sum(-1)[..., None, None],
    "amax_in_turn": lambda x: x * x.amax(3, True).amax(2, True),
    "max_in_turn": lambda x: x * x.max(3, True)[0].max(2, True)[0],
    "logsumexp_in_turn": lambda x: x * x.logsumexp(3).logsumexp(2)[..., None, None],
    "norm_in_turn": lambda x: x * x.norm(dim=3).norm(dim=2)[..., None, None],
    "pooled_resampled": lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[-2:], mode="bilinear"),
    "pooled_resampled_nearest": lambda x: torch.cat([x, F.interpolate(x.mean((2, 3), True), size=x.shape[2:])], 1),
    "pooled_repeated": lambda x: x + F.adaptive_avg_pool2d(x, 1).repeat(1, 1, x.shape[2], x.shape[3]),
}

ORDERLESS: dict[str, Function] = {
    "median": lambda x: x * x.flatten(2).median(-1)[0][..., None, None],
    "quantile": lambda x: x * x.flatten(2).quantile(0.5, -1)[..., None, None],
    "topk": lambda x: x * x.flatten(2).topk(2, -1)[0].mean(-1)[..., None, None],
    "kthvalue": lambda x: x * x.flatten(2).kthvalue(1, -1, True)[0][..., None],
    "prod": lambda x: x * x.flatten(2).prod(-1)[..., None, None],
    "any": lambda x: x * (x > 1).flatten(2).any(-1)[..., None, None],
}
"""Statistics of the visible positions in any order."""

PRODUCTS: dict[str, Function] = {
    "einsum_1x1": lambda x: torch.einsum("bchw,dc->bdhw", x, constant(8, 8)),
    "einsum_of_a_list": lambda x: torch.einsum("bchw,dc->bdhw", [x, constant(8, 8)]),
    "einsum_ellipsis": channels_last(lambda x: torch.einsum("...c,cd->...d", x, constant(8, 8))),
    "einsum_implicit": lambda x: torch.einsum("bchw,c", x, constant(8))[:, None] * x,
    "einsum_of_two_maps": lambda x: torch.einsum("bchw,bchw->bhw", x, x * 2)[:, None] * x,
    "einsum_gram": lambda x: x + torch.einsum("bchw,bdhw->bcd", x, x).mean(2)[..., None, None],
    "einsum_sum": lambda x: x * torch.einsum("bchw->bc", x)[..., None, None],
    "einsum_gate": lambda x: torch.einsum("bchw,bc->bchw", x, x.mean((2, 3))),
    "einsum_dynamic": lambda x: torch.einsum("bchw,bcd->bdhw", x, torch.einsum("bchw,bdhw->bcd", x, x)),
    "einsum_permuted": lambda x: torch.einsum("bchw,dc->hwbd", x, constant(8, 8)).permute(2, 3, 0, 1),
    "einsum_groups": lambda x: torch.einsum(
        "bgchw,gdc->bgdhw", x.view(x.shape[0], 2, 4, *x.shape[2:]), constant(2, 4, 4)
    ).reshape(x.shape),
    "matmul_from_the_left": lambda x: (constant(8, 8) @ x.flatten(2)).view(x.shape),
    "matmul_reflected": lambda x: x.flatten(2).__rmatmul__(constant(8, 8)).view(x.shape),
    "matmul_vector": channels_last(lambda x: (x @ constant(8))[..., None] * x),
    "matmul_dynamic": lambda x: (x.mean((2, 3)).unsqueeze(1) * constant(8, 8) @ x.flatten(2)).view(x.shape),
    "matmul_heads": lambda x: (constant(2, 4, 4) @ x.view(x.shape[0], 2, 4, -1)).view(x.shape),
    "bmm_expanded": lambda x: torch.bmm(constant(8, 8).expand(x.shape[0], 8, 8), x.flatten(2)).view(x.shape),
    "baddbmm": lambda x: torch.baddbmm(
        constant(1, 8, 1), constant(8, 8).expand(x.shape[0], 8, 8), x.flatten(2), beta=0.5, alpha=2
    ).view(x.shape),
    "tensordot": lambda x: torch.tensordot(constant(8, 8), x, dims=([1], [1])).transpose(0, 1),
    "tensordot_last": channels_last(lambda x: torch.tensordot(x, constant(8, 8), 1)),
    "matrix_transpose": lambda x: (x.flatten(2).mT @ constant(8, 8)).mT.view(x.shape),
    "channel_attention": channel_attention,
    "dual_attention": dual_attention,
    "bilinear": channels_last(lambda x: F.bilinear(x, x * 2, constant(5, 8, 8))),
    "cdist": lambda x: (
        x + torch.cdist(x.flatten(2).transpose(1, 2), constant(1, 5, 8)).mean(-1).reshape(x.shape[0], 1, *x.shape[2:])
    ),
}

PLACES: dict[str, Function] = {
    "mask": written(lambda x: x.__setitem__(x < 0, 0)),
    "mask_of_several": written(lambda x: x.__setitem__((x > 0.5) & (x < 1), torch.tensor(2.0))),
    "mask_of_positions": channels_last(written(lambda x: x.__setitem__(x.sum(-1) > 0, constant(8)))),
    "masked_fill": written(lambda x: x.masked_fill_(x < 0, 0)),
    "written_list": written(lambda x: x.__setitem__((slice(None), [0, 2]), x[:, [1, 3]] * 2)),
    "tensor": lambda x: x[:, PERMUTATION],
    "list": lambda x: x[:, [1, 0, 5]],
    "table": lambda x: x[:, PERMUTATION.view(2, 4)].sum(1),
    "number": lambda x: x[:, torch.tensor(3)][:, None] * x,
    "chosen": lambda x: x[:, PERMUTATION > 3],
    "last": channels_last(lambda x: x[..., PERMUTATION]),
    "with_new_axis": lambda x: x[:, None, [1, 0]].squeeze(1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1)[:, 4:12],
    "repeat_new_axis": lambda x: (x.repeat(3, 1, 1, 1, 1) * constant(3, 1, 1, 1, 1)).sum(0),
    "tile": lambda x: x.tile((2, 1, 1))[:, 4:12],
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "repeat_interleave_numbers": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1, 1, 1]), 1),
    "hstack": lambda x: torch.hstack([x, x * 2]),
    "type": lambda x: x.type(torch.float64) * (x.type() == "torch.DoubleTensor"),
    "long": lambda x: x * x.long() + x.bool(),
    "new_tensor": lambda x: x * x.new_tensor([2.0, 3.0])[0],
    "hook": hooked(lambda g: g * 2),
    "hook_that_looks": hooked(lambda g: None),
    "hook_that_clips": hooked(lambda g: g.clamp(-0.1, 0.1) * g.sigmoid()),
    "hook_that_centers": hooked(lambda g: g - g.mean((2, 3), True)),
}

WINDOWS: dict[str, Function] = {
    "unfold": lambda x: F.unfold(x, 3, padding=1).view(x.shape[0], 8, 9, *x.shape[2:]).sum(2),
    "involution": lambda x: (
        F.unfold(x, 3, padding=1).view(x.shape[0], 8, 9, *x.shape[2:]) * x.mean(1, True).unsqueeze(1)
    ).sum(2),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "causal": lambda x: F.conv2d(x, constant(8, 8, 3, 3), constant(8), padding=2)[:, :, :-2, :-2],
    "cropped": lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2)[:, :, 1:-1, 1:-1],
    "cropped_one_axis": lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=(1, 2))[..., 2:],
    "cropped_by_padding": lambda x: F.pad(F.conv2d(x, constant(8, 8, 3, 3), padding=2), (-2, 0, -1, -1)),
    "cropped_to_size": lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2)[:, :, : x.shape[2], : x.size(3)],
    "cropped_dilated": lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=4, dilation=2)[..., 2:-2, :-4],
    "pooled_with_indices": lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[0],
    "pooled_to_own_size": lambda x: (
        F.adaptive_avg_pool2d(x, (x.shape[2], x.shape[3])) + F.adaptive_max_pool2d(x, x.shape[2:])
    ),
    "lp_pool_of_the_map": lambda x: x * F.lp_pool2d(x, 2, (x.shape[2], x.shape[3])),
}


def group_norm(x: Tensor, groups: int = 2) -> Tensor:
    """Normalize groups of channels, as written by hand."""
    merged = x.view(x.shape[0], groups, -1)
    merged = (merged - merged.mean(-1, keepdim=True)) / (merged.var(-1, keepdim=True) + 1e-5).sqrt()
    return merged.view(x.shape)


def quantized(x: Tensor) -> Tensor:
    """Replace each position by the nearest row of a codebook, as vector quantization is written."""
    last, book = x.permute(0, 2, 3, 1).contiguous(), constant(5, 8)
    flat = last.view(-1, 8)
    distance = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * flat @ book.t()
    nearest = F.embedding(distance.argmin(1), book).view(last.shape)
    return (last + (nearest - last).detach()).permute(0, 3, 1, 2)


MERGED: dict[str, Function] = {
    "group_norm": group_norm,
    "group_norm_of_samples": lambda x: (lambda y: (y - y.mean(1, True)).reshape(x.shape))(
        x.reshape(x.shape[0] * 2, -1)
    ),
    "instance_norm": lambda x: (lambda y: (y - y.mean(1, True)).view_as(x))(x.reshape(x.shape[0] * x.shape[1], -1)),
    "layer_norm": lambda x: (lambda y: (y - y.mean(1, True)).view(x.shape))(x.flatten(1)),
    "layer_norm_of_everything": lambda x: F.layer_norm(x, x.shape[1:]),
    "layer_norm_flat": lambda x: (lambda y: F.layer_norm(y, y.shape[1:]).view(x.shape))(x.flatten(1)),
    "rms_norm_of_everything": lambda x: F.rms_norm(x, x.shape[1:]),
    "statistics": lambda x: x * x.view(x.shape[0], -1).std(1).view(-1, 1, 1, 1),
    "smallest_and_largest": lambda x: (
        (lambda y: y.max(1)[0] - torch.min(y, dim=1).values)(x.flatten(1))[:, None, None, None] * x
    ),
    "largest_kept": lambda x: (lambda y: y / (y.max(-1, keepdim=True)[0].abs() + 1))(x.view(x.shape[0], 2, -1)).view(
        x.shape
    ),
    "larger": lambda x: (lambda y: torch.max(y, -y).view(x.shape))(x.flatten(1)),
    "linear": channels_last(lambda x: F.linear(x.reshape(-1, 8), constant(8, 8)).view(x.shape)),
    "linear_flattened": channels_last(lambda x: (x.flatten(0, 2) @ constant(8, 8)).unflatten(0, x.shape[:3])),
    "batch_norm": channels_last(lambda x: F.batch_norm(x.reshape(-1, 8), None, None, training=True).view(x.shape)),
    "softmax": channels_last(lambda x: x.reshape(-1, 8).softmax(1).reshape(x.shape)),
    "transposed": lambda x: (lambda y: (y * 2).transpose(1, 2).relu().transpose(1, 2).reshape(x.shape))(
        x.view(x.shape[0], 2, -1)
    ),
    "sizes": lambda x: (lambda y: y.view(x.shape) * (y.ndim + y.shape[1]))(x.view(x.shape[0], 2, -1)),
    "quantized": quantized,
}
"""Reshapes that merge samples or positions with other axes, and what usually follows."""

RESAMPLED: dict[str, Function] = {
    "larger_than_a_patch": lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2), 2),
    "larger_smoothly": lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 2),
    "by_area": lambda x: F.interpolate(F.interpolate(x, scale_factor=2, mode="area"), size=x.shape[2:], mode="area"),
    "to_its_own_size": lambda x: (
        F.interpolate(x, size=x.shape[2:], mode="bilinear", align_corners=True) + F.interpolate(x, scale_factor=1)
    ),
    "replicated": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), constant(8, 8, 3, 3)),
    "replicated_pooled": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
}
"""Resampling and padding that look at neighbors, or at none."""

AXES_IN_PLACE: dict[str, Function] = {
    "stacked": lambda x: torch.cat([(x * 2).unsqueeze_(dim=1), (x + 1).unsqueeze_(1)], 1).sum(1),
    "per_image": lambda x: x * x.mean((2, 3)).unsqueeze_(2).unsqueeze_(-1),
    "as_tensor": lambda x: torch.as_tensor(x * 2) + torch.as_tensor(x, dtype=torch.float32).to(x.dtype),
    "squeezed": lambda x: x * x.mean(1, keepdim=True).squeeze_(1).unsqueeze_(1),
    "transposed": lambda x: (x * constant(8, 1, 1)).transpose_(1, 2).mul(2).transpose_(1, -2),
    "swapped": lambda x: (lambda y: (y.swapaxes_(1, 3), F.linear(y, constant(8, 8)).swapdims_(3, 1))[1])(x * 1),
    "written": lambda x: (lambda y: (y.transpose_(1, 3), y[..., :4].zero_(), y.transpose_(3, 1))[2])(x * 1),
}
"""Tensors whose axes are rearranged in place."""

PER_IMAGE: dict[str, Function] = {
    "vector": lambda x: x * torch.linspace(1, 2, len(x), dtype=x.dtype).view(-1, 1, 1, 1),
    "vector_of_ones": lambda x: x * (x.new_ones(x.shape[0])[:, None, None, None] + 1),
    "of_channels": lambda x: x + torch.ones(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype),
    "of_channels_last": channels_last(lambda x: x * torch.ones(x.shape[0], dtype=x.dtype).reshape(-1, 1, 1, 1)),
}
"""Values per image that a network makes as a vector."""

WORKING: dict[str, Function] = {
    f"{kind}-{name}": function
    for kind, functions in (
        ("channels", ALONG_CHANNELS),
        ("positions", OF_POSITIONS),
        ("orderless", ORDERLESS),
        ("product", PRODUCTS),
        ("places", PLACES),
        ("windows", WINDOWS),
        ("merged", MERGED),
        ("resampled", RESAMPLED),
        ("in_place", AXES_IN_PLACE),
        ("per_image", PER_IMAGE),
    )
    for name, function in functions.items()
}

REFUSED: dict[str, tuple[Function, str]] = {
    "index_of_positions": (lambda x: x * x.flatten(2).max(-1)[1][..., None, None], "place among the positions"),
    "index_of_pooling": (lambda x: F.max_pool2d(x, 1, return_indices=True)[1] * x, "place among the positions"),
    "index_of_merged_axes": (lambda x: x * x.flatten(1).max(1)[1].view(-1, 1, 1, 1), "place among the positions"),
    "index_in_turn": (lambda x: x * x.max(3, True)[1], "place among the positions"),
    "argmax_of_positions": (lambda x: x.flatten(2).argmax(-1)[..., None, None] * x, "order"),
    "sort_of_positions": (lambda x: x.flatten(2).sort(-1)[0].view(x.shape), "order"),
    "rows_alone": (lambda x: x * x.mean(3, True), "only the same reduction of the others can follow"),
    "rows_then_maxima": (lambda x: x * x.mean(3, True).amax(2, True), "only the same reduction"),
    "rows_changed": (lambda x: x * (x.mean(3, True) + 1).mean(2, True), "only the same reduction"),
    "rows_detached": (lambda x: x * x.mean(3).detach().mean(2)[..., None, None], "only the same reduction"),
    "rows_of_std": (lambda x: x * x.std(3).std(2)[..., None, None], "reduce all spatial axes at once"),
    "rows_written_between": (
        written(lambda x: (lambda rows: (x.mul_(2), x.mul_(rows.mean(2, True))))(x.mean(3, True))), "written to",
    ),
    "everything": (lambda x: x / x.sigmoid().prod(), "name the axes"),
    "topk_of_all": (lambda x: x * x.flatten(2).topk(10**6, -1)[0].mean(), "are visible"),
    "einsum_strip": (lambda x: x * torch.einsum("bchw->bch", x)[..., None], "one spatial axis"),
    "einsum_batch": (lambda x: x * torch.einsum("bchw->chw", x), "sums over samples"),
    "einsum_attention": (lambda x: torch.einsum("bchw,bcxy->bhwxy", x, x).mean((1, 2)), "as attention does"),
    "einsum_of_sums": (lambda x: x * torch.einsum("bchw,bcxy->bc", x, x)[..., None, None], "as attention does"),
    "einsum_swapped": (lambda x: torch.einsum("bchw,bcwh->bchw", x, x), "as attention does"),
    "einsum_by_position": (
        lambda x: x * torch.einsum("bchw,hw->bc", x, torch.ones(*x.shape[2:], dtype=x.dtype))[..., None, None], "",
    ),
    "attention": (lambda x: (lambda q: (q @ (q.mT @ q).softmax(-1)).view(x.shape))(x.flatten(2)), "as attention does"),
    "distances": (
        lambda x: torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean((1, 2))[:, None, None, None] * x,
        "as attention does",
    ),
    "transposed_sum": (lambda x: x + x.mT, ""),
    "mask_of_values": (written(lambda x: x.__setitem__(x < 0, x[x < 0])), "torch.where"),
    "index_of_the_input": (lambda x: x[:, x.argmax(1)[0, 0]], ""),
    "several_lists": (lambda x: x.view(x.shape[0], 2, 4, *x.shape[2:])[:, [0, 1], [0, 1]], "one after the other"),
    "some_samples": (lambda x: x[[0, 1]], "samples"),
    "copies_side_by_side": (lambda x: x.repeat(1, 1, 2, 2), "side by side"),
    "copies_of_samples": (lambda x: x.repeat(2, 1, 1, 1), "repeats samples"),
    "interleaved_everything": (lambda x: x.repeat_interleave(2), "name the axis"),
    "vstack": (lambda x: torch.vstack([x, x]), "samples or space"),
    "dstack": (lambda x: torch.dstack([x, x]), "samples or space"),
    "hook_that_moves": (hooked(lambda g: g.roll(1, 2)), "samples or space"),
    "cropped_too_little": (lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2)[:, :, 1:, 1:-1], "crop it right"),
    "not_cropped": (lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2), "crop it right"),
    "cropped_late": (lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2).relu()[..., 1:-1, 1:-1], "crop it right"),
    "pooled_by_a_factor": (
        lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), scale_factor=4), "size=x.shape[2:]",
    ),
    "pooled_to_rows": (lambda x: x * F.adaptive_avg_pool2d(x, (None, 1)), "patches are not cut along them"),
    "pooled_to_two": (lambda x: x * F.adaptive_avg_pool2d(x, 2), "patches are not cut along them"),
    "fourier": (lambda x: torch.fft.fft2(x).real, "Fourier"),
    "recurrence": (lambda x: nn.GRU(8, 8, dtype=x.dtype)(x.flatten(2).transpose(1, 2))[0].mT, "recurrence"),
    "unfold_of_tensor": (lambda x: x.unfold(2, 1, 1)[..., 0], "torch.nn.functional.unfold"),
    "python_number": (lambda x: x * x.amax((1, 2, 3)).tolist()[0], "Python"),
}  # fmt: skip
"""Functions that stay refused, and what the message says."""
