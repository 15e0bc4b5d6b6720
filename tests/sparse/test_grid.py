"""Packing and the tables of neighbors, against loops over patches and pixels."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine_helpers import draw_visible
from sparkmim.models.masking import random_visible
from sparkmim.sparse import PatchGrid, mask_at, offsets
from sparkmim.sparse.packed.halo import gather_halo, scatter_halo

Sides = tuple[int, ...]


def grid_of(visible: Tensor) -> PatchGrid:
    return PatchGrid(visible, int(visible[0].sum()))


def visible_cells(visible: Tensor) -> list[tuple[int, Sides]]:
    """Image and cell of each packed patch: images in order, cells in row-major order."""
    cells = itertools.product(range(visible.shape[0]), *[range(g) for g in visible.shape[1:]])
    return [(cell[0], cell[1:]) for cell in cells if visible[cell]]


def numbered(grid: PatchGrid, block: Sides, channels: int = 2) -> Tensor:
    """A dense map in which every value is another one."""
    shape = (grid.batch, channels, *[g * b for g, b in zip(grid.shape, block, strict=True)])
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def box(dense: Tensor, image: int, cell: Sides, block: Sides) -> Tensor:
    sides = [slice(c * b, (c + 1) * b) for c, b in zip(cell, block, strict=True)]
    return dense[(image, slice(None), *sides)]


@st.composite
def halos(draw: st.DrawFn, dims: int, cropping: bool = True) -> tuple[Sides, Sides, Sides]:
    """A block and how far its halo reaches to both sides: beyond the neighbors, or not even to the border."""
    block, before, after = [], [], []
    for _ in range(dims):
        extent = draw(st.integers(1, 3))
        low = draw(st.integers(1 - extent if cropping else 0, 4 if dims < 3 else 2))
        block.append(extent)
        before.append(low)
        after.append(draw(st.integers(max(1 - extent - low, 1 - extent if cropping else 0), 4 if dims < 3 else 2)))
    return tuple(block), tuple(before), tuple(after)


# --- packing --------------------------------------------------------------------------------------------------------


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_pack_goes_by_image_then_row_major(data: st.DataObject, dims: int) -> None:
    visible = data.draw(draw_visible(dims, largest=3 if dims == 3 else 4))
    block = tuple(data.draw(st.integers(1, 3)) for _ in range(dims))
    grid = grid_of(visible)
    dense = numbered(grid, block)
    expected = torch.stack([box(dense, image, cell, block) for image, cell in visible_cells(visible)])
    packed = grid.pack(dense)
    assert torch.equal(packed, expected)
    assert packed.movedim(1, -1).is_contiguous()  # channels last in memory: what every table relies on for speed


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_unpack_puts_patches_back_and_fills_the_rest(data: st.DataObject, dims: int) -> None:
    visible = data.draw(draw_visible(dims, largest=3 if dims == 3 else 4))
    block = tuple(data.draw(st.integers(1, 3)) for _ in range(dims))
    grid = grid_of(visible)
    dense = numbered(grid, block)
    expected = torch.full_like(dense, -1.0)
    for image, cell in visible_cells(visible):
        box(expected, image, cell, block)[:] = box(dense, image, cell, block)
    packed = grid.pack(dense)
    assert torch.equal(grid.unpack(packed, fill=-1.0), expected)
    assert torch.equal(grid.unpack(packed), expected.where(expected != -1, 0))
    assert torch.equal(grid.pack(grid.unpack(packed)), packed)


def test_unpack_fills_each_channel_and_passes_its_gradient() -> None:
    visible = torch.tensor([[[True, False, False]], [[False, True, False]]])
    grid = grid_of(visible)
    packed = torch.randn(2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    fill = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
    dense = grid.unpack(packed, fill)
    assert dense.shape == (2, 2, 1, 6)
    assert (dense[0, :, :, 2:] == fill[:, None, None]).all()
    upstream = torch.randn_like(dense)
    grad_packed, grad_fill = torch.autograd.grad(dense, [packed, fill], upstream)
    assert torch.equal(grad_packed, grid.pack(upstream))
    hidden = visible.logical_not().repeat_interleave(2, dim=2)[:, None]
    torch.testing.assert_close(grad_fill, (upstream * hidden).sum((0, 2, 3)))


def test_gradient_of_a_fill_in_half_precision_is_that_of_all_positions() -> None:
    """Added up one after the other in bf16 it would stop at 256."""
    grid = PatchGrid(random_visible(4, (4, 4), 0.5), 8)
    packed = torch.randn(32, 3, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    fill = torch.zeros(3, requires_grad=True)
    grid.unpack(packed, fill).backward(torch.ones(4, 3, 32, 32, dtype=torch.bfloat16))
    assert packed.grad is not None
    assert torch.equal(packed.grad, torch.ones_like(packed))
    assert fill.grad is not None
    assert torch.equal(fill.grad, torch.full((3,), 4 * 8 * 64.0))


def test_pack_and_unpack_are_adjoint() -> None:
    visible = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).argsort(2) < 2
    grid = grid_of(visible)
    dense = torch.randn(3, 2, 8, 15, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(grid.patches, 2, 2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(grid.pack(dense), [dense], upstream)
    assert torch.equal(gradient, grid.unpack(upstream))


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (8,), (8, 8, 8), (3, 4)])
def test_a_size_the_grid_does_not_divide_is_an_error(size: Sides) -> None:
    grid = grid_of(torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be cut into a grid of"):
        grid.pack(torch.zeros(1, 1, *size))


def test_mask_at_the_resolution_of_a_map() -> None:
    visible = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = mask_at(visible, (4, 9))
    assert mask.shape == (2, 4, 9)
    for y in range(4):
        for x in range(9):
            assert torch.equal(mask[:, y, x], visible[:, y // 2, x // 3])
    with pytest.raises(ValueError, match="cannot be cut into a grid of"):
        mask_at(visible, (4, 8))


@pytest.mark.parametrize("visible", [torch.ones(2, 4, 4), torch.ones(4, dtype=torch.bool)], ids=["float", "one axis"])
def test_what_is_not_a_mask_is_an_error(visible: Tensor) -> None:
    with pytest.raises(ValueError, match="visible must be a bool tensor"):
        PatchGrid(visible, 1)


# --- neighbors -----------------------------------------------------------------------------------------------------


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_neighbors_are_the_visible_cells_around(data: st.DataObject, dims: int) -> None:
    visible = data.draw(draw_visible(dims, largest=3))
    before, after = (tuple(data.draw(st.integers(0, 2)) for _ in range(dims)) for _ in range(2))
    grid = grid_of(visible)
    cells = visible_cells(visible)
    row = {cell: n for n, cell in enumerate(cells)}
    table = grid.neighbors(before, after)
    for n, (image, cell) in enumerate(cells):
        for place in itertools.product(*[range(b + 1 + a) for b, a in zip(before, after, strict=True)]):
            other = tuple(c - b + p for c, b, p in zip(cell, before, place, strict=True))
            assert table[(n, *place)] == row.get((image, other), grid.patches)


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_halo_sees_neighbors_or_fill(data: st.DataObject, dims: int) -> None:
    visible = data.draw(draw_visible(dims, largest=3))
    block, before, after = data.draw(halos(dims))
    grid = grid_of(visible)
    packed = grid.pack(numbered(grid, block))
    # The simple way: hidden positions and a wide margin hold the fill, and each patch cuts out its window.
    margin = 16
    dense = torch.nn.functional.pad(grid.unpack(packed, fill=-1.0), [margin] * (2 * dims), value=-1.0)
    windows = []
    for image, cell in visible_cells(visible):
        first = [margin + c * e - b for c, e, b in zip(cell, block, before, strict=True)]
        extent = [b + e + a for b, e, a in zip(before, block, after, strict=True)]
        windows.append(dense[(image, slice(None), *[slice(f, f + e) for f, e in zip(first, extent, strict=True)])])
    table = grid.halo(block, before, after)
    assert torch.equal(gather_halo(packed, table, fill=-1.0), torch.stack(windows))


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_readers_is_the_adjoint_of_halo(data: st.DataObject, dims: int) -> None:
    visible = data.draw(draw_visible(dims, largest=3, images=(1, 2)))
    block, before, after = data.draw(halos(dims))
    grid = grid_of(visible)
    halo, readers = grid.halo(block, before, after).flatten(), grid.readers(block, before, after)
    positions = grid.patches * math.prod(block)
    reads = {(int(position), place) for place, position in enumerate(halo.tolist()) if position < positions}
    read_by = [(y, place) for y, places in enumerate(readers.tolist()) for place in places if place < halo.numel()]
    assert sorted(reads) == sorted(read_by)
    assert int(readers.max()) <= halo.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scatter_sums_over_readers(dtype: torch.dtype) -> None:
    visible = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2
    grid, block, reach = grid_of(visible), (2, 3), (1, 2)
    table, readers = grid.halo(block, reach, reach), grid.readers(block, reach, reach)
    # Small whole numbers: sums are exact in every precision.
    windows = torch.arange(table.numel() * 2).remainder(5).view(grid.patches, 2, *table.shape[1:])
    x = torch.zeros(grid.patches, 2, *block, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(gather_halo(x, table), [x], windows.double())
    assert torch.equal(scatter_halo(windows.to(dtype), readers, block).double(), expected)


def test_tables_are_built_once() -> None:
    grid = grid_of(torch.ones(1, 2, 3, dtype=torch.bool))
    block, before, after = (2, 2), (1, 0), (0, 2)
    assert grid.halo(block, before, after) is grid.halo(block, before, after)
    assert grid.readers(block, before, after) is grid.readers(block, before, after)
    assert grid.halo(block, before, after) is not grid.halo(block, after, before)
    assert grid.gather_index(block) is grid.gather_index(block)
    assert grid.scatter_index(block) is grid.scatter_index(block)


def test_tables_take_little_memory() -> None:
    """Backward keeps them: 4 bytes an entry."""
    grid = grid_of(torch.ones(1, 2, 3, dtype=torch.bool))
    block, reach = (2, 2), (1, 1)
    tables = [grid.halo(block, reach, reach), grid.readers(block, reach, reach)]
    for table in [*tables, grid.gather_index(block), grid.scatter_index(block), grid.neighbors(reach, reach)]:
        assert table.dtype == torch.int32


class _Operations(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func._schema.name != "aten::_unsafe_view":
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def every_table(grid: PatchGrid, block: tuple[int, ...], reach: tuple[int, ...]) -> list[Tensor]:
    none = (0,) * len(block)
    made = [grid.gather_index(block), grid.scatter_index(block)]
    return made + [make(block, reach, after) for make in (grid.halo, grid.readers) for after in (reach, none)]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_mask_takes_few_operations(dims: int) -> None:
    """What extents alone decide is made once for a process: a launch-bound step makes tables of its mask alone."""
    block, reach = (4,) * dims, (1,) * dims
    masks = torch.rand(2, 3, 3**dims, generator=torch.Generator().manual_seed(dims)).argsort(2) < 2
    first, second = (grid_of(mask.view(3, *[3] * dims)) for mask in masks)
    every_table(first, block, reach)
    with _Operations() as counted:
        every_table(second, block, reach)
    assert len(counted.names) <= 26, counted.names  # three a table, a few for the neighbors and rows that they share


def test_a_graph_under_capture_neither_keeps_tables_nor_uses_kept_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept may be freed before the graph is replayed, and what is captured has no values yet."""
    visible = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2
    offsets._KEPT.clear()
    monkeypatch.setattr(offsets, "_is_capturing", lambda device: True)
    captured = every_table(grid_of(visible), (2, 3), (1, 2))
    assert not offsets._KEPT
    monkeypatch.undo()
    kept = every_table(grid_of(visible), (2, 3), (1, 2))
    for one in offsets._KEPT.values():
        for part in one if isinstance(one, tuple) else [one]:
            if isinstance(part, Tensor):
                part.fill_(-1)
    monkeypatch.setattr(offsets, "_is_capturing", lambda device: True)
    again = every_table(grid_of(visible), (2, 3), (1, 2))
    offsets._KEPT.clear()
    for tables in zip(captured, kept, again, strict=True):
        assert torch.equal(tables[0], tables[1])
        assert torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("made_in_inference_mode", [False, True])
