"""The model against its definitions: mask, encode, densify, decode, compare."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import sparkmim
from helpers import PlainNetwork, build_spark, mask_of_pixels, random_images, seeded_mask
from sparkmim import Backbone, SparK, SparKOutput, random_visible
from sparkmim.models.decoder import UNetDecoder
from sparkmim.models.densify import Densify

SMALL = ["plain", "test_resnet", "test_convnext", "test_efficientnet"]


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_output(name: str) -> None:
    model = build_spark(name)
    height, width = 3 * model.patch_size[0], 2 * model.patch_size[1]
    images, visible = random_images(2, height, width), seeded_mask(2, 3, 2)
    out = model(images, visible)
    assert isinstance(out, SparKOutput)
    assert out.loss.shape == ()
    assert out.prediction.shape == images.shape
    assert torch.equal(out.visible, visible)


@pytest.mark.parametrize("name", ["plain", "test_convnext"])
def test_loss_is_that_of_the_prediction(name: str) -> None:
    model = build_spark(name)
    ph, pw = model.patch_size
    images, visible = random_images(2, 2 * ph, 3 * pw), seeded_mask(2, 2, 3)
    out = model(images, visible)
    errors = []
    for b, y, x in itertools.product(range(2), range(2), range(3)):
        place = (b, slice(None), slice(y * ph, (y + 1) * ph), slice(x * pw, (x + 1) * pw))
        patch = images[place]
        target = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
        torch.testing.assert_close(model.target(images)[place], target)
        if not visible[b, y, x]:
            errors.append((out.prediction[place] - target).square().mean())
    assert len(errors) == 2 * (6 - 2)
    assert out.loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-12)


def test_forward_is_mask_encode_densify_decode_compare() -> None:
    """Step by step on whole maps, in evaluation mode, where nothing depends on packing."""
    model = build_spark().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        images, visible = random_images(2, 24, 32), seeded_mask(2, 3, 4)
        out = model(images, visible)
        x = torch.zeros(())
        features = model.encode(images, visible)[::-1]
        densify: Any
        assert isinstance(model.decoder, UNetDecoder)
        for densify, feature, block in zip(model.densify, features, model.decoder.blocks, strict=True):
            here = mask_of_pixels(visible, tuple(s // g for s, g in zip(feature.shape[2:], (3, 4), strict=True)))
            filled = torch.where(here, densify.norm(feature), densify.mask_token)
            x = block(x + densify.proj(filled))
        torch.testing.assert_close(out.prediction, model.decoder.proj(x), rtol=1e-10, atol=1e-12)


def test_hidden_pixels_change_nothing_but_the_target() -> None:
    model = build_spark("test_efficientnet")
    images, visible = random_images(2, 64, 96), seeded_mask(2, 2, 3)
    poisoned = torch.where(mask_of_pixels(visible, (32, 32)), images, torch.nan)
    assert torch.equal(model(poisoned, visible).prediction, model(images, visible).prediction)


def test_visible_patches_matter() -> None:
    model = build_spark()
    images, visible = random_images(2, 24, 32), seeded_mask(2, 3, 4)
    other = torch.where(mask_of_pixels(visible, (8, 8)), images + 1, images)
    assert not torch.equal(model(images, visible).prediction, model(other, visible).prediction)


def test_random_mask_of_a_generator() -> None:
    model = build_spark()
    images = random_images(3, 32, 40)
    first, again, other = (model(images, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first.visible, random_visible(3, (4, 5), 0.6, torch.Generator().manual_seed(5)))
    assert torch.equal(first.visible, again.visible)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.visible, other.visible)


def test_random_mask_of_the_default_generator() -> None:
    model = build_spark()
    torch.manual_seed(5)
    visible = model(random_images(3, 32, 40)).visible
    torch.manual_seed(5)
    assert torch.equal(visible, random_visible(3, (4, 5), 0.6))


def test_mask_ratio_may_change() -> None:
    model = build_spark(mask_ratio=0.75)
    images = random_images(2, 32, 32)
    assert model(images).visible.flatten(1).sum(1).tolist() == [4, 4]
    model.mask_ratio = 0.5
    assert model(images).visible.flatten(1).sum(1).tolist() == [8, 8]


@pytest.mark.parametrize("visible_of_six", [1, 2, 5])
def test_a_given_mask_may_have_any_share(visible_of_six: int) -> None:
    model = build_spark()
    visible = torch.zeros(2, 6, dtype=torch.bool)
    visible[0, :visible_of_six] = visible[1, -visible_of_six:] = True
    out = model(random_images(2, 16, 24), visible.view(2, 2, 3))
    errors = (out.prediction - model.target(random_images(2, 16, 24))).square().mean(1, keepdim=True)
    assert out.loss.item() == pytest.approx(errors[~mask_of_pixels(out.visible, (8, 8))].mean().item())


@pytest.mark.parametrize(("height", "width"), [(128, 608), (32, 96), (224, 64)])
def test_images_need_not_be_square(height: int, width: int) -> None:
    model = build_spark("test_convnext").float()
    images = random_images(1, height, width).float()
    out = model(images)
    assert out.prediction.shape == images.shape
    assert out.visible.shape == (1, height // 32, width // 32)
    assert math.isfinite(out.loss.item())


def test_one_model_takes_images_of_any_size() -> None:
    """And what it computes for one size does not depend on those before."""
    sizes = [(16, 16), (24, 8), (8, 40), (16, 16)]
    losses = []
    model = build_spark().eval()
    for height, width in sizes:
        losses.append(
            model(random_images(2, height, width), seeded_mask(2, height // 8, width // 8, ratio=0.5)).loss.item()
        )
    assert losses[0] == losses[-1]
    fresh = build_spark().eval()
    assert fresh(random_images(2, 8, 40), seeded_mask(2, 1, 5, ratio=0.5)).loss.item() == losses[2]


def test_batch_of_one() -> None:
    """Every patch of an image is a sample of batch norm."""
    out = build_spark()(random_images(1, 16, 16), seeded_mask(1, 2, 2))
    assert math.isfinite(out.loss.item())


# --- patch size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size", [64, (64, 32), (32, 96)])
def test_patches_larger_than_the_stride(patch_size: int | tuple[int, int]) -> None:
    model = build_spark("test_convnext", patch_size=patch_size)
    assert model.patch_size == ((64, 64) if patch_size == 64 else patch_size)
    ph, pw = model.patch_size
    assert isinstance(model.decoder, UNetDecoder)
    assert len(model.decoder.blocks) == 5, "the decoder's depth follows the stride, not the patch"
    images, visible = random_images(2, 2 * ph, 2 * pw), seeded_mask(2, 2, 2)
    out = model(images, visible)
    assert out.visible.shape == (2, 2, 2)
    dense = copy.deepcopy(model)
    dense.execution = "masked-dense"
    torch.testing.assert_close(out.prediction, dense(images, visible).prediction, rtol=1e-9, atol=1e-9)
    first = images[0, :, :ph, :pw]
    target = (first - first.mean()) / (first.var() + 1e-6).sqrt()
    torch.testing.assert_close(model.target(images)[0, :, :ph, :pw], target)


@pytest.mark.parametrize("patch_size", [48, 12, 6, 0, -32, (32, 48), (48,), (32, 32, 32)])
def test_patch_size_must_fit_the_strides(patch_size: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"patch size .* is not a multiple of the network's total stride 32 x 32"):
        SparK("test_convnext", patch_size=patch_size, decoder_width=32)


# --- encode and reconstruct -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_encode_is_zero_where_hidden(name: str) -> None:
    model = build_spark(name)
    height, width = 2 * model.patch_size[0], 3 * model.patch_size[1]
    visible = seeded_mask(2, 2, 3)
    features = model.encode(random_images(2, height, width), visible)
    assert len(features) == len(model.backbone.levels)
    for feature, level in zip(features, model.backbone.levels, strict=True):
        assert feature.shape == (2, level.channels, height // level.stride[0], width // level.stride[1])
        block = tuple(p // s for p, s in zip(model.patch_size, level.stride, strict=True))
        shown = mask_of_pixels(visible, block).expand_as(feature)
        assert feature[~shown].count_nonzero() == 0
        assert feature[shown].count_nonzero() > 0.2 * shown.sum()


@pytest.mark.parametrize("name", SMALL)
def test_encode_with_nothing_hidden_is_the_ordinary_network(name: str) -> None:
    model = build_spark(name).eval()
    height, width = 2 * model.patch_size[0], 3 * model.patch_size[1]
    images = random_images(2, height, width)
    with torch.no_grad():
        encoded = model.encode(images, torch.ones(2, 2, 3, dtype=torch.bool))
        ordinary = model.backbone(images)
    for ours, theirs in zip(encoded, ordinary, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "test_convnext"])
def test_reconstruct(name: str) -> None:
    model = build_spark(name).eval()
    ph, pw = model.patch_size
    images, visible = 3 + 2 * random_images(2, 2 * ph, 3 * pw), seeded_mask(2, 2, 3)
    with torch.no_grad():
        picture = model.reconstruct(images, visible)
        prediction = model(images, visible).prediction
    assert picture.shape == images.shape
    shown = mask_of_pixels(visible, model.patch_size).expand_as(images)
    assert torch.equal(picture[shown], images[shown])
    for b, y, x in (~visible).nonzero().tolist():
        place = (b, slice(None), slice(y * ph, (y + 1) * ph), slice(x * pw, (x + 1) * pw))
        deviation = (images[place].var() + 1e-6).sqrt()
        torch.testing.assert_close(picture[place], prediction[place] * deviation + images[place].mean())


def test_reconstruct_draws_a_mask() -> None:
    model = build_spark().eval()
    images = random_images(2, 16, 24)
    torch.manual_seed(3)
    with torch.no_grad():
        picture = model.reconstruct(images)
    torch.manual_seed(3)
    visible = random_visible(2, (2, 3), 0.6)
    kept = (picture == images).all(1)
    assert torch.equal(kept, mask_of_pixels(visible, (8, 8)).squeeze(1))


def test_target_inverts_with_a_perfect_prediction() -> None:
    """Were the prediction the target, the reconstruction would be the image."""
    model = build_spark()
    images, visible = random_images(2, 16, 24), seeded_mask(2, 2, 3)
    model.decoder.forward = lambda maps: model.target(images)  # type: ignore[method-assign]
    torch.testing.assert_close(model.reconstruct(images, visible), images, rtol=1e-12, atol=1e-12)
    assert model(images, visible).loss.item() < 1e-24


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((230, 224), "224 x 224"), ((20, 300), "32 x 288"), ((5, 5), "32 x 32"), ((64, 79), "64 x 64")],
)
def test_size_that_is_not_divisible(size: tuple[int, int], nearest: str) -> None:
    model = SparK("test_convnext", decoder_width=32)
    message = f"image size {size[0]} x {size[1]} is not divisible by the patch size 32 x 32; use {nearest}, for example"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(1, 3, *size), torch.ones(1, 7, 7, dtype=torch.bool))
    assert model.grid_shape(tuple(map(int, nearest.split(" x ")))), "what is named does fit"


def test_wrong_number_of_dimensions() -> None:
    with pytest.raises(ValueError, match="image size 16 x 16 x 16 is not divisible by the patch size 8 x 8"):
        build_spark()(torch.zeros(1, 3, 16, 16, 16, dtype=torch.float64))


def test_wrong_number_of_channels() -> None:
    with pytest.raises(ValueError, match="images of 1 channels do not fit a network for 3; see in_chans"):
        build_spark()(random_images(2, 16, 16, channels=1))


@pytest.mark.parametrize(
    "visible",
    [
        torch.ones(2, 2, 3, dtype=torch.int64),
        torch.ones(2, 2, 3),
        torch.ones(2, 3, 2, dtype=torch.bool),
        torch.ones(3, 2, 3, dtype=torch.bool),
        torch.ones(2, 6, dtype=torch.bool),
        torch.ones(2, 1, 2, 3, dtype=torch.bool),
        torch.ones(2, 16, 24, dtype=torch.bool),
    ],
)
def test_wrong_mask(visible: Tensor) -> None:
    dtype, shape = str(visible.dtype), tuple(visible.shape)
    with pytest.raises(ValueError) as error:
        build_spark()(random_images(2, 16, 24), visible)
    assert "visible must be a bool tensor of shape (2, 2, 3) (batch, patches)" in str(error.value)
    assert f"not {dtype} of shape {shape}" in str(error.value)


def test_mask_that_is_not_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"bool tensor of shape \(2, 2, 3\) \(batch, patches\), not a list"):
        build_spark()(random_images(2, 16, 24), [[[True] * 3] * 2] * 2)


def test_uneven_mask() -> None:
    visible = torch.zeros(2, 2, 3, dtype=torch.bool)
    visible[0, 0, :2] = visible[1, 1, :] = True
    with pytest.raises(ValueError, match=r"same number .* of visible patches in every image, got \[2, 3\]"):
        build_spark()(random_images(2, 16, 24), visible)


def test_mask_that_shows_nothing() -> None:
    with pytest.raises(ValueError, match=r"\(>= 1\) of visible patches in every image, got \[0\]"):
        build_spark()(random_images(2, 16, 24), torch.zeros(2, 2, 3, dtype=torch.bool))


def test_mask_that_hides_nothing() -> None:
    with pytest.raises(ValueError, match="the mask hides nothing, so there is nothing to predict"):
        build_spark()(random_images(2, 16, 24), torch.ones(2, 2, 3, dtype=torch.bool))


def test_image_too_small_for_the_ratio() -> None:
    with pytest.raises(ValueError, match=r"mask ratio 0\.6 hides all of the 1 patches of a 1 x 1 grid"):
        build_spark()(random_images(2, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execution": "sparse"}, "execution 'sparse' is unknown; use one of packed, masked-dense, zero-out"),
        ({"densify_norm": "group"}, "densify_norm 'group' is unknown; use 'batch', 'layer', 'instance' or None"),
        ({"mask_ratio": 1.0}, "share of patches to hide, from 0 to below 1, not 1.0"),
        ({"mask_ratio": 0}, "mask ratio 0 hides nothing"),
        ({"mask_ratio": 60}, "share of patches to hide, from 0 to below 1, not 60"),
        ({"decoder_width": 4}, "decoder width 4 cannot be halved 3 times; use at least 8"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparK(Backbone(PlainNetwork(), PlainNetwork.stages), **settings)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_chans", [1, 5])
@pytest.mark.parametrize("kind", ["name", "module"])
def test_in_chans(in_chans: int, kind: str) -> None:
    backbone = (
        Backbone(PlainNetwork(in_chans), PlainNetwork.stages, in_chans=in_chans)
        if kind == "module"
        else "test_convnext"
    )
    model = SparK(backbone, in_chans=in_chans, decoder_width=32)
    images = torch.randn(1, in_chans, 64, 96)
    out = model(images)
    assert out.prediction.shape == images.shape
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_backbone_decides_over_in_chans() -> None:
    model = SparK(Backbone(PlainNetwork(1), PlainNetwork.stages, in_chans=1), decoder_width=32)
    assert model(torch.randn(1, 1, 16, 16)).prediction.shape == (1, 1, 16, 16)


def test_module_is_the_encoder() -> None:
    module = timm.create_model("test_resnet", num_classes=0)
    names, values = list(module.state_dict()), copy.deepcopy(module.state_dict())
    model = SparK(module, decoder_width=32)
    assert model.encoder is module
    assert list(module.state_dict()) == names
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_hierarchy_off_uses_the_deepest_map_alone() -> None:
    model = build_spark(hierarchy=False)
    deepest = model.backbone.levels[-1]
    assert len(model.densify) == 1
    assert model.densify[0].mask_token.shape[1] == deepest.channels
    assert isinstance(model.decoder, UNetDecoder)
    assert len(model.decoder.blocks) == 3, "the decoder is as deep as with all maps"
    images, visible = random_images(2, 16, 24), seeded_mask(2, 2, 3)
    features = model.encode(images, visible)
    assert [f.shape[1] for f in features] == [deepest.channels]
    wanted = build_spark().encode(images, visible)[-1]
    torch.testing.assert_close(features[0], wanted, rtol=1e-12, atol=1e-12)
    out = model(images, visible)
    out.loss.backward()
    assert out.prediction.shape == images.shape
    grid = model.mask(images, visible)
    with torch.no_grad():
        prediction = model.decoder([model.densify[0](model.encode_visible(images, grid)[0], grid)])
    torch.testing.assert_close(out.prediction, prediction, rtol=1e-12, atol=1e-12)


def test_hierarchy_off_reaches_fewer_parameters() -> None:
    """What only finer maps depend on gets no gradient and must stay out of its synchronization."""

    class Lateral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.deep = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            self.side(x)
            return self.deep(x)

    assert SparK(Backbone(Lateral(), ["side", "deep"]), decoder_width=32).unreached == []
    model = SparK(Backbone(Lateral(), ["side", "deep"]), decoder_width=32, hierarchy=False)
    model(torch.randn(2, 3, 16, 24)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.unreached == ["side.weight", "side.bias"]


def test_unreached_parameters_are_frozen_and_saved() -> None:
    model = build_spark()
    assert model.unreached == ["head.weight", "head.bias"]
    assert not any(p.requires_grad for p in model.encoder.head.parameters())
    assert {"encoder.head.weight", "encoder.head.bias"} <= model.state_dict().keys()
    model(random_images(2, 16, 24)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("norm", "asked", "wanted"),
    [
        (nn.BatchNorm2d, None, nn.BatchNorm2d),
        (nn.BatchNorm2d, "layer", nn.LayerNorm),
        (lambda width: nn.GroupNorm(2, width), None, nn.LayerNorm),
        (lambda width: nn.GroupNorm(2, width), "batch", nn.BatchNorm2d),
    ],
)
def test_densify_norm(norm: Callable[[int], nn.Module], asked: Any, wanted: type[nn.Module]) -> None:
    model = SparK(Backbone(PlainNetwork(norm=norm), PlainNetwork.stages), densify_norm=asked, decoder_width=32)
    assert {type(densify.norm) for densify in model.densify} == {wanted}
    if wanted is nn.LayerNorm:
        assert {densify.norm.eps for densify in model.densify} == {1e-6}
    model(torch.randn(2, 3, 16, 24)).loss.backward()
    assert all(isinstance(densify, Densify) and densify.norm.weight.grad is not None for densify in model.densify)


def test_settings_are_shown() -> None:
    assert "mask_ratio=0.6, patch_size=(8, 8), execution='packed'" in repr(build_spark())


# --- executions -----------------------------------------------------------------------------------------------------


def loss_and_gradients(model: SparK, images: Tensor, visible: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    model.zero_grad(set_to_none=True)
    images = images.clone().requires_grad_()
    out = model(images, visible)
    out.loss.backward()
    assert images.grad is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.prediction.detach(), {**gradients, "images": images.grad}, out.loss.detach()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", SMALL)
def test_packed_equals_masked_dense(name: str, mode: str) -> None:
    model = build_spark(name).train(mode == "train")
    height, width = 3 * model.patch_size[0], 3 * model.patch_size[1]
    images, visible = random_images(2, height, width), seeded_mask(2, 3, 3)
    oracle = copy.deepcopy(model)
    oracle.execution = "masked-dense"
    ours, theirs = loss_and_gradients(model, images, visible), loss_and_gradients(oracle, images, visible)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-10, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(g.abs().max().item() for g in theirs[1].values())
    for parameter, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][parameter], gradient, rtol=1e-7, atol=1e-11 * scale, msg=parameter)
    for buffer, value in oracle.named_buffers():
        torch.testing.assert_close(model.get_buffer(buffer), value, rtol=1e-9, atol=1e-11, msg=buffer)


@pytest.mark.parametrize("name", ["plain", "test_efficientnet"])
def test_zero_out_is_the_ordinary_network_on_zeroed_images(name: str) -> None:
    model = build_spark(name).eval()
    height, width = 2 * model.patch_size[0], 3 * model.patch_size[1]
    images, visible = random_images(2, height, width), seeded_mask(2, 2, 3)
    packed = [f.detach() for f in model.encode(images, visible)]
    model.execution = "zero-out"
    with torch.no_grad():
        ordinary = model.backbone(images * mask_of_pixels(visible, model.patch_size))
        encoded = model.encode(images, visible)
    for ours, theirs, sparse in zip(encoded, ordinary, packed, strict=True):
        block = tuple(extent // g for extent, g in zip(ours.shape[2:], (2, 3), strict=True))
        torch.testing.assert_close(ours, theirs * mask_of_pixels(visible, block), rtol=1e-12, atol=1e-12)
        assert (ours - sparse).norm() > 1e-3 * sparse.norm(), "hidden is not black"


def test_zero_out_trains() -> None:
    model = build_spark(execution="zero-out")
    model(random_images(2, 16, 24), seeded_mask(2, 2, 3)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["packed", "masked-dense", "zero-out"])
@pytest.mark.parametrize("name", ["plain", "test_convnext"])
def test_a_step_downhill_gains_what_the_gradient_promises(name: str, execution: str) -> None:
    model = build_spark(name, execution=execution)
    height, width = 2 * model.patch_size[0], 3 * model.patch_size[1]
    images, visible = random_images(2, height, width), seeded_mask(2, 2, 3)
    before = model(images, visible).loss
    before.backward()
    gradients: list[Any] = [p.grad for p in model.parameters() if p.requires_grad]
    total = sum(g.square().sum().item() for g in gradients)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-10 / total).step()
    gain = (before - model(images, visible).loss).item()
    assert gain == pytest.approx(1e-10, rel=0.01)  # small, since a layer norm of blank pixels bends sharply


@pytest.mark.slow
def test_trains() -> None:
    torch.manual_seed(0)
    model = SparK("test_convnext", decoder_width=64)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    images = torch.stack([torch.sin(0.1 * y + 0.2 * x + k) for k in range(6)]).view(2, 3, 96, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(images, generator=generator).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1), "the target has variance one, the first prediction is near zero"
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0], losses


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_state_dict(name: str) -> None:
    model = build_spark(name)
    keys = list(model.state_dict())
    encoder = [key.removeprefix("encoder.") for key in keys if key.startswith("encoder.")]
    assert encoder == list(model.encoder.state_dict())
    ordinary = PlainNetwork() if name == "plain" else timm.create_model(name, num_classes=0)
    assert encoder == list(ordinary.state_dict())
    rest = [key for key in keys if not key.startswith("encoder.")]
    assert {key.split(".")[0] for key in rest} == {"densify", "decoder"}
    ordinary.double().load_state_dict(model.encoder.state_dict(), strict=True)
    for key, value in ordinary.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"encoder.{key}"]), key


def test_state_dict_round_trip() -> None:
    model, images, visible = build_spark(), random_images(2, 16, 24), seeded_mask(2, 2, 3)
    model(images, visible)
    other = build_spark()
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    other.load_state_dict(model.state_dict(), strict=True)
    model.eval()
    other.eval()
    assert torch.equal(model(images, visible).prediction, other(images, visible).prediction)


def test_public_names() -> None:
    assert {"SparK", "SparKOutput", "Backbone", "random_visible", "UnsupportedOperation"} <= set(sparkmim.__all__)
    assert all(hasattr(sparkmim, name) for name in sparkmim.__all__)
