"""Gathers of rows, of which some are not there: by a Triton kernel, or by PyTorch's own operations.

The kernel moves many rows a program and fills what is hidden itself, where PyTorch's gather needs the fill as one row
more, which copies the map, and takes a block of threads a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel_choice import takes_kernels
from .operators import define


def has_kernel(triton: bool | None, x: Tensor) -> bool:
    """Return whether the kernel gathers positions of a map."""
    return takes_kernels(triton, "gather", x, compare_with_plain)


def gather_rows(rows: Tensor, table: Tensor, fill: float, kernel: bool) -> Tensor:
    """Gather rows `(M, C)` to `(*table.shape, C)` flattened, `fill` where an index is M.

    Args:
        rows: to gather.
        table: int32 indices up to M.
        fill: of the rows that are not there.
        kernel: whether the Triton kernel does it, see :func:`has_kernel`.
    """
    if kernel:
        return torch.ops.sparkmim.gather(rows, table, fill)  # type: ignore[no-any-return]
    return with_fill(rows, fill).index_select(0, table.flatten())


def gather_all(rows: Tensor, table: Tensor, kernel: bool) -> Tensor:
    """Gather rows likewise by a table of which each names one that is there."""
    return gather_rows(rows, table, 0.0, kernel) if kernel else rows.index_select(0, table.flatten())


def sum_rows(rows: Tensor, readers: Tensor, kernel: bool) -> Tensor:
    """Sum rows `(M, C)` to `(P, C)`, those that each of `(P, readers)` indices names; M names none.

    16-bit sums are accumulated in float32.
    """
    if kernel:
        return torch.ops.sparkmim.gather_sum(rows, readers)  # type: ignore[no-any-return]
    return F.embedding_bag(readers, with_fill(rows, 0.0), mode="sum")


def with_fill(rows: Tensor, fill: float) -> Tensor:
    """Append a row of `fill`, which the tables of :class:`PatchGrid` point to for hidden positions."""
    return torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])


def _gather(rows: Tensor, table: Tensor, fill: float) -> Tensor:
    from . import triton_kernels as kernels

    out = _like_rows(rows, table, fill)
    kernels.gather(rows.contiguous(), table.reshape(-1, 1).contiguous(), out, fill)
    return out


def _like_rows(rows: Tensor, table: Tensor, fill: float) -> Tensor:
    return rows.new_empty((table.numel(), rows.shape[1]))


def _gather_sum(rows: Tensor, readers: Tensor) -> Tensor:
    from . import triton_kernels as kernels

    out = _like_readers(rows, readers)
    kernels.gather(rows.contiguous(), readers.contiguous(), out, 0.0)
    return out


def _like_readers(rows: Tensor, readers: Tensor) -> Tensor:
    return rows.new_empty((readers.shape[0], rows.shape[1]))


define("gather(Tensor rows, Tensor table, float fill) -> Tensor", _gather, _like_rows)
define("gather_sum(Tensor rows, Tensor readers) -> Tensor", _gather_sum, _like_readers)


def compare_with_plain(device: torch.device) -> str | None:
    """Compare the kernel with PyTorch's operations on small rows.

    Returns:
        What is wrong, None if nothing is.
    """
    for channels, dtype in ((64, torch.bfloat16), (40, torch.bfloat16), (3, torch.float32), (96, torch.float32)):
        rows = torch.arange(150 * channels, device=device).mul(0.7).sin().view(150, channels).to(dtype)
        table = torch.arange(4 * 111, dtype=torch.int32, device=device).mul(37).remainder(151)
        for fill in (0.0, -torch.inf):
            if not torch.equal(gather_rows(rows, table, fill, True), gather_rows(rows, table, fill, False)):
                return f"gathering rows of {channels} channels in {dtype} differs"
        found, wanted = sum_rows(rows, table.view(-1, 4), True), sum_rows(rows.double(), table.view(-1, 4), False)
        if not float((found.double() - wanted).abs().max()) <= 4 * torch.finfo(dtype).eps:
            return f"summing rows of {channels} channels in {dtype} differs"
    return None
