"""What only observes a network does not change what is computed, and sees packed tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparkmim import Backbone, SparK, random_visible
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, UnsupportedOperation, run

Seen = list[Any]


class Net(nn.Module):
    """A network with norm and gate; `part` may be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, 2, 1)
        self.part = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)
        return self.down(x * x.mean((2, 3), keepdim=True).sigmoid())


def model() -> SparK:
    torch.manual_seed(0)
    made = SparK(Backbone(Net(), stages=["stem", "down"]), decoder_width=32)
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter.normal_(std=0.2)
    return made


def step(made: SparK) -> list[Tensor]:
    """Loss and gradients of a step, of fixed images."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = made(images, random_visible(2, (4, 4), 0.6, torch.Generator().manual_seed(0))).loss
    loss.backward()
    return [loss.detach(), *[p.grad for p in made.parameters() if p.grad is not None]]


def on_part(method: str, observe: Callable[..., Any]) -> Callable[[SparK, Seen], Any]:
    return lambda made, seen: getattr(made.encoder.part, method)(lambda *given: seen.append(observe(*given)))


def on_output(observe: Callable[[Tensor, Seen], Any]) -> Callable[[SparK, Seen], Any]:
    """Observe the output of the part, in a forward hook."""

    def register(made: SparK, seen: Seen) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            observe(output, seen)

        return made.encoder.part.register_forward_hook(hook)  # type: ignore[union-attr]

    return register


@cache
def unobserved() -> list[Tensor]:
    return step(model())


PACKED = (2 * 6, 8, 2, 2)

HOOKS: dict[str, Callable[[SparK, Seen], Any]] = {
    "full backward hook": on_part(
        "register_full_backward_hook", lambda module, into, out: (into[0].shape, out[0].shape)
    ),
    "full backward pre-hook": on_part("register_full_backward_pre_hook", lambda module, out: out[0].shape),
    "forward hook": on_part("register_forward_hook", lambda module, args, output: output.shape),
    "forward pre-hook": on_part("register_forward_pre_hook", lambda module, args: args[0].shape),
    "hook of a stage": lambda made, seen: made.encoder.down.register_full_backward_hook(
        lambda module, into, out: seen.append(out[0].shape)
    ),
    "hook of the first stage": lambda made, seen: made.encoder.stem.register_full_backward_hook(
        lambda module, into, out: seen.append(out[0].shape)
    ),
    "hook of the model": lambda made, seen: made.register_full_backward_hook(lambda *given: seen.append(1)),
    "tensor hook": on_output(lambda output, seen: output.register_hook(lambda gradient: seen.append(gradient.shape))),
    "several tensors' hook": on_output(
        lambda output, seen: register_multi_grad_hook(
            (output, output * 1), lambda gradients: seen.append(len(gradients))
        )
    ),
    "retained gradient": on_output(lambda output, seen: (output.retain_grad(), seen.append(output))),  # type: ignore[func-returns-value]
    "properties": on_output(lambda output, seen: seen.append((output.is_leaf, output._version, output.grad_fn))),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed with respect to module")
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
def test_hooks_observe(register: Callable[[SparK, Seen], Any], checkpointed: bool) -> None:
    made, seen = model(), []  # type: ignore[var-annotated]
    made.encoder.checkpointed = checkpointed  # type: ignore[assignment]
    register(made, seen)
    state = [dict(vars(module)) for module in made.encoder.modules()]
    for ours, wanted in zip(step(made), unobserved(), strict=True):
        torch.testing.assert_close(ours, wanted)
    assert seen
    for module, attributes in zip(made.encoder.modules(), state, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items() if "hooks" in name)
    before = len(seen)
    step(made)
    assert len(seen) > before, "hooks stay where they were"


@pytest.mark.parametrize("kind", [SparseExecution, MaskedDenseExecution])
def test_gradients_that_hooks_see(kind: Callable[[PatchGrid], Any]) -> None:
    """Those of packed patches, or of the whole map; and one that a hook returns is used."""
    torch.manual_seed(0)
    network, seen = Net(), []
    images, visible = torch.randn(2, 3, 32, 32), random_visible(2, (4, 4), 0.6)
    network.part.register_full_backward_hook(lambda module, into, out: (seen.append(out[0]), (into[0] * 2,))[1])  # type: ignore[func-returns-value]
    grid = PatchGrid(visible, 6)
    execution = kind(grid)
    run(execution, network, images)[0].sum().backward()
    assert tuple(seen[0].shape) == (PACKED if kind is SparseExecution else (2, 8, 8, 8))
    doubled = network.stem.weight.grad
    network.zero_grad()
    network.part._backward_hooks.clear()
    run(kind(grid), network, images)[0].sum().backward()
    assert doubled is not None
    assert not torch.allclose(doubled, network.stem.weight.grad)  # type: ignore[arg-type]


@contextmanager
def counting(made: SparK, seen: Seen) -> Iterator[None]:
    with FlopCounterMode(display=False) as counter:
        yield
    seen.append(counter.get_total_flops())


@contextmanager
def saved(made: SparK, seen: Seen) -> Iterator[None]:
    with saved_tensors_hooks(lambda x: (seen.append(x.shape), x.clone())[1], lambda x: x):  # type: ignore[func-returns-value]
        yield


@contextmanager
def on_cpu(made: SparK, seen: Seen) -> Iterator[None]:
    seen.append(1)
    with save_on_cpu():
        yield


@contextmanager
def anomalies(made: SparK, seen: Seen) -> Iterator[None]:
    seen.append(1)
    with torch.autograd.set_detect_anomaly(True):
        yield


@contextmanager
def profiled(made: SparK, seen: Seen) -> Iterator[None]:
    with torch.autograd.profiler.profile() as profile:
        yield
    seen.extend(profile.function_events)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("around", [counting, saved, on_cpu, anomalies, profiled])
def test_contexts_observe(around: Callable[[SparK, Seen], Any], checkpointed: bool) -> None:
    made, seen = model(), []  # type: ignore[var-annotated]
    made.encoder.checkpointed = checkpointed  # type: ignore[assignment]
    with around(made, seen):
        found = step(made)
    for ours, wanted in zip(found, unobserved(), strict=True):
        torch.testing.assert_close(ours, wanted)
    assert seen


def test_hooks_on_all_modules_are_refused_by_name() -> None:
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, into, out: None)
    try:
        with pytest.raises(UnsupportedOperation, match="register_module_full_backward_hook"):
            step(model())
    finally:
        handle.remove()


def test_a_hook_that_would_not_be_called_is_refused() -> None:
    made = model()
    made.encoder.register_full_backward_hook(lambda module, into, out: None)
    with pytest.raises(UnsupportedOperation, match=r"backward hooks of Net would not be called.* on the model"):
        step(made)


# --- gradients that a network switches ------------------------------------------------------------------------------


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class NewSwish(Swish):
    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)


class Between(Net):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.stem(x)))


@pytest.mark.parametrize("function", [Swish, NewSwish])
@pytest.mark.parametrize("kind", [SparseExecution, MaskedDenseExecution])
def test_custom_functions_are_refused_by_name(function: type[Swish], kind: Callable[[PatchGrid], Any]) -> None:
    grid, images = PatchGrid(random_visible(2, (4, 4), 0.6), 6), torch.randn(2, 3, 32, 32)
    network = Between(function.apply)
    named = rf"inside a custom autograd function \({function.__name__}\).*set_swish\(memory_efficient=False\)"
    with pytest.raises(UnsupportedOperation, match=named) as caught:
        run(kind(grid), network, images)
    assert "re-entrant" not in str(caught.value)
    with torch.no_grad():  # where nothing is differentiated it is a function like others
        found = run(kind(grid), network, images)
        plain = run(kind(grid), Between(nn.functional.silu).eval(), images)
    assert found[0].shape == plain[0].shape


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return x.abs().mean((2, 3), keepdim=True)


def with_gradients(x: Tensor) -> Tensor:
    with torch.enable_grad():
        return x.abs().mean((2, 3), keepdim=True)


@pytest.mark.parametrize("gate", [without_gradients, with_gradients, lambda x: x.detach().mean((2, 3), keepdim=True)])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_may_switch_gradients(gate: Callable[[Tensor], Tensor], training: bool) -> None:
    """What is computed there is a constant to backward, as in the ordinary network."""
    backbone = Backbone(Between(lambda x: x / (gate(x) + 1)), stages=["stem", "down"])
    assert backbone.check(modes=["train" if training else "eval"], grid=(2, 3)).passed
