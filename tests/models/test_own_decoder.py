"""The network's own decoder predicts from densified skips, exactly, with its weights where the network has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import PlainNetwork, seeded_mask
from sparkmim import Backbone, SparK
from sparkmim.models.densify import Densify
from sparkmim.models.own_decoder import OwnDecoder
from sparkmim.sparse import PatchGrid, UnsupportedOperation, mask_at

CONV: Any = {2: nn.Conv2d, 3: nn.Conv3d}
UP: Any = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: Any = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def block(inputs: int, outputs: int, dims: int = 2, norm: Any = None, stride: int = 1) -> nn.Sequential:
    norm = NORM[dims](outputs, affine=True) if norm is None else norm(outputs)
    return nn.Sequential(CONV[dims](inputs, outputs, 3, stride, 1), norm, nn.LeakyReLU(inplace=True))


class UNet(nn.Module):
    """Strides 1, 2, 4; its decoder is written out in `forward`."""

    def __init__(self, dims: int = 2, norm: Any = None, classes: int = 3) -> None:
        super().__init__()
        self.e1, self.e2, self.e3 = (block(i, o, dims, norm, s) for i, o, s in ((1, 4, 1), (4, 6, 2), (6, 8, 2)))
        self.u2, self.u1 = UP[dims](8, 6, 2, 2), UP[dims](6, 4, 2, 2)
        self.d2, self.d1 = block(12, 6, dims, norm), block(8, 4, dims, norm)
        self.head = CONV[dims](4, classes, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.e1(x)
        b = self.e2(a)
        c = self.e3(b)
        return self.head(self.decode(a, b, c))

    def decode(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        y = self.d2(torch.cat([self.u2(c), b], 1))
        return self.d1(torch.cat([self.u1(y), a], 1))


class OfSkips(nn.Module):
    """An encoder that returns a list, and a decoder that takes it."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        whole = UNet(dims)
        self.encoder = nn.ModuleList([whole.e1, whole.e2, whole.e3])
        self.decoder = Decoder(whole)
        self.head = whole.head

    def forward(self, x: Tensor) -> Tensor:
        skips = [x]
        for stage in self.encoder:
            skips.append(stage(skips[-1]))
        return self.head(self.decoder(skips[1:]))


class Decoder(nn.Module):
    def __init__(self, whole: UNet) -> None:
        super().__init__()
        self.up, self.blocks = nn.ModuleList([whole.u2, whole.u1]), nn.ModuleList([whole.d2, whole.d1])

    def forward(self, skips: list[Tensor]) -> Tensor:
        *others, y = skips
        for up, conv in zip(self.up, self.blocks, strict=True):
            y = conv(torch.cat([up(y), others.pop()], 1))
        return y


class Inner(nn.Module):
    """One level around another, as in MONAI's UNet: the skip is a local variable of a recursion."""

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.inner, self.up = down, inner, up

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.up(torch.cat([x, self.inner(x)], 1))


def recursive() -> nn.Module:
    w = UNet()
    bottom = nn.Sequential(w.e3, w.u2)
    middle = nn.Sequential(Inner(w.e2, bottom, w.d2), w.u1)
    return nn.Sequential(Inner(w.e1, middle, w.d1), w.head)


class Resized(UNet):
    """Upsamples to the size that it asks of a skip, and adds; checks shapes as hand-written networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.u2, self.u1 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.d2, self.d1 = block(6, 6), block(4, 4)

    def decode(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        for skip, up, conv in ((b, self.u2, self.d2), (a, self.u1, self.d1)):
            c = F.interpolate(up(c), size=skip.shape[2:], mode="bilinear")
            if c.shape[-2:] != skip.shape[-2:]:
                c = F.pad(c, [0, skip.size(-1) - c.size(-1), 0, skip.size(-2) - c.size(-2)])
            c = conv(c + skip)
        return c


class InPlace(UNet):
    """Writes into its skips."""

    def decode(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        b += self.u2(c)
        a.add_(self.u1(self.d2(torch.cat([b, b], 1))))
        return self.d1(torch.cat([a, F.relu(a)], 1))


class Supervised(UNet):
    """Returns predictions at several scales, the finest first, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.e1(x)
        b = self.e2(a)
        y = self.d2(torch.cat([self.u2(self.e3(b)), b], 1))
        return {"out": self.head(self.d1(torch.cat([self.u1(y), a], 1))).sigmoid(), "aux": self.aside(y)}


