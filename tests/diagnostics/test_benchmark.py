"""`sparkmim benchmark`: a table of what was measured, arithmetic that is right, and mistakes found first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sparkmim import SparK
from sparkmim.cli import main
from sparkmim.commands.benchmark import command as benchmark
from sparkmim.diagnostics.benchmark.measure import forward_flops, peak_bytes
from sparkmim.diagnostics.benchmark.run import benchmark as measure
from sparkmim.diagnostics.benchmark.step import Step

CPU = torch.device("cpu")


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.md"
    code = benchmark(
        "test_resnet", image_size=64, batch_size=2, decoder_width=32, rounds=2, device="cpu", output=output
    )
    assert code == 0
    text = output.read_text()
    assert text.split("\n\n", 2)[2].strip() in capsys.readouterr().out
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    rows = {name: cells for name, *cells in split if set(name) != {"-"}}
    assert list(rows) == ["execution", "packed", "masked-dense", "plain dense (zero-out)"]
    arithmetic = {name: float(cells[-2].split()[0]) for name, cells in rows.items() if name != "execution"}
    assert arithmetic["packed"] < arithmetic["masked-dense"]
    for name, cells in rows.items():
        if name != "execution":
            assert all(float(cell) > 0 for cell in cells[:6])
            assert 2 / float(cells[1]) == pytest.approx(float(cells[0]), rel=0.02)
    assert re.search(r"torch \d+\.\d+", text)
    assert "cores" in text


def test_algorithms_are_chosen_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[bool] = []
    train = Step.train

    def spied(step: Step) -> None:
        within.append(torch.backends.cudnn.benchmark)
        train(step)

    monkeypatch.setattr(Step, "train", spied)
    before = torch.backends.cudnn.benchmark
    measure("test_resnet", image_size=64, batch_size=2, decoder_width=32, rounds=1, device="cpu")
    assert set(within) == {True}
    assert torch.backends.cudnn.benchmark == before


def test_arithmetic_of_a_convolution() -> None:
    conv, x = nn.Conv2d(4, 6, 3, padding=1), torch.rand(2, 4, 10, 8)
    assert forward_flops(lambda: conv(x)) == 2 * 2 * 10 * 8 * 4 * 6 * 9


@pytest.mark.parametrize("freed", [0, 600])
def test_peak_is_what_a_function_takes(freed: int) -> None:
    """Also where as much has been freed in pieces, which the process still has."""
    before = [torch.ones(2**18) for _ in range(freed)]
    held = [torch.ones(1000) for _ in range(100)]
    del before
    taken = peak_bytes(lambda: torch.ones(64, 2**20).sum(), CPU)  # 256 MiB
    if taken is None:
        pytest.skip("this system does not tell the peak of memory")
    assert held
    assert 250 * 2**20 < taken < 350 * 2**20


@pytest.mark.parametrize("execution", ["packed", "masked-dense", "zero-out"])
def test_parts_are_those_of_the_step(execution: str) -> None:
    torch.manual_seed(0)
    model = SparK("test_resnet", decoder_width=32).train()
    step = Step(model, execution, torch.randn(2, 3, 64, 64), "32", compile=False)  # type: ignore[arg-type]
    whole = forward_flops(step.eager_forward)
    assert sum(forward_flops(part.forward) for part in step.parts.values()) == whole
    before = [p.clone() for p in model.parameters() if p.requires_grad]
    step.train()
    after = [p for p in model.parameters() if p.requires_grad]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(after) / 2
    for part in step.parts.values():
        part.run()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds 0"),
        (["--output", "x.txt"], r"x\.md"),
        (["--image-size", "65"], "not divisible"),
        (["--mask-ratio", "1"], "--mask-ratio"),
        (["--data", "nowhere"], "no folder nowhere"),
    ],
)
def test_mistakes_are_found_first(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sparkmim", "benchmark", "--model", "test_resnet", *flags])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_images_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="none of 1 images tried can be read as 3 channels"):
        measure("test_resnet", tmp_path, image_size=64, batch_size=2, rounds=1, device="cpu", decoder_width=32)
