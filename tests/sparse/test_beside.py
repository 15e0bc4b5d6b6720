"""Parts beside the feature maps: what is refused there does not end a pass, and never reaches a map."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run


class Pooled(nn.Module):
    """An auxiliary classifier, as GoogLeNet has it: pools to a fixed grid, and has norms and dropout behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.fc1, self.fc2, self.depth = nn.Linear(16, 6), nn.Linear(6, 3), StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, (2, 2))
        x = self.depth(F.relu(self.norm(self.conv(x)), inplace=True)).flatten(1)
        return self.fc2(F.dropout(F.relu(self.fc1(x), inplace=True), 0.5, self.training))


class Flattened(nn.Module):
    """A linear layer on all values of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)  # of a map: as everywhere
        return self.fc(x.reshape(x.shape[0], -1)).log_softmax(1)


class Attention(nn.Module):
    """Positions that attend to one another, with learned queries and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )
        self.query = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        found, _ = self.inner(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        return self.head(self.norm(found + tokens.mean(1, keepdim=True)).squeeze(1))


class Kernels(nn.Module):
    """A kernel for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(8, 8 * 9)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernel = self.make(x.mean((2, 3))).view(b * c, 1, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b * c).view(b, c, h, w)


class Recurrent(nn.Module):
    """A recurrence over positions, whose last state is projected."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.flatten(2).transpose(1, 2))
        return F.normalize(self.head(states[:, -1]), dim=1)


class Uneven(nn.Module):
    """Deep supervision: windows that are not aligned, then the size of the image again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 3, 4, stride=3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.avg_pool2d(x, 5, 3)[:, :, :, :]) if x.shape[2] > 30 else F.avg_pool2d(x, 5, 3)[:, :3])
        return F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=True)


HEADS: list[Callable[[], nn.Module]] = [Pooled, Flattened, Attention, Kernels, Recurrent, Uneven]


class Network(nn.Module):
    """Three stages, an auxiliary head on the second, and a classifier.

    Args:
        head: of the auxiliary output.
        use: what is done with that, given the map, it and the network; returns the map.
        always: whether it is computed in evaluation mode too.
    """

    def __init__(
        self, head: nn.Module, use: Callable[[Tensor, Tensor, Any], Tensor] = lambda x, y, net: x, always: bool = False
    ) -> None:
        super().__init__()
        self.stem, self.stage1 = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.stage2, self.fc = nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 3)
        self.aux, self.use, self.always = head, use, always
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        x = self.stage1(self.stem(x).relu()).relu()
        aux = None
        if self.training or self.always:
            aux = self.aux(x)
            x = self.use(x, aux, self)
        x = self.stage2(x).relu()
        return self.fc(x.mean((2, 3))), aux


def build(head: Callable[[], nn.Module], **settings: Any) -> Network:
    torch.manual_seed(0)
    return Network(head(), **settings)


@pytest.mark.parametrize("always", [False, True], ids=["training only", "always"])
@pytest.mark.parametrize("head", [head for head in HEADS if head is not Flattened])  # which takes no cropped images
def test_network_with_a_head_passes_its_check(head: Callable[[], nn.Module], always: bool) -> None:
    if always and head is Recurrent:
        return  # probing it takes long
    backbone = Backbone(build(head, always=always))
    assert {name for name in backbone.unreached if name.startswith("aux.")}
    report = backbone.check(patch_size=8, grid=(4, 4))
    assert report.passed, report


def test_patches_smaller_than_the_stride() -> None:
    report = Backbone(build(Pooled)).check(patch_size=4, grid=(4, 4))
    assert report.passed, report
    assert any(result.check == "hidden" for result in report.results)


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("head", HEADS)
def test_maps_and_gradients_are_those_without_the_head(head: Callable[[], nn.Module], execution: Any) -> None:
    network = build(head).double()
    plain = copy.deepcopy(network)
    plain.aux = nn.Identity()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    grid = PatchGrid(random_visible(2, (4, 4), 0.5, torch.Generator().manual_seed(0)), 8)
    found = []
    for net in (network, plain):
        backbone = Backbone(net)
        maps = run(execution(grid), net, images, backbone)
        sum(m.square().sum() for m in maps).backward()
        found.append([*maps, *(net.get_parameter(f"{name}.weight").grad for name in ("stem", "stage1.0", "stage2"))])
        assert all(p.grad is None for p in net.aux.parameters())
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def _added(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return x + y.mean() * 0


def _concatenated(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return torch.cat([x[:, :4], (x * y.flatten(1).sum(1).view(-1, 1, 1, 1))[:, 4:]], 1)


def _written(x: Tensor, y: Tensor, net: Any) -> Tensor:
    x = x.clone()
    x.mul_(y.sum())
    return x


def _set(x: Tensor, y: Tensor, net: Any) -> Tensor:
    x[:, 0] = y.sum()
    return x


def _out(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return torch.mul(x, y.sum(), out=torch.empty_like(x))


def _decided(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return x * 2 if y.sum() > 0 else x


def _read(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return x * float(y.sum().item())


def _kept(x: Tensor, y: Tensor, net: Any) -> Tensor:
    net.seen = net.seen + y.sum()
    return x


def _copied(x: Tensor, y: Tensor, net: Any) -> Tensor:
    net.seen.copy_(y.sum())
    return x


def _gated(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return torch.where(y.sum() > 0, x, -x)


def _through_weights(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return net.stage2(x * 0 + y.sum()) if x.shape[0] > 100 else x * net.fc(y.flatten()[:8]).sum()


def _array(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return x * torch.from_numpy(y.detach().numpy()).sum()


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def _own_function(x: Tensor, y: Tensor, net: Any) -> Tensor:
    return x * _Own.apply(y)


USES = [
    _added, _concatenated, _written, _set, _out, _decided, _read, _kept, _copied, _gated, _through_weights, _array,
    _own_function,
]  # fmt: skip


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("head", HEADS)
def test_result_that_reaches_a_map_is_refused(head: Callable[[], nn.Module], use: Any, execution: Any) -> None:
    network = build(head, use=use)
    with torch.no_grad():
        network.train()
    images = torch.randn(2, 3, 32, 32)
    grid = PatchGrid(random_visible(2, (4, 4), 0.5, torch.Generator().manual_seed(0)), 8)
    with pytest.raises(UnsupportedOperation) as plain:
        run(execution(grid), copy.deepcopy(network), images, lambda x: [network.aux(network.stage1(network.stem(x)))])
    backbone = Backbone(network)  # found in evaluation mode, where the head does not run
    with pytest.raises(UnsupportedOperation) as error:
        run(execution(grid), network, images, backbone)
    if use is not _own_function:
        assert "in module 'aux" in str(error.value)
        name = str(plain.value).split(" cannot be carried out")[0].split(": ")[-1]
        assert f"{name} cannot be carried out" in str(error.value)


def _by_number(x: Tensor, size: Any) -> Tensor:
    return x.sum((2, 3), keepdim=True) / size


NUMBERS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: _by_number(x, y.shape[2] * y.shape[3]),
    lambda x, y: _by_number(x, int(y.shape[2]) * int(y.shape[3])),
    lambda x, y: _by_number(x, y.numel() // (y.shape[0] * y.shape[1])),
    lambda x, y: _by_number(x, float(y[0, 0].numel())),
    lambda x, y: _by_number(x, torch.tensor(y.size(2) * y.size(3))),
]


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("number", NUMBERS)
def test_sizes_read_beside_the_maps_do_not_scale_sums(number: Any, execution: Any) -> None:
    network = build(lambda: Sliced(lambda x: x.flip(2)), use=lambda x, y, net: x + number(x, x.flip(2)))
    backbone = Backbone(network)
    grid = PatchGrid(random_visible(2, (4, 6), 0.5, torch.Generator().manual_seed(0)), 12)
    with pytest.raises(UnsupportedOperation):
        run(execution(grid), network, torch.randn(2, 3, 32, 48), backbone)


class Sliced(nn.Module):
    """Writes into what is a view of the map in the ordinary network."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale, self.write = nn.Parameter(torch.ones(1)), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        return x.mean() * self.scale


WRITES: list[Callable[[Tensor], Any]] = [
    lambda x: x.unfold(2, 3, 2).mul_(2),
    lambda x: x[:, :, 1:].add_(1),
    lambda x: x.view(-1)[3:].zero_(),
    lambda x: x.diagonal(0, 2, 3).fill_(0),
    lambda x: F.relu(x.unfold(3, 2, 3), inplace=True),
    lambda x: x.as_strided((2, 3), (8, 1)).exp_(),
    lambda x: x.flip(2)[:, :, 0].copy_(x[:, :, 0]) if False else x.cumsum_(2),
    lambda x: x.index_fill_(2, torch.tensor([0]), 0.0),
    lambda x: x.unfold(2, 3, 2).reshape(2, 8, -1).mul_(2) if False else x.unfold(2, 3, 2)[0].__imul__(2),
]


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("write", WRITES)
def test_write_into_a_view_of_a_map_is_refused(write: Callable[[Tensor], Any], execution: Any) -> None:
    network = build(lambda: Sliced(write))
    backbone = Backbone(network)
    grid = PatchGrid(random_visible(2, (4, 4), 0.5, torch.Generator().manual_seed(0)), 8)
    with pytest.raises(UnsupportedOperation, match="in module 'aux'"):
        run(execution(grid), network, torch.randn(2, 3, 32, 32), backbone)


def test_statistics_beside_the_maps() -> None:
    """Those of maps are updated; those of what has no values stay as they are."""
    network = build(Pooled)
    SparK(network, patch_size=8, decoder_width=8)(torch.randn(2, 3, 32, 32))
    assert torch.equal(network.aux.norm.running_mean, torch.zeros(4))  # type: ignore[union-attr, arg-type]
    network = build(Flattened)
    SparK(network, patch_size=8, decoder_width=8)(torch.randn(2, 3, 32, 32))
    assert not torch.equal(network.aux.norm.running_mean, torch.zeros(8))  # type: ignore[union-attr, arg-type]


class InForward(Network):
    """An auxiliary head whose pooling is called by the network itself."""

    def forward(self, x: Tensor) -> Any:
        x = self.stage1(self.stem(x).relu()).relu()
        aux = self.aux(F.adaptive_avg_pool2d(x, 2).flatten(1)) if self.training else None
        return self.fc(self.stage2(x).relu().mean((2, 3))), aux


def test_head_may_be_written_in_forward() -> None:
    report = Backbone(InForward(nn.Sequential(nn.Linear(32, 4), nn.ReLU(True), nn.Linear(4, 2)))).check(patch_size=8)
    assert report.passed, report


class SharedNorm(Network):
    """A norm of a map that also normalizes what an auxiliary head pools to a fixed size, before or after it."""

    def __init__(self, affine: bool, first: bool) -> None:
        super().__init__(nn.Linear(32, 4))
        self.norm, self.first = nn.BatchNorm2d(8, affine=affine), first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x).relu()).relu()
        if self.training and self.first:
            self.aux(self.norm(F.adaptive_avg_pool2d(x, 2)).flatten(1))
        x = self.norm(x)
        if self.training and not self.first:
            self.aux(self.norm(F.adaptive_avg_pool2d(x, 2)).flatten(1))
        return self.fc(self.stage2(x).relu().mean((2, 3)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("affine", "reason"), [(False, "module 'norm' normalizes feature maps, and also"), (True, "adaptive_avg_pool2d")]
)
def test_norm_of_a_map_that_a_head_should_update_is_refused(affine: bool, reason: str, first: bool) -> None:
    report = Backbone(SharedNorm(affine, first)).check(patch_size=8)
    assert {result.mode for result in report.results if not result.passed} == {"train"}
    assert reason in report.errors[0]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("execution", ["packed", "masked-dense"])
def test_compiled(execution: Any) -> None:
    torch.manual_seed(0)
    network = build(Pooled)
    network.aux.depth = nn.Identity()  # compiled, its factor breaks the graph
    if execution == "masked-dense":
        network.stage1[1] = nn.Identity()  # compiled, the reference takes no statistics of maps
    model = SparK(network, patch_size=8, decoder_width=8, execution=execution)
    images, visible = torch.randn(2, 3, 32, 32), random_visible(2, (4, 4), 0.6)
    wanted = model(images, visible).loss
    model.compile(backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(model(images, visible).loss, wanted)
