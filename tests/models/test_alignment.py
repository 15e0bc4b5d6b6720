"""Networks whose convolutions and poolings lack padding get it while a backbone runs, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sparkmim
from helpers import conv_norm_relu
from sparkmim.models.alignment import Alignment, is_aligned


class Unpadded(nn.Module):
    """A stem without padding, and a reduction that pools by a function, like those of the Inception networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3))
        self.pool = nn.MaxPool2d(3, 2)
        self.body = nn.Sequential(nn.Conv2d(8, 8, (1, 7), padding=(0, 3)), nn.BatchNorm2d(8), nn.ReLU())
        self.reduce = Reduction()
        self.mean = nn.AvgPool2d(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean(self.reduce(self.body(self.pool(self.stem(x)))))


class Reduction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.conv(x), F.max_pool2d(x, 3, 2), F.avg_pool2d(x, kernel_size=3, stride=2)], 1)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
def test_maps_are_proportional(kernel: int, stride: int, dilation: int, ceil_mode: bool) -> None:
    extent = (kernel - 1) * dilation + 1
    if extent < stride or (extent % 2 == 0 and stride == 1) or (ceil_mode and stride == 1 < kernel):
        pytest.skip("the same padding on both sides cannot align it")
    x, weight = torch.randn(1, 1, 24 * stride, 24 * stride), torch.randn(1, 1, kernel, kernel)
    for padding in {0, 1, kernel // 2}:
        with Alignment():
            assert F.conv2d(x, weight, None, stride, kernel, dilation).shape[2:] == (24, 24)
            assert F.conv2d(x, weight, None, stride, padding, dilation).shape[2:] == (24, 24)
            if padding <= kernel // 2 and dilation == 1:
                assert F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode).shape[2:] == (24, 24)
                assert F.avg_pool2d(x, kernel, stride, padding, ceil_mode).shape[2:] == (24, 24)


def test_aligned_calls_are_left_alone() -> None:
    x = torch.randn(2, 4, 16, 16)
    weight = torch.randn(4, 4, 3, 3)
    with Alignment():
        inside = [F.conv2d(x, weight, padding=1), F.max_pool2d(x, 3, 2, ceil_mode=True), F.avg_pool2d(x, 2)]
        padded = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight[:, :, :2, :2])
    outside = [F.conv2d(x, weight, padding=1), F.max_pool2d(x, 3, 2, ceil_mode=True), F.avg_pool2d(x, 2)]
    assert all(a.equal(b) for a, b in zip(inside, outside, strict=True))
    assert padded.shape == x.shape


def test_average_leaves_the_added_padding_out() -> None:
    ones = torch.ones(1, 1, 8, 8)
    with Alignment():
        assert F.avg_pool2d(ones, 3, 2).equal(torch.ones(1, 1, 4, 4))
        assert F.avg_pool2d(ones, 3, 1, 1).amin() < 1  # it had padding, and counts it as it says


def test_backbone_aligns_what_is_not() -> None:
    torch.manual_seed(0)
    network = Unpadded().eval()
    before = copy.deepcopy(network.state_dict())
    backbone = sparkmim.Backbone(network)
    assert backbone.aligned == ["stem.0", "stem.3", "pool", "reduce.conv", "reduce"]
    assert backbone.strides == [(2, 2), (4, 4), (8, 8), (16, 16)]
    assert [tuple(m.shape[2:]) for m in backbone(torch.randn(1, 3, 48, 64))] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    report = backbone.check()
    assert report.passed, f"\n{report}"
    assert network(torch.randn(1, 3, 48, 64)).shape[2:] == (2, 3)  # the network itself is as it was
    assert list(network.state_dict()) == list(before)
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_padded_networks_are_not_aligned() -> None:
    assert sparkmim.Backbone(nn.Sequential(nn.Conv2d(3, 4, 4, 4)), ["0"]).aligned == []
    assert sparkmim.Backbone.create("resnet18").aligned == []


def test_inside_the_image_only_the_phase_differs() -> None:
    """Where the border is not seen, aligned maps are the ordinary network's on a translated image."""
    torch.manual_seed(1)
    network = Unpadded().double().eval()
    backbone = sparkmim.Backbone(network)
    image = torch.randn(1, 3, 192, 192, dtype=torch.float64)
    shift = 1 + 2 + 2 + 4  # the padding that was added before the average, in pixels
    aligned = backbone(image)[-1]
    ordinary = network(F.pad(image, (shift, 0, shift, 0)))
    inner = slice(2, 10)
    torch.testing.assert_close(aligned[:, :, inner, inner], ordinary[:, :, inner, inner], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(aligned[:, :, 0, inner], ordinary[:, :, 0, inner])


def test_pretraining_step_and_weights_for_the_ordinary_network() -> None:
    torch.manual_seed(0)
    model = sparkmim.SparK(Unpadded(), decoder_width=16)
    model(torch.randn(2, 3, 64, 64)).loss.backward()
    assert model.encoder.reduce.conv.weight.grad is not None
    Unpadded().load_state_dict(model.encoder.state_dict(), strict=True)


def test_what_no_padding_aligns_is_refused() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)[:, :, 1:, 1:]

    with pytest.raises(ValueError, match=r"Cut are not proportional to the image .* not even with padding"):
        sparkmim.Backbone(Cut(), [""])


UNPADDED = [str(i) for i in range(5)]


@pytest.mark.parametrize("stages", [UNPADDED, UNPADDED[-1:], UNPADDED[-2:]], ids=["all", "deepest", "two"])
def test_unpadded_convolutions_are_padded(stages: list[str]) -> None:
    """Their own maps lie between the patches. At some sizes the last one happens to divide the image: 240 gives 6."""
    module = nn.Sequential(*[conv_norm_relu(3 if i == 0 else 4, 4, 2, padding=0) for i in range(5)])
    backbone = sparkmim.Backbone(module, stages=stages)
    assert backbone.aligned == [f"{name}.0" for name in UNPADDED]
    assert backbone.strides[-1] == (32, 32)
    assert module(torch.zeros(1, 3, 240, 240)).shape[2:] == (6, 6)


def test_maps_that_no_padding_aligns_are_refused() -> None:
    """A kernel of even extent and stride 1 would need more padding on one side."""
    module = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 4, 4, 2 if i == 2 else 3, 1 + (i != 2)) for i in range(5)])
    with pytest.raises(ValueError, match=r"feature maps of Sequential are not proportional to the image .* padding"):
        sparkmim.Backbone(module, stages=UNPADDED)


@pytest.mark.slow
def test_unpadded_stem_of_timm_is_padded() -> None:
    with torch.device("meta"):
        module = timm.create_model("inception_v3", num_classes=0, aux_logits=False)
    backbone = sparkmim.Backbone(module)
    assert backbone.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert backbone.aligned[:3] == ["Conv2d_1a_3x3.conv", "Conv2d_2a_3x3.conv", "Pool1"]
    assert {"Mixed_6a", "Mixed_7a"} <= set(backbone.aligned)  # which pool by a function


def test_alignment_of_a_window() -> None:
    assert is_aligned(2, 3, 2)
    assert is_aligned(1, 3, 2)
    assert not is_aligned(0, 3, 2)
    assert is_aligned(0, 3, 2, ceil_mode=True)
