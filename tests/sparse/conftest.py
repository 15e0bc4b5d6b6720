"""What tests of the engine share: masks to draw, one-function networks, and what packed results must equal."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run

Run = Callable[[nn.Module, Tensor], list[Tensor]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- masks ----------------------------------------------------------------------------------------------------------


@st.composite
def draw_visible(draw: st.DrawFn, dims: int = 2, largest: int = 4, images: tuple[int, int] = (1, 3)) -> Tensor:
    """Bool `(B, *grid)` with the same number of visible patches, at least one, at other places in every image."""
    grid = [draw(st.integers(1, largest)) for _ in range(dims)]
    cells = math.prod(grid)
    count = draw(st.integers(1, cells))
    visible = torch.zeros(draw(st.integers(*images)), cells, dtype=torch.bool)
    for image in visible:
        image[draw(st.permutations(range(cells)))[:count]] = True
    return visible.view(-1, *grid)


@st.composite
def draw_rectangles(draw: st.DrawFn, dims: int = 2, largest: int = 4, images: tuple[int, int] = (1, 3)) -> Tensor:
    """As :func:`draw_visible`, with the visible patches of each image a box of the same size."""
    grid = [draw(st.integers(1, largest)) for _ in range(dims)]
    extent = [draw(st.integers(1, g)) for g in grid]
    visible = torch.zeros(draw(st.integers(*images)), *grid, dtype=torch.bool)
    for image in visible:
        first = [draw(st.integers(0, g - e)) for g, e in zip(grid, extent, strict=True)]
        image[tuple(slice(f, f + e) for f, e in zip(first, extent, strict=True))] = True
    return visible


@pytest.fixture(scope="session")
def visible_patches() -> Callable[..., st.SearchStrategy[Tensor]]:
    return draw_visible


@pytest.fixture(scope="session")
def visible_rectangles() -> Callable[..., st.SearchStrategy[Tensor]]:
    return draw_rectangles


def grid_of(visible: Tensor) -> PatchGrid:
    return PatchGrid(visible, int(visible[0].sum()))


# --- networks -------------------------------------------------------------------------------------------------------


class Apply(nn.Module):
    """A network that is one function of the map and of named parameters (those that are None are left out)."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor | None) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.named_parameters()))


@pytest.fixture(scope="session")
def network_of() -> type[Apply]:
    return Apply


# --- what packed results must equal ---------------------------------------------------------------------------------


class Passed(NamedTuple):
    """What one forward and backward pass leaves behind."""

    maps: list[Tensor]
    gradients: list[Tensor]
    buffers: list[Tensor]


def passed(run: Run, network: nn.Module, images: Tensor) -> Passed:
    """A pass over a copy of `network`, with the same noise and the same gradients of the result every time."""
    network = copy.deepcopy(network)
    images = images.clone().requires_grad_()
    torch.manual_seed(1)
    maps = run(network, images)
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in maps]
    gradients = torch.autograd.grad(maps, [images, *network.parameters()], upstream)
    return Passed([m.detach() for m in maps], list(gradients), list(network.buffers()))


def assert_same(actual: Passed, expected: Passed) -> None:
    for ours, theirs, what in zip(actual, expected, Passed._fields, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8, msg=lambda m, what=what: f"{what}: {m}")


def draw_images(visible: Tensor, channels: int, patch: tuple[int, ...]) -> Tensor:
    """Images with NaN at hidden pixels: whatever looks at one of them is found out."""
    generator = torch.Generator().manual_seed(0)
    shape = [g * p for g, p in zip(visible.shape[1:], patch, strict=True)]
    images = torch.randn(len(visible), channels, *shape, generator=generator, dtype=torch.float64)
    for axis, extent in enumerate(patch):
        visible = visible.repeat_interleave(extent, dim=axis + 1)
    return images.where(visible[:, None], torch.nan)


def packed_run(grid: PatchGrid) -> Run:
    return lambda network, images: run(SparseExecution(grid), network, images)