def test_what_is_kept_for_a_process_changes_no_table(made_in_inference_mode: bool) -> None:
    visible = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2
    offsets._KEPT.clear()
    with torch.inference_mode(made_in_inference_mode):
        fresh = every_table(grid_of(visible.clone()), (2, 3), (1, 2))
    assert offsets._KEPT
    constants = [part for kept in offsets._KEPT.values() for part in (kept if isinstance(kept, tuple) else [kept])]
    assert not any(part.is_inference() for part in constants if isinstance(part, Tensor))
    for kept, table in zip(every_table(grid_of(visible), (2, 3), (1, 2)), fresh, strict=True):
        assert torch.equal(kept, table)
    x = torch.randn(2, 5, 6, 12, requires_grad=True)
    grid = grid_of(visible)
    gather_halo(grid.pack(x), grid.halo((2, 3), (1, 2), (1, 2))).sum().backward()


def test_fake_tensors_neither_use_nor_leave_what_is_kept() -> None:
    offsets._KEPT.clear()
    with FakeTensorMode():
        every_table(PatchGrid(torch.zeros(2, 3, 4, dtype=torch.bool), 2), (2, 3), (1, 2))
    assert not offsets._KEPT
    every_table(grid_of(torch.ones(2, 3, 4, dtype=torch.bool)), (2, 3), (1, 2))
    with FakeTensorMode():
        every_table(PatchGrid(torch.zeros(2, 3, 4, dtype=torch.bool), 2), (2, 3), (1, 2))


# --- images and their patches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_by_image_and_repeat(axis: int) -> None:
    visible = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 3
    grid = grid_of(visible)
    shape = [2, 5]
    shape.insert(axis, grid.patches)
    packed = torch.randn(shape)
    split = grid.by_image(packed, axis)
    for n, (image, _) in enumerate(visible_cells(visible)):
        assert torch.equal(split.select(axis, image).select(axis, n % grid.visible_per_image), packed.select(axis, n))
    values = torch.randn([3 if a == axis else s for a, s in enumerate(shape)])
    repeated = grid.repeat(values, axis)
    for n, (image, _) in enumerate(visible_cells(visible)):
        assert torch.equal(repeated.select(axis, n), values.select(axis, image))
