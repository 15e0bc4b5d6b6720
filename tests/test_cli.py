"""The command line: exit codes, what is printed where, and errors a user can mend without a traceback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparkmim import Backbone
from sparkmim.cli import main
from sparkmim.models.factory import load_backbone
from sparkmim.training.errors import RunStopped
from sparkmim.utils.devices import pick_device

Command = Callable[..., tuple[int, str, str]]

NETWORKS = '''
import torch
from torch import nn

import sparkmim


class Works(nn.Module):
    def __init__(self, in_chans=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8, 1000)

    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)))


def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Conv1d(9, 4, 2))


class Attends(Works):
    """Attention between positions has no meaning on patches."""

    def forward(self, x):
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.deep(x + attended.transpose(1, 2).reshape(x.shape))


class Wrong(Works):
    """Raises nothing, but means something else on patches: computes with the size of the tensor."""

    def forward(self, x):
        x = self.stem(x)
        return self.deep(x - x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3])))


def works():
    return Works()


def backbone():
    return sparkmim.Backbone(Works(), ["stem", "deep"])


def grey():
    return sparkmim.Backbone(Works(1), ["stem", "deep"], in_chans=1)


def attends():
    return sparkmim.Backbone(Attends(), ["stem", "deep"])


def wrong():
    return sparkmim.Backbone(Wrong(), ["stem", "deep"])


def dense():
    return nn.Sequential(nn.Linear(3, 3))


def nothing():
    return None


not_a_function = 3
'''


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("networks") / "networks.py"
    path.write_text(NETWORKS)
    return str(path)


@pytest.fixture
def sparkmim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command; returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparkmim", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capsys.readouterr()
        return exit.value.code, out, err

    return run


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have some commands raise an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sparkmim.diagnostics.check.load_backbone", fail)
    monkeypatch.setattr("sparkmim.data.sources.address.open_source", fail)


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_of_a_network_that_works(sparkmim: Command, networks: str) -> None:
    code, out, err = sparkmim("check", f"{networks}:backbone")
    assert code == 0
    assert err == ""
    assert out.splitlines()[:3] == [
        "stride 2 x 2     6 channels",
        "stride 4 x 4     8 channels",
        "0.00 of 0.01 million parameters are reached by pretraining",
    ]
    table = [line.split() for line in out.splitlines() if line.endswith("pass")]
    wanted = [[name, mode] for mode in ("eval", "train") for name in ("identity", "crop", "leak", "oracle")]
    assert [row[:2] for row in table] == wanted
    assert all(float(number) <= 1e-8 for row in table for number in row[2:5])
    assert out.rstrip().endswith(f"{networks}:backbone works on visible patches")


def test_check_takes_stages(sparkmim: Command, networks: str) -> None:
    code, out, _ = sparkmim("check", f"{networks}:works", "--stages", "stem", "deep")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("stride")] == [
        "stride 2 x 2     6 channels",
        "stride 4 x 4     8 channels",
    ]


def test_check_takes_patch_size_channels_and_precision(sparkmim: Command, networks: str) -> None:
    code, out, _ = sparkmim("check", f"{networks}:grey", "--patch-size", "8", "--precision", "float32")
    assert code == 0
    deviations = [float(v) for line in out.splitlines() if line.endswith("pass") for v in line.split()[2:5]]
    assert len(deviations) == 24
    assert 1e-8 < max(deviations) <= 2e-3, "float64 would be more exact"


def test_check_of_a_timm_name(sparkmim: Command) -> None:
    code, out, _ = sparkmim("check", "test_convnext", "--in-chans", "1")
    assert code == 0
    assert "stride 32 x 32   64 channels" in out
    assert out.rstrip().endswith("test_convnext works on visible patches")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("vit_tiny_patch16_224", "doesn't match model (224)"),
        ("coatnet_nano_rw_224", "runs on images of 224 x 224, but not on others"),
    ],
)
def test_check_of_a_network_for_one_image_size(sparkmim: Command, model: str, why: str) -> None:
    code, _, err = sparkmim("check", model)
    assert code == 2
    assert err.startswith(f"sparkmim: {model} does not give feature maps of images of any size (")
    assert why in err
    assert err.rstrip().endswith("expected a convolutional network")


def test_check_of_an_unsupported_operation(sparkmim: Command, networks: str) -> None:
    code, out, err = sparkmim("check", f"{networks}:attends")
    assert code == 1
    assert err == ""
    assert len([line for line in out.splitlines() if line.endswith("FAIL")]) == 8
    assert "scaled_dot_product_attention cannot be carried out on visible patches" in out, "the operation is named"
    assert "sparkmim.sparse.register(function)" in out
    assert "sparkmim.sparse.dense_fallback(module)" in out
    assert out.rstrip().endswith(f"{networks}:attends does NOT work on visible patches")


def test_check_of_a_network_that_means_something_else(sparkmim: Command, networks: str) -> None:
    code, out, _ = sparkmim("check", f"{networks}:wrong")
    assert code == 1
    verdicts = {tuple(line.split()[:2]): line.split()[-1] for line in out.splitlines() if line[-4:] in ("pass", "FAIL")}
    assert verdicts[("identity", "eval")] == verdicts[("oracle", "train")] == "FAIL"
    assert "computes with the size of the map" in out
    assert "does NOT work" in out


# --- errors a user can mend -----------------------------------------------------------------------------------------


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("sparkmim: ")
    assert len(err.splitlines()) == 1
    for part in parts:
        assert part in err


def test_unknown_model(sparkmim: Command) -> None:
    assert_one_line(sparkmim("check", "resnet5O"), "timm knows no model called 'resnet5O'", "did you mean", "resnet50")


def test_unknown_file(sparkmim: Command, tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"
    assert_one_line(sparkmim("check", f"{missing}:network"), f"there is no file '{missing}'")


def test_unknown_function(sparkmim: Command, networks: str) -> None:
    assert_one_line(sparkmim("check", f"{networks}:wrks"), f"{networks} defines no function 'wrks'")
    assert_one_line(sparkmim("check", f"{networks}:not_a_function"), "defines no function 'not_a_function'")


def test_file_without_a_function(sparkmim: Command, networks: str) -> None:
    """The name of the function is forgotten easily; timm's list of models is no help then."""
    code, out, err = sparkmim("check", networks)
    assert (code, out) == (2, "")
    assert "FILE.py:FUNCTION" in err


