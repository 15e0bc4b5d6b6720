"""The same numbers however the model is run: compiled, in low precision, checkpointed, channels last, in parallel.

What needs a GPU is at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError, checkpoint

from sparkmim import Backbone, SparK, UnsupportedOperation, random_visible
from sparkmim.models.compiled import check_compilable
from sparkmim.models.config import ModelConfig
from sparkmim.pretraining.model import build_model
from sparkmim.sparse import checkpointing, dense_fallback
from sparkmim.training.memory import kept_bytes
from sparkmim.training.step import synchronized

pytestmark = pytest.mark.slow


def build(network: str | Callable[[], Backbone], dtype: torch.dtype = torch.float64, **settings: Any) -> SparK:
    torch.manual_seed(0)
    settings = {"decoder_width": 64, **settings}
    return SparK(network if isinstance(network, str) else network(), **settings).to(dtype)


def batch(images: int = 2, height: int = 64, width: int = 96, patch: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in float64 and a mask."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, height, width, generator=generator, dtype=torch.float64)
    return pixels, random_visible(images, (height // patch, width // patch), 0.6, generator)


def step(model: nn.Module, images: Tensor, visible: Tensor | None = None) -> tuple[Any, dict[str, Tensor]]:
    """The output and the gradients of one step."""
    model.zero_grad(set_to_none=True)
    out = model(images, visible)
    out.loss.backward()
    return out, {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert ours.keys() == theirs.keys()
    total = sum(g.square().sum().item() for g in theirs.values()) ** 0.5
    assert total > 0
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-3 * total), name


# --- compiled -------------------------------------------------------------------------------------------------------


def same_padding() -> Backbone:
    """Pads by F.pad before its convolutions, as TensorFlow's networks do."""
    return Backbone.create("test_efficientnet", pad_type="same")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("network", ["resnet18", "convnext_atto", same_padding])
