"""Depthwise convolution by Triton kernels: switched on and off; right in Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparkmim import SparK
from sparkmim.sparse import PatchGrid, SparseExecution, require_compilable, run
from sparkmim.sparse.packed import depthwise, gather, kernel_choice

VISIBLE = torch.tensor([[[True, True, False], [True, False, False]], [[False, True, True], [False, False, True]]])


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """All of interpreted.py, in a process that interprets kernels."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_without_triton_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "AVAILABLE", False)
    grid = PatchGrid(VISIBLE, 3)
    SparseExecution(grid)
    for use in (lambda: SparseExecution(grid, triton=True), lambda: SparK("test_convnext", triton=True)):
        with pytest.raises(ModuleNotFoundError, match="pip install triton"):
            use()


@pytest.mark.skipif(not kernel_choice.AVAILABLE, reason="needs Triton")
def test_on_a_cpu_it_changes_nothing() -> None:
    model, images = SparK("test_convnext", decoder_width=64, triton=True), torch.randn(2, 3, 64, 96)
    out = model(images, VISIBLE)
    model.triton = False
    assert torch.equal(model(images, VISIBLE).prediction, out.prediction)


def test_kernels_are_compared_before_a_network_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """While compiling it is too late, and kernels that were not compared are not used."""
    compared: list[str] = []
    for module in (gather, depthwise):
        monkeypatch.setattr(module, "takes_kernels", lambda triton, name, x, check: bool(compared.append(name)))  # type: ignore[func-returns-value]
    require_compilable(PatchGrid(VISIBLE, 3), nn.Conv2d(3, 4, 1), torch.randn(2, 3, 4, 6))
    assert compared == ["gather", "depthwise convolution"]


# --- on a GPU -------------------------------------------------------------------------------------------------------

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def passed(layer: nn.Module, images: Tensor, grid: PatchGrid, triton: bool | None) -> list[Tensor]:
    images = images.clone().requires_grad_()
    (out,) = run(SparseExecution(grid, triton=triton), layer, images)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out.detach(), *torch.autograd.grad(out, [images, *layer.parameters()], upstream)]


@pytest.mark.parametrize("kernel", [pytest.param(k, marks=on_gpu) for k in (3, 5, 7)])
@pytest.mark.parametrize("block", [(1, 1), (2, 3), (8, 8)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)],
    ids=str,
)
def test_gpu_equals_the_plain_path(
    kernel: int, block: tuple[int, int], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparkmim.sparse.packed import triton_kernels as kernels

    launches: list[int] = []
    convolve = kernels.convolve
    monkeypatch.setattr(kernels, "convolve", lambda *args: launches.append(1) or convolve(*args))  # type: ignore[func-returns-value]
    grid = PatchGrid(VISIBLE.cuda(), 3)
    for channels in (40, 96, 128):
        layer = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels).to("cuda", dtype)
        images = torch.randn(2, channels, 2 * block[0], 3 * block[1], device="cuda", dtype=dtype)
        ours = passed(layer, images, grid, triton=True)
        again = passed(layer, images, grid, triton=True)
        theirs = passed(layer.double(), images.double(), grid, triton=False)
        for actual, repeated, expected in zip(ours, again, theirs, strict=True):
            assert torch.equal(actual, repeated)
            assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(launches) == 12


@pytest.mark.parametrize("dtype", [pytest.param(d, marks=on_gpu) for d in (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.filterwarnings("error::RuntimeWarning")  # of kernels that are not right
def test_gpu_takes_kernels_that_are_found_right(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default: gathers in every precision, depthwise convolution in 16 bits alone."""
    from sparkmim.sparse.packed import triton_kernels as kernels

    grid, images = PatchGrid(VISIBLE.cuda(), 3), torch.randn(2, 32, 16, 24, device="cuda", dtype=dtype)
    layers = nn.Sequential(nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.Conv2d(32, 32, 3, padding=1)).to(
        "cuda", dtype
    )
    for layer in layers:
        run(SparseExecution(grid), layer, images)  # compares first
    launched: list[str] = []
    for name in ("convolve", "gather"):
        launch = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, n=name, f=launch: launched.append(n) or f(*args))  # type: ignore[func-returns-value]
    passed(layers[1], images, grid, triton=None)
    assert launched == ["gather"] * 3
    launched.clear()
    passed(layers[0], images, grid, triton=None)
    assert ("convolve" in launched) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("name", [pytest.param("convnext_atto", marks=on_gpu)])
def test_gpu_compiled_in_bfloat16(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SparK(name, decoder_width=64, mask_ratio=0.5, triton=True).cuda()
    images = torch.randn(2, 3, 64, 96, device="cuda")
    model.triton = False
    with torch.no_grad():
        expected = model(images, VISIBLE.cuda()).loss
    model.triton = True
    model.compile(fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        out = model(images, VISIBLE.cuda())
    out.loss.backward()
    assert out.loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch._dynamo.reset()