def test_function_that_returns_no_network(sparkmim: Command, networks: str) -> None:
    result = sparkmim("check", f"{networks}:nothing")
    assert_one_line(result, f"{networks}:nothing returns a NoneType, not a torch.nn.Module or a sparkmim.Backbone")


def test_network_that_offers_no_maps(sparkmim: Command, networks: str) -> None:
    result = sparkmim("check", f"{networks}:fixed")
    assert_one_line(result, "Sequential does not offer its feature maps", "stages=[...]), of 0, 1, 2")
    assert_one_line(sparkmim("check", f"{networks}:dense"), "Sequential has no convolution")


@pytest.mark.parametrize("function", ["backbone", "grey"])
def test_a_backbone_has_stages_and_channels(sparkmim: Command, networks: str, function: str) -> None:
    spec, channels = f"{networks}:{function}", 1 if function == "grey" else 3
    result = sparkmim("check", spec, "--stages", "stem")
    assert_one_line(result, f"{spec} returns a sparkmim.Backbone, which has its stages; leave --stages to its code")
    result = sparkmim("check", spec, "--in-chans", "4")
    assert_one_line(result, f"--in-chans 4, but {spec} returns a sparkmim.Backbone for {channels} channels; leave it")
    assert load_backbone(spec, in_chans=channels).in_chans == load_backbone(spec).in_chans == channels


def test_unknown_stage(sparkmim: Command, networks: str) -> None:
    result = sparkmim("check", f"{networks}:works", "--stages", "stem", "depe")
    assert_one_line(result, "Works has no submodule 'depe'; the nearest are deep")


def test_patch_size_that_does_not_fit(sparkmim: Command, networks: str) -> None:
    code, _, err = sparkmim("check", f"{networks}:backbone", "--patch-size", "6")
    assert code == 2
    assert "patch size 6" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["check"], ["chekc", "resnet18"], ["check", "resnet18", "--precision", "x"]])
