"""What eager refuses is refused compiled, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import UnsupportedOperation

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.down, self.function = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.stem(x)))


def model(function: Callable[[Tensor], Tensor]) -> SparK:
    torch.manual_seed(0)
    return SparK(Backbone(Between(function), stages=["stem", "down"]), decoder_width=16)


REFUSED = {
    "product with a size": lambda x: x * x.shape[2],
    "mean by hand": lambda x: x + x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]),
    "branch": lambda x: x * 2 if x.shape[2] > 12 else x,
    "branch on the batch": lambda x: x * 2 if len(x) == 3 else x,
    "no rule": lambda x: x.roll(1, 2),
}


def never_compiled(graph: object, inputs: object) -> None:
    raise AssertionError("compiled what should have been refused")


@pytest.fixture(autouse=True)
def no_memory() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused_or_right(function: Callable[[Tensor], Tensor]) -> None:
    """Right where Dynamo itself can be: never another number than eagerly."""
    images, visible = torch.randn(3, 3, 64, 64), random_visible(3, (8, 8), 0.6)
    eager, compiled = model(function).eval(), model(function).eval()
    compiled.compile(backend="eager")
    with torch.no_grad():
        try:
            wanted = eager(images, visible).loss
        except UnsupportedOperation:
            with pytest.raises(UnsupportedOperation):
                compiled(images, visible)
            return
        try:
            found = compiled(images, visible).loss
        except UnsupportedOperation:
            return
    torch.testing.assert_close(found, wanted)


PICKING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "mean over space": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Sigmoid()),
    "mirroring": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("build", PICKING.values(), ids=PICKING.keys())
def test_reference_that_picks_out_positions_is_refused_before_it_is_compiled(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = build()
    network = Between(lambda x: x + layer(x))
    network.layer = layer
    reference = SparK(Backbone(network, stages=["stem", "down"]), decoder_width=16, execution="masked-dense")
    reference.compile(backend=never_compiled)
    images, visible = torch.randn(2, 3, 64, 64), random_visible(2, (8, 8), 0.6)
    with pytest.raises(UnsupportedOperation, match="Between cannot be compiled with execution='masked-dense'"):
        reference(images, visible)
    reference._compiled_call_impl = None
    reference(images, visible)  # as the error says


def group_norm_by_view(x: Tensor) -> Tensor:
    groups = x.view(x.shape[0], 2, -1)
    variance, mean = torch.var_mean(groups, -1, keepdim=True)
    return ((groups - mean) / (variance + 1e-5).sqrt()).view(x.shape)


def tokens(x: Tensor) -> Tensor:
    normalized = F.layer_norm(x.permute(0, 2, 3, 1).reshape(-1, 8), (8,))
    return normalized.view(x.shape[0], x.shape[2], x.shape[3], 8).permute(0, 3, 1, 2)


def upsampled(x: Tensor, **options: Any) -> Tensor:
    return x + F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], **options)


MERGED = (
    group_norm_by_view,
    tokens,
    lambda x: x.flatten(0, 1).relu().view(x.shape) + x,
    lambda x: x * x.flatten(1).std(1)[:, None, None, None],
    lambda x: x.reshape(1, -1, x.shape[2], x.shape[3]).tanh().reshape(x.shape),
)
RESAMPLED = (
    upsampled,
    partial(upsampled, mode="bilinear", align_corners=False),
    lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), 2),
    lambda x: x + F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), scale_factor=2),
    lambda x: x + F.interpolate(F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2)), scale_factor=2),
    lambda x: x * x.mean((1, 2, 3)).view(-1, 1, 1, 1),
)


def in_order(functions: tuple[Function, ...]) -> Function:
    return lambda x: reduce(lambda value, function: function(value), functions, x)


def stepped(network: SparK, images: Tensor, visible: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    loss = network(images, visible).loss
    loss.backward()
    return loss.detach(), [p.grad for p in network.encoder.parameters() if p.grad is not None]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("functions", [MERGED, RESAMPLED], ids=["merged", "resampled"])
def test_idioms_are_the_same_compiled(functions: tuple[Function, ...]) -> None:
    """Several in one network, which costs one compilation."""
    images, visible = torch.randn(3, 3, 64, 64), random_visible(3, (8, 8), 0.6)
    eager, compiled = model(in_order(functions)), model(in_order(functions))
    compiled.compile(backend="eager")
    torch.testing.assert_close(
        stepped(compiled, images, visible), stepped(eager, images, visible), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * (torch.rand(len(x)) + 0.5).view(-1, 1, 1, 1),
        lambda x: x * torch.arange(x.shape[0]).view(-1, 1, 1, 1),
        lambda x: x * x.new_empty(x.shape[0]).fill_(0.5).view(-1, 1, 1, 1),
        lambda x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]),
        lambda x: x / (x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1),
    ],
    ids=["noise of images", "numbers of images", "new vector of images", "expanded", "norm of an image"],
)
def test_what_only_eager_follows_is_refused_in_words(function: Function) -> None:
    """A compiler tells the number of patches for that of images; no error of its own stands for the refusal."""
    images, visible = torch.randn(3, 3, 64, 64), random_visible(3, (8, 8), 0.6)
    eager, compiled = model(function).eval(), model(function).eval()
    compiled.compile(backend="eager")
    with torch.no_grad():
        assert eager(images, visible).loss.isfinite()
        with pytest.raises(UnsupportedOperation, match="cannot be carried out on visible patches"):
            compiled(images, visible)


def test_each_shape_is_checked() -> None:
    """A branch that only large maps take is found when they come."""
    compiled = model(lambda x: x * 2 if x.shape[2] > 12 else x).eval()
    compiled.compile(backend=never_compiled)
    with torch.no_grad():
        with pytest.raises(UnsupportedOperation, match="decides by the sizes of its maps"):
            compiled(torch.randn(2, 3, 64, 64))


@pytest.mark.usefixtures("fresh_dynamo")
def test_other_shapes_are_compiled_anew() -> None:
    """Dynamo would make a graph of any shape of the second one, which cannot be: it counts visible patches."""
    eager, compiled = model(nn.Identity()), model(nn.Identity())
    compiled.compile(backend="eager")
    for shape in ((2, 3, 32, 32), (3, 3, 32, 32), (3, 3, 48, 32)):
        images = torch.randn(shape)
        visible = random_visible(len(images), eager.grid_shape(shape[2:]), 0.6)
        torch.testing.assert_close(compiled(images, visible).loss, eager(images, visible).loss)
    with pytest.raises(ValueError, match="leave dynamic out"):
        compiled.compile(dynamic=True)


def test_nothing_is_changed_by_the_eager_passes() -> None:
    made = SparK(Backbone(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(0.1))), decoder_width=16)
    made._compiled_call_impl = None
    made.compile(backend="eager")
    made._compiled_call_impl.compiled = lambda images: None  # type: ignore[union-attr, attr-defined]
    state, random = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    made(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in made.state_dict().items())


def test_masks_are_counted_before_the_graph() -> None:
    """What is left in the graph may be captured as a CUDA graph: no assertion, and no tensor made of Python numbers."""
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, inputs: object) -> Any:
        graphs.append(graph)
        return graph

    images, visible = torch.randn(3, 3, 64, 64), random_visible(3, (8, 8), 0.6)
    compiled = model(lambda x: x.relu())
    compiled.compile(backend=kept, fullgraph=True)
    with torch.no_grad():
        wanted = model(lambda x: x.relu())(images, visible).loss
        torch.testing.assert_close(compiled(images, visible).loss, wanted)
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(images, visible=visible.flip(1))
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op.startswith("call")]
    assert not [name for name in called if "assert" in name or name == "tolist"]
    with pytest.raises(ValueError, match="visible must be a bool tensor of shape"):
        compiled(images, torch.ones(3, 4, 4, dtype=torch.bool))
    for wrong in (~visible, torch.cat([visible[:2], ~visible[2:]])):
        with pytest.raises(ValueError, match=r"the mask's share differs from mask_ratio 0\.6"):
            compiled(images, wrong)
