"""Of a network that goes up again, whichever way it is written, the encoder's maps are found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import conv_norm_relu as block
from sparkmim import Backbone


def up(x: Tensor, times: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=float(times))


class Nested(nn.Module):
    """U-Net++: it goes up at each resolution before it goes on down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 4), block(4, 8, 2), block(8, 16, 2), block(16, 32, 2)])
        widths = {(0, 1): (12, 4), (1, 1): (24, 8), (2, 1): (48, 16), (0, 2): (16, 4), (1, 2): (32, 8), (0, 3): (20, 4)}
        self.join = nn.ModuleDict({f"{i}_{j}": block(*width) for (i, j), width in widths.items()})
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: dict[tuple[int, int], Tensor] = {}
        for depth, down in enumerate(self.down):
            x = maps[depth, 0] = down(x)
            for j in range(1, depth + 1):
                i = depth - j
                before = [maps[i, k] for k in range(j)]
                maps[i, j] = self.join[f"{i}_{j}"](torch.cat([*before, up(maps[i + 1, j - 1])], 1))
        return [head(maps[0, j + 1]) for j, head in enumerate(self.heads)]


class Nesting(nn.Module):
    """U2-Net: blocks that go down and up inside, at each resolution of a U-Net with side outputs."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.first, self.one, self.two = block(before, after), block(after, 4), block(4, 4)
            self.back = block(8, after)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            one = self.one(x)
            return self.back(torch.cat([one, up(self.two(F.max_pool2d(one, 2)))], 1)) + x

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.Block(3, 4), self.Block(4, 8), self.Block(8, 16), self.Block(16, 16)])
        self.up = nn.ModuleList([self.Block(32, 8), self.Block(16, 4), self.Block(8, 4)])
        self.side = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (16, 8, 4, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.down[0](x)]
        for down in list(self.down)[1:]:
            maps.append(down(F.max_pool2d(maps[-1], 2)))
        outputs = [maps.pop()]
        for part in self.up:
            outputs.append(part(torch.cat([up(outputs[-1]), maps.pop()], 1)))
        sizes = [8, 4, 2, 1]
        return [up(side(x), size) for side, x, size in zip(self.side, outputs, sizes, strict=True)]


class Exchanging(nn.Module):
    """HRNet: resolutions side by side, each exchange a module; and a head that joins them all."""

    class Exchange(nn.Module):
        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            count = range(len(widths))
            self.own = nn.ModuleList(block(c, c) for c in widths)
            self.paths = nn.ModuleList(nn.ModuleList(self.way(widths, i, j) for j in count) for i in count)

        @staticmethod
        def way(widths: list[int], i: int, j: int) -> nn.Module:
            if j >= i:
                return nn.Sequential(nn.Conv2d(widths[j], widths[i], 1), nn.Upsample(scale_factor=2.0 ** (j - i)))
            return nn.Sequential(*[block(widths[j + k], widths[j + k + 1], 2) for k in range(i - j)])

        def forward(self, maps: list[Tensor]) -> list[Tensor]:
            maps = [own(x) for own, x in zip(self.own, maps, strict=True)]
            ways = [[way(x) for way, x in zip(row, maps, strict=True)] for row in self.paths]  # type: ignore[call-overload]
            return [F.relu(torch.stack(row).sum(0)) for row in ways]

    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.stem, self.first = block(3, 4, 4), block(4, 8, 2)
        self.stage2, self.next, self.stage3 = self.Exchange([4, 8]), block(8, 16, 2), self.Exchange([4, 8, 16])
        self.head = nn.Sequential(nn.Conv2d(28, 28, 1), nn.ReLU(), nn.Conv2d(28, 5, 1)) if head else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(x)
        maps = self.stage2([x, self.first(x)])
        maps = self.stage3([*maps, self.next(maps[-1])])
        if self.head is None:
            return maps  # type: ignore[no-any-return]
        return self.head(torch.cat([maps[0], up(maps[1]), up(maps[2], 4)], 1))  # type: ignore[no-any-return]


class Weighted(nn.Module):
    """BiFPN: weighted joins up and down, over the encoder's maps and a coarser one of few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([block(3, 16, 4), block(16, 32, 2), block(32, 64, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (16, 32, 64))
        self.extra = nn.Sequential(nn.Conv2d(64, 8, 1), nn.MaxPool2d(3, 2, 1))
        self.weights = nn.Parameter(torch.ones(3, 2))
        self.convs = nn.ModuleList(block(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for part in self.body:
            x = part(x)
            maps.append(x)
        fine, middle, coarse = (side(m) for side, m in zip(self.lateral, maps, strict=True))
        extra, w = self.extra(x), F.relu(self.weights)
        coarse = self.convs[0](w[0, 0] * coarse + w[0, 1] * up(extra))
        middle = self.convs[1](w[1, 0] * middle + w[1, 1] * up(coarse))
        fine = self.convs[2](w[2, 0] * fine + w[2, 1] * up(middle))
        return [fine, self.convs[3](middle + F.max_pool2d(fine, 3, 2, 1)), coarse, extra]


class Latent(nn.Module):
    """A variational autoencoder: a narrow code, and a decoder that is wide again at the same resolution."""

    def __init__(self, narrow: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*[block(a, b, 2) for a, b in zip((3, *narrow[:-1]), narrow, strict=True)])
        self.mean, self.spread = nn.Conv2d(narrow[-1], 2, 1), nn.Conv2d(narrow[-1], 2, 1)
        parts: list[nn.Module] = [block(2, 64)]
        for _ in narrow:
            parts += [nn.Upsample(scale_factor=2), block(64, 64)]
        self.decoder = nn.Sequential(*parts, nn.Conv2d(64, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        mean = self.mean(x)
        code = mean + torch.randn_like(mean) * self.spread(x).exp()
        return self.decoder(code)  # type: ignore[no-any-return]


class Pathways(nn.Module):
    """Two pathways, of which one is given every other row (SlowFast's frames): its input is no feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow = nn.Conv2d(3, 4, 3, (1, 2), 1), nn.Conv2d(3, 8, 3, (1, 2), 1)
        self.side, self.deep = nn.Conv2d(4, 4, 1, (2, 1)), block(12, 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        slow = self.slow(x[:, :, ::2])
        return self.deep(torch.cat([slow, self.side(self.fast(x))], 1)).mean((2, 3))  # type: ignore[no-any-return]


class Looped(nn.Module):
    """One residual block and one pooling for all resolutions, the sums written in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(6):
            x = F.relu(x + self.block(x))
            x = self.down(x) if number in (1, 3) else x
        return x.mean((2, 3))


class Bridged(nn.Module):
    """An encoder whose decoder begins with layers at the deepest resolution, as MA-Net's attention."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.center, self.back = block(16, 16), nn.ModuleList([block(24, 8), block(12, 4)])

        def forward(self, maps: list[Tensor]) -> Tensor:
            x = self.center(maps[-1])
            for back, skip in zip(self.back, maps[-2::-1], strict=True):
                x = back(torch.cat([up(x), skip], 1))
            return x

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([block(3, 4), block(4, 8, 2), block(8, 16, 2)])
        self.decoder, self.head = self.Decoder(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        return self.head(self.decoder(maps))  # type: ignore[no-any-return]


class PyramidPooling(nn.Module):
    """PSPNet: a head at the last map's resolution that pools the whole map to a few positions, and up to the image."""

    def __init__(self, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 32, 2))
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(bin), nn.Conv2d(32, 8, 1)) for bin in bins)
        self.fuse, self.head = block(32 + 8 * len(bins), 64), nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.body(x)
        pooled = [F.interpolate(pool(deep), size=deep.shape[2:], mode="bilinear") for pool in self.pools]
        return up(self.head(self.fuse(torch.cat([deep, *pooled], 1))), 8)


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


ENCODERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "nested U-Net": (Nested, ["down.1", "down.2", "down.3"]),
    "U-shaped blocks": (Nesting, ["down.1", "down.2", "down.3"]),
    "exchange": (lambda: Exchanging(False), ["stage3:output[0]", "stage3:output[1]", "stage3:output[2]"]),
    "exchange and head": (Exchanging, ["stage3:output[0]", "stage3:output[1]", "stage3:output[2]"]),
    "weighted pyramid": (Weighted, ["body.0", "body.1", "body.2"]),
    "latent code": (Latent, ["encoder.0", "encoder.1", "encoder"]),
    "narrowing autoencoder": (lambda: Latent((32, 16, 4)), ["encoder.0", "encoder.1", "encoder"]),
    "bridge of the decoder": (Bridged, ["encoder.1", "encoder.2"]),
    "pyramid pooling": (lambda: PyramidPooling((1, 2, 3, 6)), ["body.0", "body.1", "body"]),
    "pyramid pooling of one": (lambda: PyramidPooling((3,)), ["body.0", "body.1", "body"]),
    "pathways": (Pathways, ["fast", "deep:input", "deep"]),
    "looped": (Looped, [":relu[1]", ":relu[3]", ":relu[5]"]),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_encoder_is_found(name: str, wrapped: bool) -> None:
    """Also within another module, which holds the whole network."""
    make, wanted = ENCODERS[name]
    torch.manual_seed(0)
    network = make()
    backbone = Backbone(Wrapped(network) if wrapped else network)
    prefix = "network" if wrapped else ""
    dotted = {stage if stage.startswith(":") else f".{stage}" for stage in wanted}
    found = [stage.removeprefix(prefix) if wrapped else stage for stage in backbone.stages]
    assert {stage if stage.startswith((":", ".")) else f".{stage}" for stage in found} == dotted
    # Strides are those of a pyramid that a decoder can climb.
    for fine, deep in zip(backbone.strides, backbone.strides[1:], strict=False):
        assert all(d % f == 0 for f, d in zip(fine, deep, strict=True))


def test_a_map_that_no_padding_aligns_is_said() -> None:
    """An even kernel of stride 1 loses a position, as in PatchGAN, and what follows is not trained."""
    network = nn.Sequential(block(3, 8, 2), block(8, 16, 2), nn.Conv2d(16, 32, 4, 1, 1), nn.Conv2d(32, 1, 4, 1, 1))
    backbone = Backbone(network)
    assert backbone.strides == [(2, 2), (4, 4)]
    aligned, overlooked = backbone.notes
    assert "the map of 2 is not the image's size divided by a stride" in aligned
    assert "(2.weight, 2.bias, 3.weight, 3.bias)" in overlooked


class Causal(nn.Module):
    """Convolutions padded on both sides, and cut on one (a temporal convolutional network)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(2 if n == 0 else 4, 4, 3, padding=2 * 2**n, dilation=2**n) for n in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = F.relu(layer(x)[:, :, : -2 * 2**number])
        return x


def test_what_is_padded_and_cut_is_left_alone() -> None:
    backbone = Backbone(Causal(), in_chans=2, levels=1)
    assert backbone.levels == [(4, (1,))]
    assert not backbone.aligned
    assert not backbone.unreached_parameters()
