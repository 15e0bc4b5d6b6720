"""A network is left as it was by whatever is found out about it, and what cannot be used is refused beforehand."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import FixedClassifier, conv_norm_relu
from sparkmim import Backbone, SparK, random_visible
from sparkmim.models.dataflow import Dataflow

STAGES = FixedClassifier.stages
FILES_OWN: dict[tuple[int, ...], Tensor] = {}


@functools.lru_cache
def remembered(size: int) -> Tensor:
    return torch.linspace(-1, 1, size)


class Hoarder(nn.Module):
    """Keeps whatever it can: features, counts, caches of its own and of its file; and draws noise."""

    table: dict[tuple[int, ...], Tensor] = {}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_norm_relu(3, 4, 4), conv_norm_relu(4, 8, 2)
        self.calls, self.history, self.cache = 0, [], {}  # type: ignore[var-annotated]
        self.constant = torch.ones(1, 4, 1, 1)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.features = x = self.one(x) * self.constant
        self.history.append(x)
        for cache in (self.cache, self.table, FILES_OWN):
            cache[tuple(x.shape)] = x.detach()
        noise = torch.rand(1) + random.random() + float(np.random.rand()) + torch.randn_like(x).mean()  # noqa: NPY002
        return self.two(x + 0 * noise + 0 * remembered(x.shape[-1]))


def states(network: Hoarder) -> list[Any]:
    generators = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    own = [network.calls, len(network.history), len(network.cache), hasattr(network, "features"), len(network.table)]
    tensors = [value.tolist() for value in network.state_dict().values()]
    return [generators, own, len(FILES_OWN), remembered.cache_info().currsize, tensors]


@pytest.mark.parametrize("computed", [False, True])
def test_probing_leaves_no_trace(computed: bool) -> None:
    network = Hoarder().train()
    if computed:  # reading a value cannot be done without one
        network.one.register_forward_hook(lambda module, args, output: output * float(output.sum() > -1e9))
    remembered.cache_clear()
    before = states(network)
    backbone = Backbone(network)
    assert backbone._probe.computes == computed
    backbone.unreached_parameters()
    backbone.unreached_tensors()
    assert states(network) == before
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    copy.deepcopy(network)


USES: dict[str, Callable[[nn.Module], object]] = {
    "trace": lambda network: torch.jit.trace(network.eval(), torch.zeros(1, 3, 56, 56)),
    "script": lambda network: torch.jit.script(network.stem),
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stages", [STAGES, ["wide:input", "deep:input", "deep"]], ids=str)
@pytest.mark.parametrize("use", USES)
def test_network_carries_no_hooks(use: str, stages: list[str], network: FixedClassifier) -> None:
    model = SparK(Backbone(network, stages), decoder_width=32)
    model(torch.randn(2, 3, 32, 32)).loss.backward()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    model.zero_grad()
    USES[use](network)


@pytest.mark.parametrize("stages", [STAGES, ["wide:input", "deep"]], ids=str)
def test_threads_share_a_model(stages: list[str], network: FixedClassifier) -> None:
    model = SparK(Backbone(network, stages), decoder_width=32).eval()
    batches = [torch.randn(2, 3, 32, 32) for _ in range(3)]
    visible = random_visible(2, (4, 4), 0.5)
    wanted = [model(images, visible).loss.item() for images in batches]
    found: list[list[float]] = [[] for _ in batches]

    def work(number: int) -> None:
        for _ in range(5):
            found[number].append(model(batches[number], visible).loss.item())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[loss] * 5 for loss in wanted]
    if "torch._dynamo" in sys.modules:  # what threads set must not stay
        assert torch._dynamo.eval_frame._stance.stance == "default"


def test_replicas_run_their_own_weights(network: FixedClassifier) -> None:
    """As torch.nn.DataParallel makes them: shallow copies that share everything but modules and parameters."""
    model = SparK(Backbone(network, STAGES), decoder_width=32).eval()
    replica = copy.copy(model)
    replica.__dict__["_modules"] = {**model._modules, "encoder": copy.deepcopy(network)}
    with torch.no_grad():
        for p in replica.encoder.parameters():
            p.zero_()
    images, visible = torch.randn(2, 3, 32, 32), random_visible(2, (4, 4), 0.5)
    assert all(m.count_nonzero() == 0 for m in replica.encode(images, visible))
    assert any(m.count_nonzero() for m in model.encode(images, visible))


def test_another_encoder_is_refused(network: FixedClassifier) -> None:
    model = SparK(Backbone(network, STAGES), decoder_width=32)
    with pytest.raises(AttributeError, match=r"encoder of a SparK model cannot be replaced.*load_state_dict"):
        model.encoder = copy.deepcopy(network)
    model.encoder = network


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(3, 32, 32),
            r"images of shape \(batch, 3, height, width\), got \(3, 32, 32\); images\[None",
        ),
        (torch.zeros(2, 3, 1, 32, 32), "image size 1 x 32 x 32 is not divisible by the patch size 8 x 8"),
        (torch.zeros(0, 3, 32, 32), r"expected at least one image, .* got \(0, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"expected images of torch.float32, got torch.uint8; scale"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.float64),
            r"float32, as the network's parameters are, got torch.f",
        ),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16), r"got torch.bfloat16; use images.to\(torch.float32\)"),
    ],
)
def test_images_that_do_not_fit(images: Tensor, message: str, network: FixedClassifier) -> None:
    model = SparK(Backbone(network, STAGES), decoder_width=32)
    with pytest.raises(ValueError, match=message):
        model(images)


def test_other_precisions(network: FixedClassifier) -> None:
    double = SparK(Backbone(network.double(), STAGES), decoder_width=32)
    assert torch.isfinite(double(torch.randn(2, 3, 32, 32, dtype=torch.float64)).loss)
    model = SparK(Backbone(network.float(), STAGES), decoder_width=32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).loss)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"parameters of FixedClassifier are {dtype}; .*network.float\(\)"):
            SparK(Backbone(copy.deepcopy(network).to(dtype), STAGES))


@pytest.mark.filterwarnings("ignore")
def test_modules_that_hide_their_inside() -> None:
    part = nn.Conv2d(4, 4, 3, padding=1)
    for hidden in (torch.jit.script(part), torch.jit.trace(part, torch.zeros(1, 4, 8, 8))):
        network = nn.Sequential(conv_norm_relu(3, 4, 4), nn.Sequential(nn.ReLU(), hidden))
        with pytest.raises(ValueError, match=r"module '1.1' of Sequential is a scripted or traced one"):
            Backbone(network)
    with pytest.raises(ValueError, match=r"the network is a scripted or traced one \(torch.jit\)"):
        Backbone(torch.jit.script(part))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_modules_ask_to_be_run() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3, 4, 1), nn.ReLU())
    with pytest.raises(ValueError, match=r"parameter '0.weight' of Sequential has no shape yet.*run the network once"):
        Backbone(network)
    network(torch.zeros(1, 3, 224, 224))
    assert Backbone(network).levels == [(4, (4, 4))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_part_is_a_stage() -> None:
    network = nn.Sequential(conv_norm_relu(3, 4, 4), conv_norm_relu(4, 8, 2))
    network[1] = torch.compile(network[1], backend="eager")  # type: ignore[assignment]
    backbone = Backbone(network)
    assert backbone.stages == ["0", "1"]
    assert backbone.check(modes=["eval"]).passed


def test_network_without_maps_of_images_of_any_size() -> None:
    sentence = "vit_tiny_patch16_224 does not give feature maps of images of any size .*expected a conv"
    with pytest.raises(ValueError, match=sentence):
        SparK("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("stem:inputs", "stage 'stem:inputs' is not understood; after the colon stands input, call"),
        ("stem:frobnicate[0]", "is not understood"),
        ("stme:input", "no submodule 'stme'; the nearest are stem"),
        (":relu[3]", r"does not call :relu\[3\]"),
    ],
)
def test_stages_that_are_not_there(stage: str, message: str, network: FixedClassifier) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(network, [stage])


# --- how many axes --------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))
        self.body = nn.Sequential(conv_norm_relu(3, 4, 4), conv_norm_relu(4, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.scale.mean())


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 4, 8), (2, 8, 3, 4, 4), (3, 1)])
def test_convolutions_tell_dims(shape: tuple[int, ...]) -> None:
    assert Backbone(Scaled(shape)).dims == 2


class Functional(nn.Module):
    """Weights without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weight = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.randn(8, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x * self.scale, self.weight, None, 4)


def test_dims_may_be_given() -> None:
    assert Backbone(Functional(), dims=2).levels == [(8, (4, 4))]
    assert Backbone(Functional()).dims == 2
    with pytest.raises(ValueError, match="dims=3, but the network takes images of 2"):
        SparK(Backbone(Functional()), dims=3)
    with pytest.raises(ValueError, match="dims is the number of spatial dimensions, 1, 2 or 3, not 4"):
        Backbone(Functional(), dims=4)


# --- the graph ------------------------------------------------------------------------------------------------------


def test_nodes_on_every_way() -> None:
    x = torch.ones(3, requires_grad=True)
    start = x * 2
    left, right = start.sin(), start.cos()
    joined = left + right
    end = joined.exp()
    found = Dataflow([end.grad_fn], id(x)).on_every_way(end.grad_fn)
    assert {start.grad_fn, joined.grad_fn, end.grad_fn} <= found
    assert not found & {left.grad_fn, right.grad_fn}
