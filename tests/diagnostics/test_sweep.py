"""`sparkmim models`: which of timm's networks count, how many pass, and the table of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from sparkmim import cli, sparse
from sparkmim.diagnostics.sweep.inspection import architecture_of
from sparkmim.diagnostics.sweep.run import Journal, Worker, sweep
from sparkmim.diagnostics.sweep.table import all_pass, document, summary, table
from sparkmim.diagnostics.sweep.verdict import Verdict, check_model, inspect_model

CONVOLUTIONAL = ["resnet18", "gcresnext26ts", "tresnet_m", "swiftformer_xs", "mobilevitv2_050", "test_mambaout"]
EXCLUDED = {
    "test_vit": "attention",
    "pvt_v2_b0": "attention",
    "gcvit_xxtiny": "attention",
    "mobilevit_xxs": "attention",
    "botnet26t_256": "attention",
    "levit_128s": "attention",
    "mixer_s32_224": "one image size",
}


@pytest.mark.parametrize("model", CONVOLUTIONAL)
def test_counts(model: str) -> None:
    verdict = inspect_model(model)
    assert (verdict.excluded, verdict.error) == (None, None)
    assert verdict.parameters > 0
    assert verdict.architecture


@pytest.mark.parametrize("model", EXCLUDED)
def test_does_not_count(model: str) -> None:
    reason = inspect_model(model).excluded
    assert reason is not None
    assert EXCLUDED[model] in reason


def test_architecture_is_all_but_the_weights() -> None:
    def made(name: str, **settings: Any) -> str:
        with torch.device("meta"):
            return architecture_of(timm.create_model(name, num_classes=0, **settings))

    assert made("resnet18") == made("resnet18")
    assert len({made("resnet18"), made("resnet18d"), made("resnet18", act_layer="silu"), made("resnet34")}) == 4
    assert architecture_of(nn.Conv2d(2, 2, 3, padding=1)) != architecture_of(nn.Conv2d(2, 2, 3, padding=2))
    assert architecture_of(nn.LeakyReLU(0.1)) != architecture_of(nn.LeakyReLU(0.2))


def test_verdict_of_a_network() -> None:
    verdict = check_model("test_byobnet")
    assert verdict.passed
    assert verdict.error is None
    assert set(verdict.deviations) == {"identity", "crop", "leak", "oracle"}
    assert max(verdict.deviations.values()) < 1e-8
    assert [stride for stride, _ in verdict.levels] == ["4", "8", "16", "32"]
    assert (verdict.patch, verdict.precision) == ("32", "float64")
    network = timm.create_model("test_byobnet", num_classes=0)
    assert verdict.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_twice_the_patch_where_the_stride_is_refused() -> None:
    verdict = check_model("mobilevitv2_050")
    assert verdict.passed
    assert (verdict.patch, verdict.levels[-1][0]) == ("64", "32")


def test_a_network_that_fails_says_why() -> None:
    verdict = check_model("efficientnet_cc_b0_4e")  # kernels that are made of the image
    assert not verdict.passed
    assert not verdict.is_wrong
    assert verdict.error is not None
    assert "reshape cannot be carried out on visible patches" in verdict.error
    assert set(verdict.deviations.values()) == {math.inf}


def test_a_norm_in_float32_sets_the_tolerance() -> None:
    class Rounding(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y * y.float().square().mean((2, 3), keepdim=True).add(1e-5).rsqrt().to(y.dtype)

    report = sparse.check(Rounding(3, 4, 3, padding=1), patch_size=(4, 4))
    assert report.passed
    assert report.precision == torch.float32
    assert report.deviation > 1e-8
    assert sparse.check(nn.Conv2d(3, 4, 3, padding=1), patch_size=(4, 4)).precision == torch.float64


# --- the command ------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sparkmim", "models", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow
def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "networks.md"
    assert run(monkeypatch, "test_byob*", "test_mamba*", "mixer_s32_224", "--output", str(output), "--jobs", "2") == 0
    told = capsys.readouterr().out
    assert "2 of 2 architectures pass (100.0%)" in told
    text = output.read_text()
    assert "sparkmim models 'test_byob*' 'test_mamba*'" in text
    assert f"timm {timm.__version__}, torch {torch.__version__}" in text
    assert "| byobnet | test_byobnet | 32, 32 |" in text
    assert "mlp_mixer, it works at one image size only" in text

    # Again: everything is known, nothing is computed.
    monkeypatch.setattr(Worker, "__call__", lambda *_: pytest.fail("a known outcome was computed again"))
    assert run(monkeypatch, "test_byob*", "test_mamba*", "mixer_s32_224", "--output", str(output)) == 0
    assert output.read_text().split("\n\n", 2)[2] == text.split("\n\n", 2)[2]


def test_an_interrupted_sweep_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what it had kept, and the smallest network first."""
    asked: list[tuple[str, str]] = []

    def answer(worker: Worker, task: str, model: str) -> Verdict:
        asked.append((task, model))
        if asked[-3:] == [("check", "small"), ("check", "middle"), ("check", "large")]:
            raise KeyboardInterrupt
        size = {"small": 1, "middle": 2, "large": 3, "small_too": 1}[model]
        return Verdict(model=model, family="f", parameters=size, architecture=str(size), passed=task == "check")

    monkeypatch.setattr(Worker, "__call__", answer)
    monkeypatch.setattr(timm, "list_models", lambda: ["large", "middle", "small", "small_too"])
    journal = tmp_path / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sweep(every=True, journal=journal)
    assert [json.loads(line)["model"] for line in journal.read_text().splitlines()][-2:] == ["small", "middle"]
    asked.clear()
    verdicts = sweep(every=True, journal=journal)
    assert asked == [("check", "large")]
    assert [(v.model, v.same) for v in verdicts] == [("small", ["small_too"]), ("middle", []), ("large", [])]
    assert all_pass(verdicts)