def test_compiled_equals_eager(network: str | Callable[[], Backbone]) -> None:
    model = build(network)
    assert any(isinstance(m, timm.layers.Conv2dSame) for m in model.modules()) == (network is same_padding)
    images, visible = batch()
    keys = list(model.state_dict())
    state = copy.deepcopy(model.state_dict())
    eager, gradients = step(model, images, visible)
    running = [b.clone() for b in model.buffers()]
    model.load_state_dict(state)
    model.compile(fullgraph=True, backend="aot_eager")
    assert list(model.state_dict()) == keys
    out, ours = step(model, images, visible)
    torch.testing.assert_close(out.loss, eager.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(out.prediction, eager.prediction, rtol=1e-9, atol=1e-9)
    assert_gradients(ours, gradients)
    for buffer, wanted in zip(model.buffers(), running, strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=1e-10, atol=1e-10)
    other_images, other_visible = batch(seed=1)
    with torch.compiler.set_stance("fail_on_recompile"):
        again, ours = step(model, other_images, other_visible)
    model.load_state_dict(state)
    with torch.compiler.set_stance("force_eager"):
        eager, gradients = step(model, other_images, other_visible)
    torch.testing.assert_close(again.loss, eager.loss, rtol=1e-9, atol=0)
    assert_gradients(ours, gradients)


class Small(nn.Module):
    """Strides 4 and 8, with an activation to choose: cheap to compile."""

    def __init__(self, activation: nn.Module | Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
        self.deep = nn.Conv2d(8, 12, 3, 2, 1)
        self.activation = activation
        self.tail = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.activation(self.deep(self.stem(x))))


def small(activation: nn.Module | Callable[[Tensor], Tensor] = F.relu) -> Callable[[], Backbone]:
    return lambda: Backbone(Small(activation), ["stem", "tail"])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_with_a_random_mask() -> None:
    model = build(small())
    images, _ = batch(patch=8)
    model.compile(fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, ours = step(model, images)
    with torch.compiler.set_stance("fail_on_recompile"):
        second, _ = step(model, images)
    assert first.visible.flatten(1).sum(1).tolist() == [38, 38]
    assert not torch.equal(first.visible, second.visible), "the mask is drawn anew, not compiled in"
    with torch.compiler.set_stance("force_eager"):
        eager, gradients = step(build(small()), images, first.visible)
    torch.testing.assert_close(first.loss, eager.loss, rtol=1e-10, atol=0)
    assert_gradients(ours, gradients)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_counts_the_mask_it_is_given() -> None:
    """The number of visible patches is part of the graph, so a mask with another must not pass."""
    model = build(small())
    images, visible = batch(height=16, width=24, patch=8)
    model.compile(fullgraph=True, backend="aot_eager")
    step(model, images, visible)
    for wrong in (~visible, torch.cat([visible[:1], ~visible[1:]])):
        with pytest.raises(ValueError, match="the mask's share differs from mask_ratio"):
            model(images, wrong)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "activation",
    [
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Hardswish(inplace=True),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.SiLU(),
        nn.ChannelShuffle(2),
        F.sigmoid,
        F.tanh,
        F.relu_,
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-1.0), 3, 1),
    ],
    ids=lambda f: str(f) if isinstance(f, nn.Module) else f"F.{f.__name__}",
)
def test_compiled_activations(activation: Callable[[Tensor], Tensor]) -> None:
    """Dynamo hides some functions from modes until a run shows them, however the run was compiled."""
    model = build(small(activation))
    images, visible = batch(height=16, width=24, patch=8)
    check_compilable(model, images)
    with torch.no_grad():
        eager = model.encode(images, visible)
        encode = torch.compile(model.encode_visible, fullgraph=True, backend="eager")
        compiled = encode(images, model.mask(images, visible))
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(model.mask(images, visible).unpack(ours), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "write",
    [
        lambda x: torch.index_put_(x, (torch.tensor([0]),), torch.zeros((), dtype=x.dtype)),
        lambda x: torch._foreach_mul_([x], 2.0),
        lambda x: torch.feature_dropout_(x, 0.5, True),
    ],
    ids=["index_put_", "_foreach_mul_", "feature_dropout_"],
)
def test_compiled_refuses_writes(write: Callable[[Tensor], object], request: pytest.FixtureRequest) -> None:
    """Hidden from modes, a function that writes into a map and returns nothing of use would go unnoticed."""
    model = build(small(lambda x: x))
    encoder: Any = model.encoder
    encoder.activation = lambda x: (write(x), x)[1]
    model.checked_eagerly = encoder._sparkmim_compilable = True
    images, visible = batch(height=16, width=24, patch=8)
    encode = torch.compile(model.encode_visible, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=f"{request.node.callspec.id} cannot be carried out on visible patches"):
        encode(images, model.mask(images, visible))


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_refuses_by_name() -> None:
    """What cannot be carried out on patches is named under compilation too."""
    model = build(small(lambda x: x))
    encoder: Any = model.encoder
    encoder.activation = lambda x: x.flip(2)
    images, visible = batch(height=16, width=24, patch=8)
    with pytest.raises(UnsupportedOperation, match="flip cannot be carried out on visible patches"):
        model(images, visible)
    model.compile(fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"flip.* cannot be carried out on visible patches"):  # torch 2.11 shows pieces
        model(images, visible)


# --- in place -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", [F.relu_, lambda x: F.silu(x, inplace=True), lambda x: x.mul_(2)], ids=["relu", "silu", "mul"]
)
@pytest.mark.parametrize("patch", [8, 32])
@pytest.mark.parametrize("kernel", [1, 3, 7], ids=["pointwise", "halo", "depthwise"])
def test_in_place_after_a_convolution(kernel: int, patch: int, activation: Callable[[Tensor], Tensor]) -> None:
    """As in VGG without batch norm; each way of computing a convolution, on patches of one position and of sixteen."""

    def made(function: Callable[[Tensor], Tensor]) -> Backbone:
        network = Small(function)
        network.deep = nn.Conv2d(8, 8, kernel, 2, kernel // 2, groups=8 if kernel == 7 else 1)
        return Backbone(network, ["stem", "tail"])

    images, visible = batch(patch=patch)
    out, ours = step(build(lambda: made(activation), patch_size=patch), images, visible)
    plain, gradients = step(build(lambda: made(lambda x: activation(x.clone())), patch_size=patch), images, visible)
    torch.testing.assert_close(out.loss, plain.loss, rtol=1e-12, atol=0)
    assert_gradients(ours, gradients, 1e-12)


# --- low precision --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_autocast_is_as_exact_as_the_dense_network(name: str) -> None:
    """The error of bfloat16, measured from float64, is that of the same arithmetic on the whole image."""
    reference = build(name)
    images, visible = batch(images=4)
    wanted, gradients = step(reference, images, visible)
    errors = {}
    for execution in ("packed", "masked-dense"):
        model = build(name, torch.float32, execution=execution)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.encode(images.float(), visible)
            model.zero_grad(set_to_none=True)
            out = model(images.float(), visible)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        assert out.prediction.dtype == torch.bfloat16, "the decoder did run in low precision"
        exact = reference.encode(images, visible)
        errors[execution] = {
            **{f"map {i}": (f - e).norm() / e.norm() for i, (f, e) in enumerate(zip(features, exact, strict=True))},
            "prediction": (out.prediction - wanted.prediction).norm() / wanted.prediction.norm(),
            "gradient": distance(model, gradients),
        }
    for what, error in errors["packed"].items():
        dense = errors["masked-dense"][what]
        assert dense > 1e-4, f"{what}: without rounding there is nothing to compare"
        assert error < 1.5 * dense, what
        assert error < 0.5, what


def distance(model: SparK, gradients: dict[str, Tensor]) -> Tensor:
    """Of the model's gradients from the given ones, relative."""
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == gradients.keys()
    far = sum((ours[name] - g).square().sum() for name, g in gradients.items())
    return (far / sum(g.square().sum() for g in gradients.values())).sqrt()


# --- activation checkpointing ---------------------------------------------------------------------------------------


class KeptBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active that are alive still, but for those of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.own:
                    self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def total(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "densenet121"])
