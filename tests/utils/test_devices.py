"""What is set on a device where a run starts, and how batches are copied there, on a faked GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sparkmim.pretraining.config import RunConfig
from sparkmim.training import run
from sparkmim.utils.devices import CopyStream, choose_algorithms, shapes_that_vary


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("measure", [True, False])
def test_algorithms_are_measured_on_cuda(measure: bool) -> None:
    for device, wanted in (("cpu", not measure), ("cuda", measure)):
        torch.backends.cudnn.benchmark = not measure
        choose_algorithms(torch.device(device), measure=measure)
        assert torch.backends.cudnn.benchmark is wanted


@pytest.mark.parametrize("measure", [True, False])
def test_a_run_measures_them_unless_it_is_told_not_to(measure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launched:
        def __init__(self, **settings: Any) -> None:
            assert torch.backends.cudnn.benchmark is measure
            assert settings["accelerator"] == "cuda"

        def launch(self) -> None:
            pass

    torch.backends.cudnn.benchmark = not measure
    monkeypatch.setattr(run, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(run, "Fabric", Launched)
    assert RunConfig(batch_size=8).cudnn_benchmark
    run.launch(RunConfig(batch_size=8, cudnn_benchmark=measure))


def test_evaluations_do_not_measure() -> None:
    torch.backends.cudnn.benchmark = True
    with shapes_that_vary():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


class Stream:
    """A stream that writes down what waits for it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Pinned:
    """A tensor of pinned memory, whose copy writes down the stream that makes it."""

    device = torch.device("cpu")

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def is_pinned(self) -> bool:
        return True

    def to(self, device: torch.device, *, non_blocking: bool) -> Pinned:
        assert non_blocking
        self.log.append(f"copy to {device}")
        return self

    def record_stream(self, stream: Stream) -> None:
        self.log.append(f"used on {stream.name}")


def test_pinned_batches_are_copied_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    made: list[Stream] = []

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append(f"off {stream.name}")

    def make(device: torch.device) -> Stream:
        made.append(Stream(log, "copies"))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(log, "computing"))
    move = CopyStream("cuda:0")
    batch: Any = Pinned(log)
    assert move(batch) is batch
    once = ["on copies", "copy to cuda:0", "off copies", "computing waits for copies", "used on computing"]
    assert log == once
    move(batch)
    assert log == 2 * once
    assert len(made) == 1


def test_other_copies_are_plain() -> None:
    tensor = torch.arange(3)
    move = CopyStream("cpu")
    assert move(tensor) is tensor
    assert move.stream is None
    assert CopyStream("meta")(tensor).device.type == "meta"
