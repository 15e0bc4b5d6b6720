"""The Triton kernels against the plain path, in Triton's interpreter, which needs no GPU.

Collected by no one: test_triton.py runs this file in a process of its own, since Triton decides whether to interpret
kernels when it is imported.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine_helpers import assert_never_waits
from sparkmim.sparse import PatchGrid, SparseExecution, require_compilable, run
from sparkmim.sparse.packed import gather, kernel_choice
from sparkmim.sparse.packed import triton_kernels as kernels
from sparkmim.sparse.packed.depthwise import compare_with_whole_map
from sparkmim.sparse.packed.kernel_choice import INTERPRETED

CHANNELS = 5


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels launched, in order."""
    assert INTERPRETED
    names: list[str] = []

    def watch(launch: Callable[..., Any]) -> None:
        def watched(*args: Any) -> Any:
            names.append(launch.__name__)
            return launch(*args)

        monkeypatch.setattr(kernels, launch.__name__, watched)

    watch(kernels.convolve)
    watch(kernels.gather)
    watch(kernels.sum_weight_gradient)
    return names


def some_patches(grid: tuple[int, int], count: int, images: int = 2) -> PatchGrid:
    """Images, each with patches of its own."""
    noise = torch.rand(images, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    return PatchGrid((noise.argsort(1).argsort(1) < count).view(images, *grid), count)


def of_depthwise(launched: list[str]) -> list[str]:
    return [name for name in launched if name != "gather"]


def passed(network: nn.Module, images: Tensor, grid: PatchGrid, triton: bool | None) -> list[Tensor]:
    """The map, and the gradients of the images and of each parameter."""
    images = images.clone().requires_grad_()
    (out,) = run(SparseExecution(grid, triton=triton), network, images)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [images, *network.parameters()], upstream)]


def agrees(
    network: nn.Module, grid: PatchGrid, block: tuple[int, int], channels: int = CHANNELS,
    dtype: torch.dtype = torch.float64, tolerance: float = 1e-11,
) -> None:  # fmt: skip
    """The kernels' numbers are those of the plain path in float64, as a share of the largest."""
    torch.manual_seed(1)
    size = [g * b for g, b in zip(grid.shape, block, strict=True)]
    images = torch.randn(grid.batch, channels, *size, dtype=dtype)
    ours = passed(network.to(dtype), images, grid, triton=True)
    theirs = passed(network.double(), images.double(), grid, triton=False)
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def depthwise(kernel: Any, channels: int = CHANNELS, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=options.pop("padding", "same"), groups=channels, **options)


# --- the same numbers -----------------------------------------------------------------------------------------------

GRIDS = {
    (1, 1): some_patches((3, 5), 6),
    (2, 3): some_patches((3, 2), 3),
    (4, 1): some_patches((2, 4), 4),
    (8, 8): some_patches((2, 2), 3, images=1),
}


@pytest.mark.parametrize("block", GRIDS, ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_any_window(kernel: int, dilation: int, block: tuple[int, int], launched: list[str]) -> None:
    agrees(depthwise(kernel, dilation=dilation), GRIDS[block], block)
    assert launched == ["convolve", "convolve", "sum_weight_gradient"]


WINDOWS = {
    "uneven": lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 3, 1)), depthwise((5, 3), padding=0)),
    "uneven, partly its own": lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), depthwise(5, padding=1)),
    "even, dilated": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 2, 4)), depthwise((4, 2), padding=0, dilation=(2, 3))),
    "shifted": lambda: nn.Sequential(nn.ZeroPad2d((-1, 3, 3, -1)), depthwise(3, padding=0)),
    "per axis": lambda: depthwise((1, 7), padding=(0, 3)),
    "dilated per axis": lambda: depthwise((5, 3), padding=(2, 3), dilation=(1, 3)),
    "without bias": lambda: depthwise(3, bias=False),
    "two layers": lambda: nn.Sequential(depthwise(3), nn.GELU(), nn.Conv2d(CHANNELS, CHANNELS, 1), depthwise(5)),
}