def test_checkpointing_changes_no_number_and_keeps_less(name: str) -> None:
    images, visible = batch()
    model = build(name)
    kept = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        with KeptBytes(model) as counter:
            out = model(images, visible)
        kept.append(counter.total())
        del out
        counter.storages.clear()
    assert kept[1] < 0.85 * kept[0], kept
    plain, gradients = step(build(name), images, visible)
    model = build(name)
    model.set_grad_checkpointing()
    out, ours = step(model, images, visible)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_checkpointing_updates_running_statistics_once(name: str) -> None:
    images, visible = batch()
    models = []
    for enable in (False, True):
        model = build(name).train()
        model.set_grad_checkpointing(enable)
        model(images, visible).loss.backward()
        models.append(model)
    for (key, plain), (_, checkpointed) in zip(*(model.named_buffers() for model in models), strict=True):
        assert torch.equal(plain, checkpointed), key


@pytest.mark.slow
def test_networks_that_cannot_checkpoint_say_so() -> None:
    with pytest.raises(ValueError, match="VGG cannot checkpoint activations"):
        build("vgg11_bn").set_grad_checkpointing()
    config = ModelConfig(model="vgg11_bn", patch_size=(32, 32), decoder_width=64, grad_checkpointing=True)
    with pytest.raises(ValueError, match="--grad-checkpointing on: VGG cannot"):
        build_model(config)


def test_checkpointing_as_a_setting_keeps_less() -> None:
    config = ModelConfig(model="resnet18", patch_size=(32, 32), decoder_width=32)
    plain, checkpointed = (build_model(replace(config, grad_checkpointing=enable)) for enable in (False, True))
    inputs = torch.zeros(2, 3, 64, 64), random_visible(2, (2, 2), 0.6)
    assert kept_bytes(checkpointed, inputs, "32") < 0.9 * kept_bytes(plain, inputs, "32")


def test_checkpointing_can_be_taken_back() -> None:
    model = build("convnext_atto")
    stages = [m for m in model.encoder.modules() if hasattr(m, "grad_checkpointing")]
    model.set_grad_checkpointing()
    assert any(stage.grad_checkpointing for stage in stages)
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in stages)


def test_checkpointing_of_an_ordinary_pass() -> None:
    images, visible = batch()
    model = build("convnext_atto", execution="zero-out")
    plain, gradients = step(model, images, visible)
    model.set_grad_checkpointing()
    out, ours = step(model, images, visible)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


def test_checkpointing_draws_the_same_noise_again() -> None:
    """Stochastic depth is drawn once an image, and in backward once more from the same state."""
    images, visible = batch(images=4)
    results = []
    for enable in (False, True):
        model = build(lambda: Backbone.create("convnext_atto", drop_path_rate=0.5))
        with torch.no_grad():
            for name, p in model.encoder.named_parameters():
                if name.endswith("gamma"):  # 1e-6 would hide whether a branch is dropped
                    p.fill_(0.5)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(7)
        results.append(step(model, images, visible))
    (plain, gradients), (out, ours) = results
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)
    torch.manual_seed(8)
    assert not torch.equal(model(images, visible).loss, plain.loss), "there is noise"