def test_outcomes_of_another_engine_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = tmp_path / "kept.jsonl"
    worker = Worker(1.0)
    monkeypatch.setattr(Worker, "__call__", lambda self, task, model: Verdict(model=model, family="f"))
    Journal(journal)("check", "one", worker)
    assert ("check", "one") in Journal(journal).known
    Journal(journal)("inspect", "one", worker)
    monkeypatch.setattr(sys.modules["sparkmim.diagnostics.sweep.run"], "versions", lambda: "another")
    assert Journal(journal).known == {}
    assert list(Journal(journal, older=True).known) == [("inspect", "one")], "a failure is tried again"
    monkeypatch.setattr(Worker, "__call__", lambda self, task, model: Verdict(model=model, family="f", passed=True))
    assert Journal(journal, older=True)("check", "one", worker).versions == "another"
    monkeypatch.setattr(sys.modules["sparkmim.diagnostics.sweep.run"], "versions", lambda: "a third")
    assert Journal(journal, older=True).known["check", "one"].versions == "another"


def test_a_sweep_up_to_a_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(worker: Worker, task: str, model: str) -> Verdict:
        assert (task, model) != ("check", "large")
        size = {"small": 1_000_000, "large": 3_000_000}[model]
        return Verdict(model=model, family="f", parameters=size, architecture=str(size), passed=task == "check")

    monkeypatch.setattr(Worker, "__call__", answer)
    monkeypatch.setattr(timm, "list_models", lambda: ["large", "small"])
    journal = tmp_path / "kept.jsonl"
    verdicts = sweep(every=True, up_to=2, journal=journal)
    assert [(v.model, v.passed, v.pending) for v in verdicts] == [("small", True, False), ("large", False, True)]
    assert "1 of 1 architectures pass (100.0%)" in summary(verdicts)
    assert summary(verdicts).endswith("; 1 was not checked")
    assert "large (3 million parameters)" in table(verdicts)
    assert f"Checked: 1 by {Journal(None).versions}." in document(verdicts, "sparkmim models")
    monkeypatch.setattr(Worker, "__call__", lambda *_: pytest.fail("a known outcome was computed again"))
    assert [v.pending for v in sweep(every=True, up_to=0.5, journal=journal)] == [False, True], "what is known stays"


def test_a_worker_that_fails_or_takes_too_long() -> None:
    worker = Worker(timeout=0.01)
    try:
        assert worker("check", "resnet18").error == "it took longer than 0.01 seconds"
    finally:
        worker.close()
    worker = Worker(timeout=100, memory=2**28)
    try:
        verdict = worker("check", "vgg19_bn")
        assert not verdict.passed
        assert verdict.error is not None
    finally:
        worker.close()


def test_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in (
        (["resnet18", "--output", str(tmp_path / "table.txt")], "must end in .md"),
        (["resnet18", "--output", f"{__file__}/table.md"], "table.md cannot be written (Not a directory)"),
        (["no_such_network*"], "timm has no network 'no_such_network*'"),
        (["resnet18", "--jobs", "0"], "expected --jobs of at least 1, got 0"),
    ):
        assert run(monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err


# --- the table --------------------------------------------------------------------------------------------------------

PASSES = Verdict(
    model="a", family="f", parameters=3_000_000, levels=[("4", 8), ("32", 64)], unreached=1_000_000, patch="32",
    deviations={"identity": 1e-12, "crop": 2e-12, "leak": 0.0, "oracle": 3e-12}, passed=True, same=["a_too"],
)  # fmt: skip
REFUSES = Verdict(
    model="b", family="f", levels=[("32", 64)], patch="64", deviations={"identity": math.inf}, error="roll has no rule"
)
WRONG = Verdict(model="c", family="g", levels=[("32", 64)], patch="32", deviations={"identity": 0.3})
LEFT_OUT = Verdict(model="d", family="h", excluded="attention: matmul")


def test_table() -> None:
    text = table([PASSES, REFUSES, WRONG, LEFT_OUT])
    assert "| f | a (a_too) | 32, 32 | 4:8 32:64 | 2.00, 1.00 | 1e-12 | 2e-12 | 0e+00 | 3e-12 |  |" in text
    assert "| f | b | 64, 32 |" in text
    assert "- **b**: roll has no rule" in text
    assert "| 3e-01 |  |  |  | WRONG |" in text
    assert "- h, attention: matmul: d" in text
    assert "by name 2 of 4" in summary([PASSES, REFUSES, WRONG, LEFT_OUT])
    assert "1 return wrong numbers without an error; 1 is not convolutional" in text
    assert "sparkmim models x" in document([PASSES], "sparkmim models x")
    assert all_pass([PASSES, LEFT_OUT])
    assert not all_pass([PASSES, WRONG])
    assert not all_pass([PASSES, REFUSES])