@pytest.mark.parametrize("make", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows(make: Callable[[], nn.Module], launched: list[str]) -> None:
    agrees(make(), GRIDS[2, 3], (2, 3))
    assert "sum_weight_gradient" in launched


@pytest.mark.parametrize("channels", [1, 32, 45, 128])
def test_any_number_of_channels(channels: int, launched: list[str]) -> None:
    if channels == 1:  # an ordinary convolution as much as a depthwise one
        agrees(nn.Conv2d(1, 1, 3, padding=1), GRIDS[2, 3], (2, 3), 1)
    else:
        agrees(depthwise(3, channels), GRIDS[2, 3], (2, 3), channels)
    assert launched


def test_every_patch_and_only_one(launched: list[str]) -> None:
    agrees(depthwise(3), some_patches((2, 3), 6), (2, 2))
    agrees(depthwise(3), PatchGrid(torch.ones(2, 1, 1, dtype=torch.bool), 1), (2, 2))
    assert len(launched) == 6


@pytest.mark.parametrize("steps", [1, 5])
def test_weight_gradient_in_parts(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one block of positions each, and of several, the last of them beyond the last position."""
    monkeypatch.setattr(kernels, "MOST_STEPS", steps)
    agrees(depthwise(3), GRIDS[8, 8], (8, 8))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)], ids=str
)
def test_precisions(dtype: torch.dtype, tolerance: float, launched: list[str]) -> None:
    layer = depthwise(7).to(dtype)  # rounded before both
    agrees(layer, GRIDS[2, 3], (2, 3), dtype=dtype, tolerance=tolerance)
    assert launched


def test_sums_of_many_halves_are_exact() -> None:
    """Accumulated in bfloat16, counting would end at 256; and hidden places add nothing."""
    grid = PatchGrid(torch.ones(2, 1, 1, dtype=torch.bool), 1)
    layer = depthwise(3, 2).bfloat16()
    ones = torch.ones(2, 2, 16, 16, dtype=torch.bfloat16)
    (out,) = run(SparseExecution(grid, triton=True), layer, ones)
    (gradient,) = torch.autograd.grad(out, [layer.weight], torch.ones_like(out))
    pairs = torch.tensor([15.0, 16.0, 15.0])
    assert torch.equal(gradient[0, 0].float(), (2 * pairs * pairs[:, None]).bfloat16().float())


def test_autocast(launched: list[str]) -> None:
    layer, images = depthwise(3), torch.randn(2, CHANNELS, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, *gradients = passed(layer, images, GRIDS[2, 3], triton=True)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in gradients)
    assert len(launched) == 3


def test_the_same_from_run_to_run() -> None:
    layer, images = depthwise(5), torch.randn(2, CHANNELS, 6, 6)
    first, second = (passed(layer, images, GRIDS[2, 3], triton=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hidden_pixels_are_not_read() -> None:
    grid = GRIDS[2, 3]
    images = grid.unpack(torch.randn(6, CHANNELS, 2, 3), fill=torch.nan)
    assert images.isnan().any()
    assert not any(t.isnan().any() for t in passed(depthwise(5), images, grid, triton=True))


# --- gathers --------------------------------------------------------------------------------------------------------

GATHERING: dict[str, Callable[[], nn.Module]] = {
    "3 x 3": lambda: nn.Conv2d(CHANNELS, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(CHANNELS, 10, 3, padding=1, groups=CHANNELS),
    "stride 2": lambda: nn.Conv2d(CHANNELS, 6, 3, stride=2, padding=1),
    "padded with ones": lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(CHANNELS, 6, 3)),
    "depthwise of stride 2": lambda: depthwise(7, stride=2, padding=3),
    "max pooling": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 6, 1), nn.MaxPool2d(3, 2, 1)),
    "average pooling": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 6, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, 6, 4, 2, 1),
}


@pytest.mark.parametrize("block", [(2, 2), (8, 8)], ids=str)
@pytest.mark.parametrize("make", GATHERING.values(), ids=GATHERING.keys())
def test_gathers(make: Callable[[], nn.Module], block: tuple[int, int], launched: list[str]) -> None:
    agrees(make(), some_patches((2, 2), 3, images=1), block)
    assert "gather" in launched


@pytest.mark.parametrize("make", GATHERING.values(), ids=GATHERING.keys())
def test_gathers_in_bfloat16(make: Callable[[], nn.Module]) -> None:
    """Within twice the rounding of the plain path."""
    torch.manual_seed(1)
    grid, network, images = GRIDS[8, 8], make().bfloat16(), torch.randn(1, CHANNELS, 16, 16).bfloat16()
    ours, theirs = (passed(network, images, grid, triton=triton) for triton in (True, False))
    exact = passed(network.double(), images.double(), grid, triton=False)
    for mine, plain, expected in zip(ours, theirs, exact, strict=True):
        rounding = (plain - expected).abs().max()
        assert (mine - expected).abs().max() <= 2 * rounding + 1e-3 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 32, 45, 128])
@pytest.mark.parametrize("fill", [0.0, 1.5, -torch.inf])
def test_a_gather_is_exact(channels: int, dtype: torch.dtype, fill: float, launched: list[str]) -> None:
    rows, table = torch.randn(37, channels).to(dtype), torch.randint(38, (9, 13), dtype=torch.int32)
    assert torch.equal(gather.gather_rows(rows, table, fill, True), gather.gather_rows(rows, table, fill, False))
    assert launched == ["gather"]


@pytest.mark.parametrize("readers", [1, 2, 9])
def test_a_sum_of_rows(readers: int) -> None:
    rows, table = torch.randn(37, 45, dtype=torch.float64), torch.randint(38, (150, readers), dtype=torch.int32)
    torch.testing.assert_close(gather.sum_rows(rows, table, True), gather.sum_rows(rows, table, False))


def test_a_table_with_gaps_in_memory_is_read_as_it_is() -> None:
    rows, table = torch.randn(20, 8), torch.arange(24, dtype=torch.int32).remainder(21)
    for gaps in (table[:12:2], table.view(6, 4)[::2, ::2], table[:20].view(5, 4).unfold(1, 1, 2)):
        assert torch.equal(gather.gather_rows(rows, gaps, 0.0, True), gather.gather_rows(rows, gaps, 0.0, False))


# --- the choice -----------------------------------------------------------------------------------------------------

CHECKS = [compare_with_whole_map, gather.compare_with_plain]


@pytest.mark.parametrize("check", CHECKS)
def test_right_kernels_are_found_right(check: Callable[[torch.device], str | None], launched: list[str]) -> None:
    assert check(torch.device("cpu")) is None
    assert launched


def fails(name: str, original: Any, *args: Any) -> Any:
    raise RuntimeError("ptxas fatal")


def differs(name: str, original: Any, *args: Any) -> Any:
    made = original(*args)
    written = {"convolve": 4, "gather": 2}.get(name)
    (made if written is None else args[written]).view(-1)[5] += 0.5
    return made


@pytest.mark.parametrize(("how", "why"), [(fails, "they fail .RuntimeError: ptxas fatal"), (differs, "differs")])
@pytest.mark.parametrize("name", ["convolve", "sum_weight_gradient", "gather"])
def test_wrong_kernels_are_warned_of_and_not_used(
    name: str, how: Callable[..., Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "_VERDICTS", {})
    check, x = CHECKS[name == "gather"], torch.randn(3)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, name, partial(how, name, getattr(kernels, name)))
        with pytest.warns(RuntimeWarning, match=why):
            assert not kernel_choice.are_verified("test", x, check)
    assert not kernel_choice.are_verified("test", x, check)  # without a second warning


def test_kernels_that_were_not_compared_are_not_used_by_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "_VERDICTS", {})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not kernel_choice.are_verified("test", torch.randn(3), CHECKS[1])
    monkeypatch.undo()
    with FakeTensorMode():
        assert not kernel_choice.are_verified("test of fake tensors", torch.randn(3), CHECKS[1])


# --- which convolutions ---------------------------------------------------------------------------------------------

OTHERS = {
    "stride 2": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
    "one group": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "two channels a group": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "twice the channels": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "padded with ones": lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), depthwise(3, 4, padding=0)),
    "padded with what is there": lambda: nn.Sequential(nn.ReplicationPad2d(1), depthwise(3, 4, padding=0)),
    "no halo": lambda: depthwise(1, 4),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_others_take_the_plain_path(make: Callable[[], nn.Module], launched: list[str]) -> None:
    agrees(make(), GRIDS[2, 3], (2, 4), 4)
    assert not of_depthwise(launched)


def test_none_on_a_cpu_by_default(launched: list[str]) -> None:
    for triton in (False, None):
        passed(depthwise(3), torch.randn(2, CHANNELS, 6, 6), GRIDS[2, 3], triton=triton)
    assert SparseExecution(GRIDS[2, 3]).triton is None
    assert not launched


def test_signals_and_volumes_take_the_plain_path(launched: list[str]) -> None:
    for layer, dims in ((nn.Conv1d, 1), (nn.Conv3d, 3)):
        grid = PatchGrid(torch.ones(1, *[2] * dims, dtype=torch.bool), 2**dims)
        run(SparseExecution(grid, triton=True), layer(4, 4, 3, padding=1, groups=4), torch.randn(1, 4, *[4] * dims))
    assert not of_depthwise(launched)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_each_gradient_alone(wanted: str, launched: list[str]) -> None:
    layer = depthwise(3).double().requires_grad_(False)
    leaf = torch.randn(2, CHANNELS, 6, 6, dtype=torch.float64)
    images = leaf
    leaf = leaf if wanted == "input" else layer.get_parameter(wanted)
    leaf.requires_grad_()
    gradients = []
    for triton in (True, False):
        (out,) = run(SparseExecution(GRIDS[2, 3], triton=triton), layer, images)
        gradients.append(torch.autograd.grad(out, leaf, torch.ones_like(out).cumsum(1).cumsum(2))[0])
    torch.testing.assert_close(*gradients)
    assert launched[1:] == {"input": ["convolve"], "weight": ["sum_weight_gradient"], "bias": []}[wanted]


# --- under torch's other machinery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_are_what_they_declare(channels_last: bool) -> None:
    """Schema, fake tensors and AOT dispatch; uneven reach, so that the adjoint is another table."""
    grid, block, reach = GRIDS[2, 3], (2, 3), ((1, 0), (1, 2))
    x = torch.randn(6, CHANNELS, *block, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    table, adjoint = grid.halo(block, *reach), grid.halo(block, *reversed(reach))
    weight = torch.randn(CHANNELS, 1, 3, 3, dtype=torch.float64)
    bias = torch.randn(CHANNELS, dtype=torch.float64)
    operators = torch.ops.sparkmim
    given: list[tuple[Any, Any]]
    given = [(operators.depthwise, (x, table, adjoint, weight, b, (1, 1))) for b in (bias, None)]
    given += [(operators.depthwise_weight_gradient, (x, x, table, (3, 3), (1, 1)))]
    rows = x.permute(0, 2, 3, 1).reshape(-1, CHANNELS)
    given += [(operators.gather, (rows, table, -1.0)), (operators.gather_sum, (rows, grid.readers(block, *reach)))]
    for operator, arguments in given:
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_equals_eager(launched: list[str]) -> None:
    """One graph, for masks of any values, that of a network with what surrounds a depthwise convolution in ConvNeXt."""
    network = nn.Sequential(nn.Conv2d(3, 8, 2, 2), depthwise(7, 8), nn.Conv2d(8, 8, 1), nn.GELU(), depthwise(3, 8))
    network.double()

    def step(images: Tensor, visible: Tensor) -> Tensor:
        (out,) = run(SparseExecution(PatchGrid(visible, 3), triton=True), network, images)
        return out

    require_compilable(GRIDS[2, 3], network, torch.randn(2, 3, 12, 12, dtype=torch.float64))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for count, grid in enumerate((GRIDS[2, 3], some_patches((3, 2), 3), PatchGrid(GRIDS[2, 3].visible.flip(2), 3))):
        images = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
        launched.clear()
        outs = compiled(images, grid.visible), step(images, grid.visible)
        leaves = [images, *network.parameters()]
        ours, theirs = (torch.autograd.grad(out.square().sum(), leaves) for out in outs)
        assert launched.count("convolve") == 2 * launched.count("sum_weight_gradient") == 8, count
        torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_backward_keeps_patches_and_not_halos() -> None:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    layers = [depthwise(3) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (out,) = run(SparseExecution(GRIDS[2, 3], triton=True), nn.Sequential(*layers), torch.randn(2, CHANNELS, 6, 6))
    assert sum(kept.values()) == 3 * out.nbytes + sum(layer.weight.nbytes for layer in layers)


def test_no_waiting_for_the_device() -> None:
    def execution(grid: PatchGrid) -> SparseExecution:
        return SparseExecution(grid, triton=True)

    assert_never_waits(lambda: nn.Sequential(depthwise(3, 16), depthwise(7, 16)), (2, 4, 4), 6, 16, (4, 4), execution)


def test_functional_call_with_a_weight_of_any_strides() -> None:
    weight = torch.randn(3, 5, 1, CHANNELS).permute(3, 2, 0, 1)
    images = torch.randn(2, CHANNELS, 6, 6)
    outs = [
        run(
            SparseExecution(GRIDS[2, 3], triton=triton),
            nn.Identity(),
            images,
            lambda x: [F.conv2d(x, weight, None, 1, (1, 2), 1, CHANNELS)],
        )
        for triton in (True, False)
    ]
    torch.testing.assert_close(outs[0], outs[1])