def test_wrong_usage(arguments: list[str], sparkmim: Command) -> None:
    code, _, err = sparkmim(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_help(sparkmim: Command) -> None:
    code, out, _ = sparkmim("check", "--help")
    assert code == 0
    for word in ("--stages", "--patch-size", "--in-chans", "--precision", "FILE.py:FUNCTION"):
        assert word in out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
@pytest.mark.parametrize("command", ["check", "stats"])
def test_out_of_memory_is_one_line(
    sparkmim: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, error: Exception
) -> None:
    fail_with(monkeypatch, error)
    code, _, err = sparkmim(*(("check", "resnet18") if command == "check" else ("stats", "--data", str(tmp_path))))
    assert code == 3
    assert err == "sparkmim: out of memory; use a smaller --batch-size, --image-size or network\n"


def test_other_errors_are_no_want_of_memory(sparkmim: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fail_with(monkeypatch, RuntimeError("something else"))
    monkeypatch.setattr(sys, "argv", ["sparkmim", "stats", "--data", str(tmp_path)])
    with pytest.raises(RuntimeError, match="something else"):
        main()


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "tellers"),
    [
        (ValueError("wrong"), 2, {0: "", 2: "process 2: "}),  # all find it before the run, and one a machine tells
        (OSError("gone"), 2, {0: "", 1: "process 1: ", 2: "process 2: ", 3: "process 3: "}),
        (RunStopped("stopped"), 3, {0: "", 1: "process 1: ", 2: "process 2: ", 3: "process 3: "}),
        (KeyboardInterrupt(), 130, {0: "", 2: "process 2: "}),
    ],
)
def test_every_process_tells_what_happens_to_it(
    sparkmim: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    code: int,
    tellers: dict[int, str],
) -> None:
    fail_with(monkeypatch, error)
    for rank in range(4):  # two on each of two machines
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        ended, _, err = sparkmim("stats", "--data", str(tmp_path))
        assert ended == code
        assert len(err.splitlines()) == (rank in tellers)
        assert err.startswith(f"sparkmim: {tellers[rank]}{error}" if rank in tellers else "")


@pytest.mark.parametrize("local", [0, 3])
def test_fewer_devices_than_processes(monkeypatch: pytest.MonkeyPatch, local: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        ValueError, match=r"4 processes need as many .* torch sees 2; use torchrun --nproc-per-node 2, or"
    ):
        pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("auto") == torch.device("cuda", local)


# --- as users start it ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_module_can_be_run(networks: str) -> None:
    command = [sys.executable, "-m", "sparkmim", "check", f"{networks}:wrks"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr == f"sparkmim: {networks} defines no function 'wrks'\n"


# --- load_backbone --------------------------------------------------------------------------------------------------


def test_load_backbone(networks: str) -> None:
    named = load_backbone("test_resnet", in_chans=1)
    assert (named.in_chans, len(named.levels)) == (1, 4)
    staged = load_backbone("test_resnet", ("layer1", "layer3"))
    assert [s for s, _ in staged.strides] == [4, 16]
    ready = load_backbone(f"{networks}:grey")
    assert isinstance(ready, Backbone)
    assert ready.in_chans == 1
    made = load_backbone(f"{networks}:works", ("deep",))
    assert made.channels == [8]
    assert isinstance(made(torch.zeros(1, 3, 8, 8))[0], torch.Tensor)


@pytest.mark.slow
def test_a_run_without_streams(tmp_path: Path, images: Path) -> None:
    """As some service managers start it: no file stands behind standard input, output and error."""
    settings = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --epochs 0.8 --warmup-epochs 0.1"
    run = tmp_path / "run"
    command = f"exec '{sys.executable}' -m sparkmim pretrain --output '{run}' --data '{images}' {settings} --workers 1"
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], timeout=300)
    assert done.returncode == 0
    assert (run / "report.html").exists()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    for path in run.rglob("*"):  # what is printed goes into none of its files
        assert path.is_dir() or b"parameters; decoder" not in path.read_bytes() or path.suffix in (".html", ".json")


def test_names_that_a_terminal_cannot_print_end_nothing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii", write_through=True))
    run = tmp_path / "größe"
    settings = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --epochs 0.8 --warmup-epochs 0.1"
    words = ["pretrain", "--output", str(run), "--data", str(images), *settings.split(), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["sparkmim", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert rb"gr\xf6\xdfe/encoder.safetensors" in bytes_out.getvalue()