class Checkpointed(Small):
    """Checkpoints its last convolution by itself, once or once inside another, the old or the new way."""

    def __init__(self, depth: int, use_reentrant: bool = False) -> None:
        super().__init__()
        self.depth, self.use_reentrant = depth, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        function: Callable[[Tensor], Tensor] = lambda x: self.deep(self.activation(x))  # noqa: E731
        for _ in range(self.depth if self.training else 0):
            function = partial(checkpoint, function, use_reentrant=self.use_reentrant)
        return self.tail(function(self.stem(x)))


def checkpointed(depth: int, use_reentrant: bool = False) -> SparK:
    return build(lambda: Backbone(Checkpointed(depth, use_reentrant), ["stem", "tail"]))


def test_networks_that_checkpoint_by_themselves() -> None:
    images, visible = batch(patch=8)
    plain, gradients = step(checkpointed(0), images, visible)
    out, ours = step(checkpointed(1), images, visible)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


def test_modules_out_of_sight_within_a_checkpoint() -> None:
    images, visible = batch(patch=8)
    models = [checkpointed(depth) for depth in (0, 1)]
    for model in models:
        dense_fallback(model.encoder.deep)  # type: ignore[arg-type]
    (plain, gradients), (out, ours) = (step(model, images, visible) for model in models)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_nested_checkpoints(depth: int) -> None:
    images, visible = batch(patch=8)
    plain, gradients = step(checkpointed(0), images, visible)
    out, ours = step(checkpointed(depth), images, visible)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


def test_timms_own_checkpointing() -> None:
    images, visible = batch()
    plain, gradients = step(build("convnext_atto"), images, visible)
    model = build("convnext_atto")
    model.encoder.set_grad_checkpointing()
    out, ours = step(model, images, visible)
    assert torch.equal(out.loss, plain.loss)
    assert_gradients(ours, gradients, 1e-12)


def test_network_without_checkpointing() -> None:
    with pytest.raises(ValueError, match=r"Small has no set_grad_checkpointing; let it call torch.utils.checkpoint"):
        build(small()).set_grad_checkpointing()


def test_reentrant_checkpointing_is_refused() -> None:
    """It computes without gradients first and later again where nothing is known of patches: silently wrong."""
    images, visible = batch(patch=8)
    with pytest.raises(UnsupportedOperation, match=r"as re-entrant checkpointing does .*use_reentrant=False works"):
        checkpointed(1, use_reentrant=True)(images, visible)


def test_checkpointing_out_of_sight_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should torch hide its record of a checkpoint one day, what is computed again has other shapes, and it says so."""
    images, visible = batch(patch=8)
    monkeypatch.setattr(checkpointing, "_innermost_checkpoint", lambda: None)
    loss = checkpointed(1)(images, visible).loss
    with pytest.raises(CheckpointError):
        loss.backward()
    monkeypatch.setattr(checkpointing, "_innermost_checkpoint", object)
    with pytest.raises(UnsupportedOperation, match=r"the engine does not know checkpoints in the form of torch"):
        checkpointed(1)(images, visible)


# --- memory format, reproducibility, waiting ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@pytest.mark.parametrize("what", ["images", "weights", "both"])
def test_channels_last(name: str, what: str) -> None:
    images, visible = batch()
    wanted, gradients = step(build(name), images, visible)
    model = build(name)
    if what != "weights":
        images = images.to(memory_format=torch.channels_last)
    if what != "images":
        model = model.to(memory_format=torch.channels_last)
    out, ours = step(model, images, visible)
    torch.testing.assert_close(out.loss, wanted.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(out.prediction, wanted.prediction, rtol=1e-9, atol=1e-9)
    assert_gradients(ours, gradients)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_efficientnet"])
def test_gradients_are_reproducible(name: str) -> None:
    images, visible = batch(images=3)
    first, ours = step(build(name, torch.float32), images.float(), visible)
    second, again = step(build(name, torch.float32), images.float(), visible)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(ours[parameter], again[parameter]) for parameter in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_step_reads_nothing_back(name: str) -> None:
    """On tensors without data, reading one (`item`, `nonzero`, indexing with a mask) raises."""
    fake, real = FakeTensorMode(), SparK(name, decoder_width=64)
    with FakeCopyMode(fake):
        model = copy.deepcopy(real)
    with fake:
        images = torch.randn(2, 3, 64, 96)
        out = model(images)
        out.loss.backward()
        assert out.loss.shape == ()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        if name == "resnet18":  # the oracle's batch norm picks the visible positions out: the trap does close
            model.execution = "masked-dense"
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                model(images)


# --- many processes -------------------------------------------------------------------------------------------------


class Headed(nn.Module):
    """A head of its own parameters that no map depends on, as VGG's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(2, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


