"""Under autocast products are in half precision; norms take their statistics, and the loss its sum, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

import sparkmim
from sparkmim import SparK
from sparkmim.models.densify import Densify
from sparkmim.objectives.base import hidden_patch_loss
from sparkmim.objectives.pixels import denormalize_patches, normalize_patches
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, run

HALVES = [torch.bfloat16, torch.float16]
EPS = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""By which half precision rounds a number at most, relatively."""


def grid() -> PatchGrid:
    visible = sparkmim.random_visible(4, (4, 4), 0.6, torch.Generator().manual_seed(0))
    return PatchGrid(visible, int(visible[0].sum()))


def far_from_zero(dtype: torch.dtype) -> Tensor:
    """Values whose mean is 30 times their deviation: sums of squares in half precision would be worthless."""
    x = torch.randn(4, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    return (x + 30 * torch.linspace(-1, 1, 16).view(1, -1, 1, 1).sign()).to(dtype)


NORMS: dict[str, Any] = {
    "batch": lambda: nn.BatchNorm2d(16),
    "group": lambda: nn.GroupNorm(4, 16),
    "one group": lambda: nn.GroupNorm(1, 16),
    "instance": lambda: nn.InstanceNorm2d(16, affine=True),
    "layer": lambda: timm.layers.LayerNorm2d(16),
    "batch and activation": lambda: timm.layers.BatchNormAct2d(16),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_the_encoder(name: str, execution: Any, dtype: torch.dtype) -> None:
    norm, x = NORMS[name]().train(), far_from_zero(dtype)
    with torch.autocast("cpu", dtype=dtype):
        (seen,) = run(execution(grid()), norm, x)
    running = [buffer.clone() for buffer in norm.buffers()]
    exact = NORMS[name]().train().double()
    (wanted,) = run(execution(grid()), exact, x.double())
    assert (seen.double() - wanted).abs().max() <= 2 * EPS[dtype] * wanted.abs().max() + 1e-5
    for mine, other in zip(running, exact.buffers(), strict=True):
        if mine.is_floating_point():
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, other.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_global_response_norm(dtype: torch.dtype) -> None:
    norm = GlobalResponseNorm(16, channels_last=False)
    nn.init.ones_(norm.weight)
    x = far_from_zero(dtype)
    with torch.autocast("cpu", dtype=dtype):
        (seen,) = run(SparseExecution(grid()), norm, x)
    (wanted,) = run(SparseExecution(grid()), norm.double(), x.double())
    assert (seen.double() - wanted).abs().max() <= 6 * EPS[dtype] * wanted.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_norm_of_densify(kind: str, dtype: torch.dtype) -> None:
    patches = grid()
    densify = Densify(16, 16, kind, 1)  # no projection: its norm is all that it computes
    x = patches.pack(far_from_zero(dtype))
    with torch.autocast("cpu", dtype=dtype):
        seen = densify(x, patches)
    wanted = densify.double()(x.double(), patches)
    assert (seen.double() - wanted).abs().max() <= 2 * EPS[dtype] * wanted.abs().max() + 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_targets_and_loss(dtype: torch.dtype) -> None:
    images = 30 + torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    half = images.to(dtype)
    target = normalize_patches(half, (32, 32))
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, normalize_patches(half.double(), (32, 32)).float(), rtol=1e-4, atol=1e-4)
    assert denormalize_patches(target, half, (32, 32)).dtype == torch.float32
    visible = torch.tensor([[[True, False], [False, True]]]).expand(2, 2, 2)
    prediction = target + 0.01
    loss = hidden_patch_loss(prediction.to(dtype), target, visible, 4)
    assert loss.dtype == torch.float32
    wanted = hidden_patch_loss(prediction.to(dtype).double(), target.double(), visible, 4)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_convnext2", "test_convnext3"])
def test_a_whole_step(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = SparK(name, decoder_width=32).train()
    norms: list[tuple[nn.Module, Tensor, Tensor]] = []
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        norms.append((module, args[0].detach(), output.detach().clone()))  # ReLU6 writes into it

    for module in [*model.densify.modules(), *model.decoder.modules()]:
        if isinstance(module, kinds):
            module.register_forward_hook(note)
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=dtype):
        out = model(images, generator=torch.Generator().manual_seed(0))
    assert out.loss.dtype == torch.float32
    assert norms
    for module, x, seen in norms:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            wanted = nn.functional.batch_norm(
                x.double(), None, None, module.weight.double(), module.bias.double(), True, eps=module.eps
            )
        else:
            assert isinstance(module, nn.LayerNorm)
            wanted = nn.functional.layer_norm(
                x.double(), module.normalized_shape, module.weight.double(), module.bias.double(), module.eps
            )
        assert (seen.double() - wanted).abs().max() <= 2 * EPS[dtype] * wanted.abs().max() + 1e-5
    for name_, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name_