@pytest.fixture(scope="session")
def agrees_with_oracle() -> Callable[..., None]:
    def check(network: nn.Module, visible: Tensor, channels: int, patch: tuple[int, ...]) -> None:
        """Values, gradients and buffers are those of the masked-dense reference."""
        grid = grid_of(visible)
        images = draw_images(visible, channels, patch)

        def dense(network: nn.Module, images: Tensor) -> list[Tensor]:
            return [grid.pack(m) for m in run(MaskedDenseExecution(grid), network, images)]

        assert_same(passed(packed_run(grid), network, images), passed(dense, network, images))

    return check


@pytest.fixture(scope="session")
def agrees_with_crop() -> Callable[..., None]:
    def check(network: nn.Module, visible: Tensor, channels: int, patch: tuple[int, ...]) -> None:
        """Values, gradients and buffers are those of the ordinary network on the visible box of each image."""
        grid = grid_of(visible)
        images = draw_images(visible, channels, patch)

        def boxes(maps: Tensor) -> Tensor:
            """The visible box of each of `(B, C, *size)`, which has the same size in every image."""
            block = grid.block_size(maps.shape[2:])
            cut = []
            for image, cells in zip(maps, visible, strict=True):
                first, last = cells.nonzero().amin(0).tolist(), cells.nonzero().amax(0).tolist()
                sides = [slice(f * b, (e + 1) * b) for f, e, b in zip(first, last, block, strict=True)]
                cut.append(image[(slice(None), *sides)])
            return torch.stack(cut)

        def packed(network: nn.Module, images: Tensor) -> list[Tensor]:
            return [boxes(grid.unpack(m)) for m in run(SparseExecution(grid), network, images)]

        def ordinary(network: nn.Module, images: Tensor) -> list[Tensor]:
            maps = network(boxes(images))
            return [maps] if isinstance(maps, Tensor) else maps

        assert_same(passed(packed, network, images), passed(ordinary, network, images))

    return check


@pytest.fixture(scope="session")
def is_refused() -> Callable[..., None]:
    def check(
        network: nn.Module, visible: Tensor, channels: int, patch: tuple[int, ...], match: str | None = None
    ) -> None:
        """The packed engine raises, and not only when it finds at the end that what comes out is no feature map."""
        with pytest.raises(UnsupportedOperation, match=match) as raised:
            run(SparseExecution(grid_of(visible)), network, draw_images(visible, channels, patch))
        assert match or "feature map" not in str(raised.value)

    return check


@pytest.fixture(scope="session")
def never_waits() -> Callable[..., None]:
    def check(
        make: Callable[[], nn.Module], visible: tuple[int, ...], count: int, channels: int, patch: tuple[int, ...],
        execution: Callable[[PatchGrid], Any] = SparseExecution,
    ) -> None:  # fmt: skip
        """Forward and backward, tables included, on tensors that hold no data: reading any of it raises."""
        with FakeTensorMode():
            mask = torch.zeros(visible, dtype=torch.bool)
            images = torch.randn(visible[0], channels, *[g * p for g, p in zip(visible[1:], patch, strict=True)])
            images.requires_grad_()
            network = make()
            maps = run(execution(PatchGrid(mask, count)), network, images)
            torch.autograd.grad(maps, [images, *network.parameters()], [torch.ones_like(m) for m in maps])

    return check


# --- memory ---------------------------------------------------------------------------------------------------------


class StoragesMade(TorchDispatchMode):
    """Knows which of the memory that operators returned while it was active is still held by someone."""

    def __init__(self, but_not_of: list[Tensor]) -> None:
        super().__init__()
        self.older = {tensor.untyped_storage()._cdata for tensor in but_not_of}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                storage = tensor.untyped_storage()
                if storage._cdata not in self.older:
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes_alive(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


@pytest.fixture(scope="session")
def storages_made() -> type[StoragesMade]:
    return StoragesMade