class Gated(nn.Module):
    """Batch norm of maps and, in the gate, of values that exist once an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Sigmoid()
        )
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12))
        self.tail = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.tail(self.deep(x * self.gate(x)))


def convnext() -> SparK:
    model = build("convnext_atto")
    model.decoder.eval()  # its batch norm would see other images on each process
    return model


def headed() -> SparK:
    model = build(lambda: Backbone(Headed(), ["stem", "deep"]))
    model.decoder.eval()
    return model


MODELS: dict[str, tuple[Callable[[], SparK], int]] = {
    "convnext": (convnext, 32),
    "headed": (headed, 8),
    "gated": (lambda: build(lambda: Backbone(Gated(), ["stem", "tail"])), 8),
    "efficientnet": (lambda: build("test_efficientnet"), 32),
}


class GlooSyncBatchNorm(torch.autograd.Function):
    """Synchronized batch norm for processes without a GPU, from its definition."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
        eps: float, momentum: float, group: Any, world: int,
    ) -> Tensor:  # fmt: skip
        axes = [0, *range(2, x.ndim)]
        count = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype)
        sums = torch.cat([x.sum(axes), x.square().sum(axes), count])
        torch.distributed.all_reduce(sums, group=group)
        total, squares, n = sums.split([x.shape[1], x.shape[1], 1])
        mean = total / n
        variance = squares / n - mean.square()
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * n / (n - 1), momentum)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (variance + eps).rsqrt()
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, n)
        ctx.group = group
        return normal * weight.view(shape) + bias.view(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        normal, weight, scale, n = ctx.saved_tensors
        axes = [0, *range(2, gradient.ndim)]
        shape = (1, -1, *[1] * (gradient.ndim - 2))
        of_bias, of_weight = gradient.sum(axes), (gradient * normal).sum(axes)
        both = torch.stack([of_bias, of_weight])
        torch.distributed.all_reduce(both, group=ctx.group)
        centered = gradient - (both[0] / n).view(shape) - normal * (both[1] / n).view(shape)
        return centered * (weight * scale).view(shape), of_weight, of_bias, None, None, None, None, None, None


def synchronize_without_gpu() -> None:
    """Let nn.SyncBatchNorm run on the CPU: it asks for a GPU, or for a device of the name given here."""
    torch.nn.modules.batchnorm.sync_batch_norm = GlooSyncBatchNorm  # type: ignore[assignment, misc]
    ordinary = nn.SyncBatchNorm.forward

    def forward(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        with mock.patch.object(torch._C, "_get_privateuse1_backend_name", return_value="cpu"):
            return ordinary(self, x)

    nn.SyncBatchNorm.forward = forward  # type: ignore[assignment, method-assign]


def share(name: str, rank: int) -> tuple[Tensor, Tensor]:
    """Two of the four images for each process."""
    images, visible = batch(images=4, patch=MODELS[name][1])
    return images[2 * rank : 2 * rank + 2], visible[2 * rank : 2 * rank + 2]


def process(rank: int, folder: str) -> None:
    """One of two processes: runs every case and leaves its results in `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name in ("convnext", "headed"):
        model: Any = MODELS[name][0]()
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # a parameter without a gradient is noticed at the second pass
            out, gradients = step(parallel, *share(name, rank))
        gradients = {parameter.removeprefix("module."): g for parameter, g in gradients.items()}
        results[name] = {"loss": out.loss.detach(), "gradients": gradients}
    model = headed()
    model.requires_grad_(True)
    parallel = DistributedDataParallel(model)
    try:
        for _ in range(2):
            step(parallel, *share("headed", rank))
    except RuntimeError as error:
        results["noticed"] = str(error)

    synchronize_without_gpu()
    for name in ("gated", "efficientnet"):
        model = synchronized(MODELS[name][0]())
        if name == "efficientnet":
            model.set_grad_checkpointing()
        out, gradients = step(model, *share(name, rank))
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
        results[name] = {
            "loss": out.loss.detach(),
            "gradients": {parameter: gradient / 2 for parameter, gradient in gradients.items()},
            "buffers": dict(model.named_buffers()),
            "synchronized": sum(isinstance(m, nn.SyncBatchNorm) for m in model.encoder.modules()),
        }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_equal_one(name: str, two_processes: list[dict[str, Any]]) -> None:
    make, patch = MODELS[name]
    model = make()
    out, gradients = step(model, *batch(images=4, patch=patch))
    first, second = (results[name] for results in two_processes)
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, out.loss, rtol=1e-10, atol=0)
    assert not torch.equal(first["loss"], second["loss"]), "each had images of its own"
    for results in (first, second):
        assert_gradients(results["gradients"], gradients)


@pytest.mark.parametrize("name", ["gated", "efficientnet"])
def test_synchronized_running_statistics(name: str, two_processes: list[dict[str, Any]]) -> None:
    """Of maps over all visible positions, of pooled values over all images, with the right degrees of freedom."""
    make, patch = MODELS[name]
    model = make()
    before = {buffer: value.clone() for buffer, value in model.named_buffers()}
    step(model, *batch(images=4, patch=patch))
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.encoder.modules())
    for results in two_processes:
        assert results[name]["synchronized"] == norms
        assert results[name]["buffers"].keys() == before.keys()
        for buffer, value in model.named_buffers():
            assert not torch.equal(value, before[buffer]) or "conv_head" in buffer or "bn2" in buffer, buffer
            torch.testing.assert_close(results[name]["buffers"][buffer], value, rtol=1e-9, atol=1e-9, msg=buffer)


def test_unreached_parameters_would_be_noticed(two_processes: list[dict[str, Any]]) -> None:
    """What :func:`test_two_processes_equal_one` says of a head depends on its being left out."""
    for results in two_processes:
        assert "Expected to have finished reduction in the prior iteration" in results["noticed"]


# --- on a GPU -------------------------------------------------------------------------------------------------------

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_gpu = pytest.mark.parametrize("name", [pytest.param(n, marks=gpu) for n in ("resnet18", "convnext_atto")])


@on_gpu
def test_gpu_equals_cpu(name: str) -> None:
    images, visible = batch()
    wanted, gradients = step(build(name), images, visible)
    for mask in (visible, visible.cuda()):
        out, ours = step(build(name).cuda(), images.cuda(), mask)
        torch.testing.assert_close(out.prediction.cpu(), wanted.prediction, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(out.loss.cpu(), wanted.loss, rtol=1e-9, atol=0)
        assert_gradients({parameter: g.cpu() for parameter, g in ours.items()}, gradients, 1e-7)


@on_gpu
def test_gpu_mask_of_a_generator(name: str) -> None:
    """A generator lives where it was made; the mask goes where the images are."""
    model = SparK(name, decoder_width=64).cuda()
    images, _ = batch()
    out = model(images.float().cuda(), generator=torch.Generator().manual_seed(5))
    assert out.visible.is_cuda
    assert torch.equal(out.visible.cpu(), random_visible(2, (2, 3), 0.6, torch.Generator().manual_seed(5)))
    on_device = random_visible(2, (2, 3), 0.6, torch.Generator("cuda").manual_seed(5))
    assert on_device.is_cuda


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_gpu_is_never_waited_for(name: str) -> None:
    model = SparK(name, decoder_width=64).cuda()
    images, visible = batch()
    images, visible = images.float().cuda(), visible.pin_memory()
    step(model, images, visible)  # libraries are set up and algorithms chosen at the first pass
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(model, images, visible)
        step(model, images)
        with pytest.raises(RuntimeError, match="synchronizing"):
            images.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_gpu_gradients_are_reproducible(name: str) -> None:
    images, visible = batch(images=8)
    images, visible = images.float().cuda(), visible.cuda()
    previous = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        first, ours = step(build(name, torch.float32).cuda(), images, visible)
        second, again = step(build(name, torch.float32).cuda(), images, visible)
    finally:
        torch.backends.cudnn.deterministic = previous
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(ours[parameter], again[parameter]) for parameter in ours)


@on_gpu
@pytest.mark.usefixtures("fresh_dynamo")
def test_gpu_compiled_in_bfloat16(name: str) -> None:
    images, visible = batch(images=4)
    wanted, gradients = step(build(name), images, visible)
    model = build(name, torch.float32).cuda().to(memory_format=torch.channels_last)
    model.compile(fullgraph=True)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        out = model(images.float().cuda(), visible.cuda())
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(wanted.loss.item(), rel=0.02)
    assert distance(model.cpu(), gradients) < 0.5