class Checkpointed(UNet):
    """Computes its decoder again in backward."""

    def decode(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        y = checkpoint(lambda c, b: self.d2(torch.cat([self.u2(c), b], 1)), c, b, use_reentrant=False)
        return checkpoint(lambda y, a: self.d1(torch.cat([self.u1(y), a], 1)), y, a, use_reentrant=False)  # type: ignore[no-any-return]


class Headless(UNet):
    """Returns features."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        b = self.e2(a)
        return self.decode(a, b, self.e3(b))


class Coarse(UNet):
    """Ends at stride 2, and has its logits resized, as many segmentation networks do."""

    def forward(self, x: Tensor) -> Tensor:
        b = self.e2(self.e1(x))
        y = self.d2(torch.cat([self.u2(self.e3(b)), b], 1))
        return F.interpolate(self.head(y[:, :4]), scale_factor=2.0)


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "written out": (2, UNet),
    "batch norm": (2, lambda: UNet(norm=nn.BatchNorm2d)),
    "no norm": (2, lambda: UNet(norm=lambda channels: nn.Identity())),
    "volumes": (3, lambda: UNet(3)),
    "list of skips": (2, OfSkips),
    "list of skips of volumes": (3, lambda: OfSkips(3)),
    "recursive": (2, recursive),
    "resized to a skip's size": (2, Resized),
    "written into": (2, InPlace),
    "several outputs": (2, Supervised),
    "checkpointed": (2, Checkpointed),
    "without a head": (2, Headless),
    "ends at stride 2": (2, Coarse),
}


SMALL = ("volumes", "recursive", "batch norm")
"""Networks tried with patches smaller than the total stride too."""


def own(network: nn.Module, dims: int = 2, **settings: Any) -> SparK:
    return SparK(network, decoder="own", in_chans=1, dims=dims, **settings).double()


@cache
def model_of(name: str, patch: int = 4) -> SparK:
    """Build a model once: most of that is looking for stages."""
    dims, make = NETWORKS[name]
    torch.manual_seed(0)
    return own(make(), dims, patch_size=patch)


def images(dims: int, size: int = 16) -> Tensor:
    return torch.randn(2, 1, *[size] * dims, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(model: SparK, x: Tensor, visible: Tensor, execution: Any) -> dict[str, Tensor]:
    model.execution = execution
    model.zero_grad()
    model(x, visible).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "patch"), [*((name, 4) for name in NETWORKS), *((name, 2) for name in SMALL)])
def test_packed_equals_masked_dense(name: str, patch: int) -> None:
    model = model_of(name, patch)
    x = images(model.backbone.dims)
    visible = seeded_mask(2, *model.grid_shape(x.shape[2:]))
    packed, dense = (gradients(model, x, visible, e) for e in ("packed", "masked-dense"))
    assert packed.keys() == dense.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for key in packed:
        torch.testing.assert_close(packed[key], dense[key], rtol=1e-9, atol=1e-12, msg=key)
    hidden = ~mask_at(visible, x.shape[2:]).unsqueeze(1)
    model.execution = "packed"
    torch.testing.assert_close(
        model(x.masked_fill(hidden, torch.nan), visible).prediction, model(x, visible).prediction, msg="hidden is seen"
    )


@pytest.mark.parametrize(
    ("name", "execution"),
    [*((name, "packed") for name in NETWORKS), ("written out", "masked-dense"), ("written into", "zero-out")],
)
def test_ordinary_network_where_nothing_is_hidden(name: str, execution: Any) -> None:
    """With nothing hidden, and norm and projection left out, the head on the last map is the network's output."""
    model = copy.deepcopy(model_of(name))
    model.execution, network = execution, model.encoder
    for densify in model.densify:
        densify.norm, densify.proj = nn.Identity(), nn.Identity()
    x = images(model.backbone.dims)
    wanted = copy.deepcopy(model.encoder)(x)
    wanted = wanted["out"] if isinstance(wanted, dict) else wanted
    decoder = model.decoder
    assert isinstance(decoder, OwnDecoder)
    last = model._last_map(decoder, x, model.mask(x, torch.ones(2, *model.grid_shape(x.shape[2:]), dtype=torch.bool)))
    head: Any = network[-1] if isinstance(network, nn.Sequential) else network.head  # type: ignore[index]
    out = {"several outputs": lambda y: head(y).sigmoid(), "without a head": lambda y: y}.get(name, head)(last)
    if name == "ends at stride 2":
        out = F.interpolate(out, scale_factor=2.0)
    torch.testing.assert_close(out, wanted)


def test_checkpointed_decoder_has_the_same_gradients() -> None:
    x, visible = images(2), seeded_mask(2, 4, 4)
    for execution in ("packed", "masked-dense", "zero-out"):
        names = "written out", "checkpointed"
        plain, again = (gradients(model_of(name), x, visible, execution) for name in names)
        for key in plain:
            torch.testing.assert_close(again[key], plain[key], rtol=0, atol=0, msg=key)


def test_decoder_is_trained_where_the_ordinary_network_has_it() -> None:
    model = copy.deepcopy(model_of("no norm"))
    before = {name: t.clone() for name, t in model.encoder.state_dict().items()}
    assert model.unreached == ["head.weight", "head.bias"], "the head alone is not trained"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images(2), seeded_mask(2, 4, 4)).loss.backward()
    optimizer.step()
    ordinary = NETWORKS["no norm"][1]().double()
    ordinary.load_state_dict(model.encoder.state_dict())
    changed = {name for name, t in ordinary.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == before.keys() - {"head.weight", "head.bias"}
    torch.testing.assert_close(ordinary(images(2)), model.encoder(images(2)))
    beside = {name for name in model.state_dict() if not name.startswith("encoder.")}
    assert {name for name in beside if name.startswith("decoder.")} == {"decoder.proj.weight", "decoder.proj.bias"}


def test_all_maps_take_part_and_keep_their_width() -> None:
    model = model_of("volumes")
    assert [level.stride[0] for level in model.backbone.levels] == [1, 2, 4]
    for densify, channels, kernel in zip(model.densify, (8, 6, 4), (3, 3, None), strict=True):
        assert isinstance(densify, Densify)
        assert densify.mask_token.shape == (1, channels, 1, 1, 1)
        assert isinstance(densify.norm, nn.InstanceNorm3d)
        if kernel is None:
            assert isinstance(densify.proj, nn.Identity), "the finest, as nnssl's"
        else:
            assert densify.proj.weight.shape == (channels, channels, 3, 3, 3)


def test_densify_norm_of_instances() -> None:
    densify = Densify(4, 4, "instance", 1).double()
    grid = PatchGrid(seeded_mask(2, 4, 4), 6)
    packed = torch.randn(12, 4, 2, 2, dtype=torch.float64)
    out = grid.pack(densify(packed, grid)).unflatten(0, (2, 6))
    torch.testing.assert_close(out.mean((1, 3, 4)), torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(
        out.var((1, 3, 4), unbiased=False), torch.ones(2, 4, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_blocks_of_a_coarse_decoder_are_laid_out_as_pixels() -> None:
    decoder = model_of("ends at stride 2").decoder
    assert isinstance(decoder, OwnDecoder)
    assert decoder.block == (2, 2)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(decoder(x), F.pixel_shuffle(decoder.proj(x), 2))


# --- what is refused ------------------------------------------------------------------------------------------------


class WithImage(UNet):
    def __init__(self) -> None:
        super().__init__()
        self.d1 = block(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        b = self.e2(a)
        y = self.d2(torch.cat([self.u2(self.e3(b)), b], 1))
        return self.head(self.d1(torch.cat([self.u1(y), a, x], 1)))


class WithOther(UNet):
    """Passes the decoder a second map of a resolution."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        other = torch.sigmoid(a)
        b = self.e2(a)
        return self.head(self.decode(a, b, self.e3(b)) * other)


class Functional(UNet):
    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        b = self.e2(a)
        return F.conv2d(self.decode(a, b, self.e3(b)), self.head.weight, self.head.bias)


class Unpadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, 2)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.e1(x)
        y = self.up(self.e2(a))
        return self.head(torch.cat([y, a[:, :, : y.shape[2], : y.shape[3]]], 1))


def test_a_decoder_of_one_s_own_takes_no_memory_setting() -> None:
    model = own(UNet())
    model.set_memory_efficient()
    with pytest.raises(ValueError, match="memory_efficient=False has no effect with decoder='own'"):
        model.set_memory_efficient(False)


REFUSED: dict[str, tuple[Callable[[], SparK], str]] = {
    "a classifier": (lambda: SparK(PlainNetwork(), decoder="own"), "PlainNetwork returns no map"),
    "timm": (lambda: SparK("test_resnet", decoder="own"), "offers feature maps itself .* no decoder to pretrain"),
    "the image": (lambda: own(WithImage()), r"uses \(cat\) the image itself, of shape .* none of them \(e1, e2, e3\)"),
    "another map": (lambda: own(WithOther()), r"uses \(mul\) the result of sigmoid, of shape \(1, 4, "),
    "too few maps": (lambda: own(UNet(), levels=2), "result of leaky_relu in module 'e1.2'.* leave levels out"),
    "a functional head": (lambda: own(Functional()), r"last convolution \(conv2d\) is called in .* the network itself"),
    "cropped skips": (lambda: own(Unpadded()), "padding is added to its unpadded convolutions"),
    "deepest alone": (lambda: own(UNet(), hierarchy=False), "hierarchy=False decodes from the deepest map alone"),
    "a width": (lambda: own(UNet(), decoder_width=64), "decoder_width=64 has no effect with decoder='own'"),
    "blocks": (lambda: own(UNet(), decoder_block="convnext"), "decoder_block='convnext' has no effect"),
    "a word": (lambda: own(UNet(), decoder="mine"), "decoder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=text):
        make()


def test_stages_that_are_named_are_the_skips() -> None:
    class Projected(UNet):
        """Its skip of stride 1 goes through a convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.skip = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.e1(x)
            skip = self.skip(a)
            b = self.e2(a)
            return self.head(self.decode(skip, b, self.e3(b)))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"result of conv2d in module 'skip'.*name them as stages"):
        own(Projected())
    model = own(Backbone(Projected(), ["skip", "e2", "e3"], in_chans=1, levels="all"))  # type: ignore[arg-type]
    assert model.unreached == ["head.weight", "head.bias"]
    x, visible = images(2), seeded_mask(2, 4, 4)
    packed, dense = (gradients(model, x, visible, e) for e in ("packed", "masked-dense"))
    for key in packed:
        torch.testing.assert_close(packed[key], dense[key], rtol=1e-9, atol=1e-12, msg=key)


def test_custom_autograd_functions_of_skips_are_refused() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * 2

    class Custom(UNet):
        def decode(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return super().decode(Twice.apply(a), b, c)  # type: ignore[no-untyped-call]

    with pytest.raises(ValueError, match="mul is given a skip: it is called inside a custom autograd function"):
        own(Custom())


def test_compiled_is_refused() -> None:
    model = copy.deepcopy(model_of("written out"))
    model.compile(backend="eager")
    with pytest.raises(UnsupportedOperation, match="--compile off"):
        model(images(2), seeded_mask(2, 4, 4))
