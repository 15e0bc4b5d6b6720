"""The transposed convolution and the one after it as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import differentiate
from sparkmim.models import fused_upsample as module
from sparkmim.models.decoder import UNetBlock
from sparkmim.models.fused_upsample import can_fuse, fused_upsample_conv, upsample_conv


def layers(
    channels: int = 5, between: int = 6, out: int = 7, bias: bool = True
) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    torch.manual_seed(0)
    upsample = nn.ConvTranspose2d(channels, between, 4, stride=2, padding=1, bias=bias)
    return upsample.double(), nn.Conv2d(between, out, 3, padding=1, bias=False).double()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 1), (4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_one_after_the_other(size: tuple[int, int], bias: bool) -> None:
    upsample, conv = layers(bias=bias)
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *upsample.parameters(), *conv.parameters()]
    wanted = differentiate(conv(upsample(x)), inputs)
    ours = differentiate(fused_upsample_conv(x, upsample.weight, upsample.bias, conv.weight), inputs)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2)])
def test_gradients_by_finite_differences(size: tuple[int, int]) -> None:
    upsample, conv = layers(2, 2, 2)
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert upsample.bias is not None
    assert torch.autograd.gradcheck(fused_upsample_conv, (x, upsample.weight, upsample.bias, conv.weight))


def test_a_second_derivative_is_refused() -> None:
    upsample, conv = layers()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    out = fused_upsample_conv(x, upsample.weight, upsample.bias, conv.weight)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("frozen", range(4))
def test_layouts_and_frozen_inputs(layout: torch.memory_format, frozen: int) -> None:
    upsample, conv = layers()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert upsample.bias is not None
    inputs = [x, upsample.weight, upsample.bias, conv.weight]
    wanted_inputs = [tensor for i, tensor in enumerate(inputs) if i != frozen]
    weights = torch.randn(2, 7, 8, 6, dtype=torch.float64).to(memory_format=layout)
    inputs[frozen].requires_grad_(False)
    wanted = torch.autograd.grad((weights * conv(upsample(x))).sum(), wanted_inputs)
    ours = torch.autograd.grad((weights * fused_upsample_conv(*inputs)).sum(), wanted_inputs)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threshold", [0, 10**9])
def test_both_ways_of_a_block(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = UNetBlock(8, 4, (2, 2)).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    wanted = block.norm2(block.conv2(F.relu6(block.norm1(block.conv1(block.upsample(x))))))
    monkeypatch.setattr(module, "MIN_POSITIONS_PER_CHANNEL", threshold)
    for a, b in zip(differentiate(block(x), inputs), differentiate(wanted, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_small_batches_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    upsample, conv = layers()
    calls = []
    monkeypatch.setattr(module, "fused_upsample_conv", lambda *arguments: calls.append(arguments))
    upsample_conv(torch.randn(1, 5, 2, 2, dtype=torch.float64), upsample, conv)
    assert not calls
    upsample_conv(torch.randn(40, 5, 2, 2, dtype=torch.float64), upsample, conv)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("upsample", "conv"),
    [
        (nn.ConvTranspose2d(4, 4, (4, 3), stride=(2, 1), padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        (nn.ConvTranspose2d(4, 4, 5, stride=3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)),
        (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=2)),
        (nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1), nn.Conv3d(4, 4, 3, padding=1, bias=False)),
    ],
)
def test_other_forms_run_one_after_the_other(upsample: nn.Module, conv: nn.Module) -> None:
    assert not can_fuse(upsample, conv)
    x = torch.randn(2, 4, 12, 12, 12) if isinstance(conv, nn.Conv3d) else torch.randn(2, 4, 12, 12)
    torch.testing.assert_close(upsample_conv(x, upsample, conv), conv(upsample(x)))


def test_autocast() -> None:
    upsample, conv = (layer.float() for layer in layers(16, 16, 16))
    x = torch.randn(8, 16, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = upsample_conv(x, upsample, conv)
    wanted = conv(upsample(x))
    assert out.dtype == torch.bfloat16
    assert (out - wanted).norm() < 0.01 * wanted.norm()
    inputs = [x.requires_grad_(), *upsample.parameters(), *conv.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        out = upsample_conv(x, upsample, conv)
    for ours, exact in zip(differentiate(out.float(), inputs), differentiate(conv(upsample(x)), inputs), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("of_map", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("of_upsample", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("of_conv", [torch.float32, torch.float64])
def test_dtypes_are_those_of_one_after_the_other(
    of_map: torch.dtype, of_upsample: torch.dtype, of_conv: torch.dtype, autocast: bool
) -> None:
    """Of result and gradients; and what the two layers refuse is refused."""
    upsample, conv = layers()
    upsample, conv = upsample.to(of_upsample), conv.to(of_conv)
    x = torch.randn(2, 5, 3, 3).to(of_map).requires_grad_()
    inputs = [x, upsample.weight, upsample.bias, conv.weight]

    def dtypes(fused: bool) -> list[torch.dtype] | type[Exception]:
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = fused_upsample_conv(*inputs) if fused else conv(upsample(x))  # type: ignore[arg-type]
        except RuntimeError:
            return RuntimeError
        return [out.dtype, *(grad.dtype for grad in differentiate(out, inputs))]  # type: ignore[arg-type]

    assert dtypes(fused=True) == dtypes(fused=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(6, 6), (1, 9)])
def test_compiles_into_one_graph(size: tuple[int, int]) -> None:
    upsample, conv = layers(4, 4, 4)
    x = torch.randn(16, 4, *size, dtype=torch.float64, requires_grad=True)
    inputs = [x, *upsample.parameters(), *conv.parameters()]
    compiled = torch.compile(upsample_conv, fullgraph=True, backend="aot_eager")
    ours, wanted = (differentiate(f(x, upsample, conv), inputs) for f in (compiled, upsample_conv))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
