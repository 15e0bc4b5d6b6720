"""Compiled training: one graph for the whole run, and a run that goes on where the network cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager

from helpers import STEPS, TINY_PRETRAIN, assert_same_training, interrupt_at, make_images, numbers, printed, record
from sparkmim import SparK
from sparkmim.objectives.pixels import Pixels
from sparkmim.pretraining.config import RunConfig
from sparkmim.pretraining.run import pretrain
from sparkmim.training.compile import STEPS_THAT_PAY, compilation
from sparkmim.utils.fields import validate_as


def broken(*_: object) -> Any:
    raise RuntimeError("this cannot\n\nbe compiled")


BROKEN = {
    "forward": broken,
    "backward": aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=broken),
}


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Sets what compiles models in place of Inductor, which takes its time."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        pytest.skip("older Dynamos cannot trace all that the engine does; README and docs/concepts/engine.md say so")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    compile_model = SparK.compile

    def use(backend: Any) -> None:
        monkeypatch.setattr(SparK, "compile", lambda self, **how: compile_model(self, backend=backend, **how))

    yield use
    torch._dynamo.reset()


@pytest.mark.slow
def test_one_graph_for_the_whole_run(
    tmp_path: Path,
    images: Path,
    compile_with: Callable[[Any], None],
    uninterrupted: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Masks change, held-out batches are smaller and in evaluation mode, reconstructions are drawn: nothing of it is
    compiled anew."""
    compile_with(aot_eager)
    settings = {"data": images, "val_data": make_images(tmp_path / "val", 7, seed=1), "val_every": 0.4}
    settings |= {"accumulate": 2, "pictures": STEPS}
    run = tmp_path / "run"
    printed(pretrain, run, chosen=TINY_PRETRAIN | settings | {"compile": "try"})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(numbers(run)) == STEPS
    eager = numbers(uninterrupted(**settings))
    assert numbers(run)[0] == pytest.approx(eager[0], rel=1e-4)
    assert numbers(run)[-1] == pytest.approx(eager[-1], rel=1e-2)  # differences of rounding grow
    assert "not compiled" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("where", "accumulate"), [("forward", 1), ("backward", 2)])
def test_what_cannot_be_compiled_is_trained_all_the_same(
    where: str,
    accumulate: int,
    tmp_path: Path,
    images: Path,
    compile_with: Callable[[Any], None],
    uninterrupted: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And continued: bit by bit the run that was never to be compiled, with one line about it each time."""
    compile_with(BROKEN[where])
    run = tmp_path / "run"
    settings = TINY_PRETRAIN | {"data": images, "accumulate": accumulate, "compile": "try"}
    outcome = printed(pretrain, run, chosen=settings, after_step=interrupt_at(4))
    assert outcome is not None
    assert outcome.step == 4
    printed(pretrain, run)
    assert_same_training(run, uninterrupted(accumulate=accumulate))
    told = [line for line in capsys.readouterr().out.splitlines() if "not compiled" in line]
    assert len(told) == 2
    assert all("this cannot be compiled" in line and "continuing without" in line for line in told)


@pytest.mark.slow
def test_compilation_that_is_asked_for_must_succeed(
    tmp_path: Path, images: Path, compile_with: Callable[[Any], None]
) -> None:
    compile_with(broken)
    with pytest.raises(RuntimeError, match=r"(?s)this cannot.*be compiled"):
        pretrain(tmp_path / "run", chosen=TINY_PRETRAIN | {"data": images, "compile": "on"})


@pytest.mark.slow
def test_other_errors_are_told_as_they_are(
    tmp_path: Path, images: Path, compile_with: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(aot_eager)
    monkeypatch.setattr(Pixels, "compare", lambda self, decoded, images, grid, has_data: images.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        pretrain(tmp_path / "run", chosen=TINY_PRETRAIN | {"data": images, "compile": "try"})


@pytest.mark.slow
def test_a_plan_tells_it(tmp_path: Path, images: Path, compile_with: Callable[[Any], None]) -> None:
    compile_with(broken)
    told: list[str] = []
    record(told, pretrain, tmp_path / "run", plan=True, chosen=TINY_PRETRAIN | {"data": images, "compile": "try"})
    assert any("compiled if the network can be" in line for line in told)
    assert any("not compiled (" in line and "this cannot be compiled" in line for line in told)


def test_recipes_try_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0+cu130"))
    assert compilation(cuda, STEPS_THAT_PAY, 1) == "try"
    assert compilation(cuda, STEPS_THAT_PAY - 1, 1) == "off"
    assert compilation(cuda, STEPS_THAT_PAY, 2) == "off"
    assert compilation(cpu, STEPS_THAT_PAY, 1) == "off"
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    assert compilation(cuda, STEPS_THAT_PAY, 1) == "off"


def test_a_switch_is_understood() -> None:
    """As earlier versions recorded it, and as it is called from Python."""
    assert RunConfig(batch_size=1, compile=True).compile == "on"  # type: ignore[arg-type]
    assert RunConfig(batch_size=1, compile=False).compile == "off"  # type: ignore[arg-type]
    validate_as(RunConfig, compile=True)
    with pytest.raises(ValueError, match="--compile is off or on or try, not yes"):
        validate_as(RunConfig, compile="yes")
