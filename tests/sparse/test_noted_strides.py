"""The strides that are noted of a tensor are those that the ordinary network's has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine_helpers import LARGE, SMALL, Host, all_visible, constant, images_of
from sparkmim.sparse import MaskedDenseExecution, SparseExecution, UnsupportedOperation, run
from sparkmim.sparse.nested import tensors_in
from sparkmim.sparse.strides import UNKNOWN

LAST = torch.channels_last


def k(*shape: int) -> Tensor:
    return constant(*shape)


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def first(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: first(last(x).contiguous()),
    "rows_and_columns": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every_other": lambda x: torch.cat([x, x], 1)[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "part_with_channels_last": lambda x: torch.cat([x, x], 1).to(memory_format=LAST)[:, :8],
}

FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "clone": lambda x: x.clone(),
    "clone_in_format": lambda x: x.clone(memory_format=LAST),
    "clone_contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "clone_preserved": lambda x: x.clone(memory_format=torch.preserve_format),
    "converted_in_format": lambda x: x.float(memory_format=LAST).double(memory_format=torch.contiguous_format),  # type: ignore[call-arg]
    "converted_to_its_own": lambda x: x.double(memory_format=LAST),  # type: ignore[call-arg]
    "to_its_format": lambda x: x.to(memory_format=LAST).to(memory_format=torch.contiguous_format),
    "zeros_in_format": lambda x: torch.zeros_like(x, memory_format=LAST) + torch.ones_like(x),
    "transposed": lambda x: x.mT.contiguous().mT,
    "padded": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), k(8, 8, 3, 3)),
    "padded_channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "padded_by_nothing": lambda x: F.pad(x, (0, 0)),
    "cropped_channels": lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)),
    "padded_by_less": lambda x: F.max_pool2d(F.avg_pool2d(x, 2, 1), 2, 1, 1),
    "einsum": lambda x: torch.einsum("bchw,dc->bdhw", x, k(8, 8)),
    "einsum_of_last": lambda x: first(torch.einsum("bchw,dc->bhwd", x, k(8, 8))),
    "einsum_per_image": lambda x: x * torch.einsum("bchw,bdhw->bcd", x, x).sum(2)[..., None, None],
    "less_its_mean": lambda x: x - x.mean(1, keepdim=True),
    "mean_less_it": lambda x: x.mean(1, keepdim=True) - x,
    "copies_added": lambda x: first(last(x).contiguous()) + x,
    "added_copies": lambda x: x + first(last(x).contiguous()),
    "value_per_image_first": lambda x: F.linear(x.mean((2, 3)), k(8, 8))[..., None, None] * x,
    "constant_first": lambda x: k(8, 1, 1) * x,
    "lerp": lambda x: torch.lerp(first(last(x).contiguous()), x, 0.5),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "activation": F.gelu,
}  # fmt: skip


def chain(source: str, function: str) -> Host:
    return Host(lambda x: FUNCTIONS[function](SOURCES[source](x)))


Seen = list[tuple[tuple[int, ...], tuple[int, ...]]]


class Strides(TorchFunctionMode):
    """Notes the shapes and strides of what functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [(tuple(tensor.shape), tensor.stride()) for tensor in tensors_in(out)]
        return out


def noted_by(kind: type[Any], network: Host, images: Tensor) -> Seen:
    """Return the shapes that tensors have in the ordinary network, and the strides that are noted, () if unknown."""
    seen: Seen = []

    class Watched(kind):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = super().__torch_function__(func, types, args, kwargs)
            with torch._C.DisableTorchFunction():
                for tensor in tensors_in(out):
                    layout = self.marked(tensor)
                    waits = layout is None or layout.unfinished is not None
                    shape = () if waits else self.ordinary_shape(tensor, layout)
                    seen.append((shape, UNKNOWN if waits else self.memory.strides(tensor, shape)))
            return out

    run(Watched(all_visible()), network, images)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("source", SOURCES)
def test_noted_strides(source: str, function: str) -> None:
    for block in (LARGE, SMALL):
        network, images = chain(source, function), images_of(block)
        with Strides() as ordinary:
            network(images)
        for kind in (SparseExecution, MaskedDenseExecution):
            try:
                noted = noted_by(kind, network, images)
            except UnsupportedOperation:
                assert (function, block) == ("padded_by_less", SMALL)
                continue
            assert len(noted) == len(ordinary.seen)
            for (shape, found), (wanted, strides) in zip(noted, ordinary.seen, strict=True):
                if found != UNKNOWN and shape == wanted:  # (a padding waits, so its map is no larger yet)
                    axes = [axis for axis, extent in enumerate(shape) if extent != 1]
                    assert [found[axis] for axis in axes] == [strides[axis] for axis in axes]
