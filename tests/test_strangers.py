"""Files from strangers: no command runs their code, leaves their folder, hangs, or takes the machine's memory.

Each case is a command line in a process of its own, with bounded memory and time and a canary that code of the file
would touch. A command may refuse the file in words (exit code 2), or do without what it claims; nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from helpers import FOUR_STEPS, TINY_FINETUNE, make_split
from sparkmim import finetune, pretrain
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.cli import run_command

pytestmark = pytest.mark.slow

MEMORY = 3 * 2**30
"""Bytes of address space that a command may take beyond what it has when it starts."""

SECONDS = 60

EVIL = """
from pathlib import Path

Path({canary!r}).touch()


def make(*_, **__):
    Path({canary!r}).touch()
"""


def answer(arguments: list[str], sender: Connection) -> None:
    """Carry out a command line with bounded memory; send its exit code and what it printed."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code: Any = run_command(arguments)
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    sender.send((code, out.getvalue(), err.getvalue()))


def ask(*arguments: object) -> tuple[Any, str, str]:
    """Return exit code, output and errors of a command line in a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Of a server that has computed nothing: a fork cannot differentiate where tests have started autograd's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparkmim.cli", __name__])
    process = context.Process(target=answer, args=([*map(str, arguments)], sender))
    process.start()
    try:
        assert receiver.poll(SECONDS), f"no answer within {SECONDS} seconds"
        found: tuple[Any, str, str] = receiver.recv()
        return found
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("labeled"), 4)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def evil(tmp_path: Path, canary: Path) -> str:
    """Code that touches the canary when it is imported, and when it is called."""
    path = tmp_path / "evil.py"
    path.write_text(EVIL.format(canary=str(canary)))
    return f"{path}:make"


def encoder_of(path: Path, metadata: object) -> Path:
    """A file of weights of timm's smallest network with any metadata."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_encoder(timm.create_model("test_resnet", num_classes=0), path, {"sparkmim": text})
    return path


def uses_of_encoder(encoder: Path, labeled: Path, output: Path) -> dict[str, list[object]]:
    """Every command that reads an encoder."""
    small = ["--device", "cpu", "--workers", "0"]
    photograph = next(labeled.rglob("*.png"))
    return {
        "embed": ["embed", "--encoder", encoder, "--data", labeled, "--output", output / "x.npz", *small],
        "knn": ["knn", "--encoder", encoder, "--data", labeled, *small],
        "probe": ["probe", "--encoder", encoder, "--data", labeled, *small],
        "export": ["export", "--encoder", encoder, "--output", output / "exported"],
        "figure": ["figure", "vanishing", "--image", photograph, "--encoder", encoder, "--output", output / "x.png"],
        "finetune": ["finetune", "--encoder", encoder, "--data", labeled, "--output", output / "run", *small],
    }


ENCODER_COMMANDS = ["embed", "knn", "probe", "export", "figure", "finetune"]


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "spec"),
    [
        *((command, "FILE") for command in ENCODER_COMMANDS),
        *(("embed", spec) for spec in ("os:abort", "hf-hub:someone/network", "local-dir:/etc")),
    ],
)
def test_code_in_an_encoder_is_not_run(
    command: str, spec: str, evil: str, canary: Path, labeled: Path, tmp_path: Path
) -> None:
    spec = evil if spec == "FILE" else spec
    encoder = encoder_of(tmp_path / "encoder.safetensors", {"model": spec})
    line = uses_of_encoder(encoder, labeled, tmp_path)[command]
    code, _, err = ask(*line)
    assert code == 2, err
    assert f"names the network {spec!r}" in err
    assert "on the file's word alone" in err
    assert f"--model {spec}" in err
    assert f"\n    sparkmim {' '.join(map(str, line))} --trust\n" in err
    assert not canary.exists()


WORKS = "import timm\n\n\ndef make():\n    return timm.create_model('test_resnet', num_classes=0)\n"


@pytest.mark.parametrize("command", ENCODER_COMMANDS)
def test_the_remedies_work(command: str, labeled: Path, tmp_path: Path) -> None:
    """Both that the message names; the network of a file is of no library, so its export is refused for that."""
    (tmp_path / "own.py").write_text(WORKS)
    known = {"model": f"{tmp_path}/own.py:make", "image_size": [32, 32]}
    encoder = encoder_of(tmp_path / "encoder.safetensors", known)
    line = uses_of_encoder(encoder, labeled, tmp_path)[command]
    more = ["--epochs", 1, "--batch-size", 4, "--precision", "32"] if command == "finetune" else []
    for number, remedy in enumerate((["--trust"], ["--model", f"{tmp_path}/own.py:make"])):
        again = [f"{part}{number}" if part == tmp_path / "run" else part for part in [*line, *more, *remedy]]
        code, out, err = ask(*again)
        if command == "export":
            assert "timm has no network" in err
        else:
            assert code == 0, f"{again}: {code} {out} {err}"


def test_registries_are_no_strangers(labeled: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path / "encoder.safetensors", {"model": "test_resnet", "image_size": [32, 32]})
    code, _, err = ask(*uses_of_encoder(encoder, labeled, tmp_path)["embed"])
    assert code == 0, err
    from sparkmim.models.factory import is_registered

    assert is_registered("resnet50.a1_in1k")
    assert is_registered("torchvision.models:resnet50")
    for other in ("torchvision.models:get_model", "torchvision.models.segmentation:fcn_resnet50", "os:abort", "x/y"):
        assert not is_registered(other), other


@pytest.fixture(scope="module")
def runs(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining and a fine-tuning of a step each."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain(folder / "pretrain", chosen=FOUR_STEPS | {"data": labeled, "epochs": 0.5})
    finetune(folder / "finetune", chosen=TINY_FINETUNE | {"data": labeled, "epochs": 0.5})
    return folder


def copy_of(run: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, to))


def change_config(run: Path, group: str, **values: Any) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    config.setdefault(group, {}).update(values)
    path.write_text(json.dumps(config))


CONFIG_CODE = [
    ("pretrain", "model", "model", "{}"),
    ("pretrain", "model", "objective", "{}"),
    ("pretrain", "run", "objective", "{}"),
    ("pretrain", "data", "data", "{}://x"),
    ("finetune", "model", "model", "{}"),
    ("finetune", "model", "task", "{}"),
    ("finetune", "data", "data", "{}://x"),
]


@pytest.mark.parametrize(("kind", "group", "field", "form"), CONFIG_CODE)
def test_code_in_a_run_folder_is_not_run(
    kind: str, group: str, field: str, form: str, runs: Path, evil: str, canary: Path, tmp_path: Path
) -> None:
    run = copy_of(runs / kind, tmp_path / "run")
    change_config(run, group, **{field: form.format(evil)})
    lines: list[list[object]] = [[kind, "--output", run]]
    if kind == "pretrain":
        lines.append(["reconstruct", "--run", run, "--output", tmp_path / "x.png"])
    for line in lines:
        code, _, err = ask(*line)
        assert code == 2, err
        assert evil in err
        assert f"{' '.join(map(str, line))} --trust\n" in err
        assert not canary.exists()


@pytest.mark.parametrize(("kind", "group", "field", "form"), CONFIG_CODE)
def test_code_in_a_checkpoint_is_not_run(
    kind: str, group: str, field: str, form: str, runs: Path, evil: str, canary: Path, tmp_path: Path
) -> None:
    path = next((runs / kind / "checkpoints").iterdir())
    for older in (False, True):
        state = torch.load(path, weights_only=True)
        config = json.loads(state["config"])
        config[group][field] = form.format(evil)
        state["config"] = json.dumps(config)
        torch.save(state, tmp_path / "step.pt", _use_new_zipfile_serialization=not older)
        code, _, err = ask(kind, "--output", tmp_path / "new", "--resume", tmp_path / "step.pt")
        assert code == 2, err
        assert evil in err or (older and "is a damaged checkpoint: File is not a zip file" in err)
        code, _, err = ask("embed", "--encoder", tmp_path / "step.pt", "--output", tmp_path / "x.npz")
        assert code == (2 if field == "model" else 0), err
        assert not canary.exists()


@pytest.mark.parametrize("name", ["model", "task"])
def test_code_in_a_model_is_not_run(name: str, evil: str, canary: Path, runs: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = runs / "finetune" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["sparkmim"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    more: dict[str, Any] = {"targets": {}} if name == "task" else {}
    (tmp_path / "model.safetensors").write_bytes(save(tensors, {"sparkmim": json.dumps({**known, name: evil, **more})}))
    line = ["predict", "--run", tmp_path / "model.safetensors", "--data", runs, "--output", tmp_path / "x.csv"]
    code, _, err = ask(*line)
    assert code == 2, err
    assert f"names the {'network' if name == 'model' else 'task'} {evil!r}" in err
    assert not canary.exists()


# --- claims ----------------------------------------------------------------------------------------------------------

METADATA: dict[str, object] = {
    "a list": [1, 2],
    "a number": 3,
    "null": None,
    "deep": "[" * 10_000 + "]" * 10_000,
    "not JSON": "{",
    "a deep object": '{"model": ' + '{"a": ' * 500 + "1" + "}" * 501,
    "model is a list": {"model": ["test_resnet"]},
    "huge view": {"model": "test_resnet", "image_size": [10**6, 10**6]},
    "a huge number": '{"model": "test_resnet", "in_chans": 1e400}',
    "many digits": '{"model": "test_resnet", "in_chans": ' + "9" * 5000 + "}",
    "negative view": {"model": "test_resnet", "image_size": [-1, 4]},
    "no pixels": {"model": "test_resnet", "image_size": []},
    "volumes": {"model": "test_resnet", "image_size": [8, 8, 8]},
    "channels": {"model": "test_resnet", "in_chans": 10**9},
    "not a number": '{"model": "test_resnet", "mean": [NaN, NaN, NaN], "std": [1, 1, 1]}',
    "no deviation": {"model": "test_resnet", "mean": [0, 0, 0], "std": [0, 0, 0]},
    "other means": {"model": "test_resnet", "in_chans": 3, "mean": [0, 0], "std": [1, 1]},
    "levels are text": {"model": "test_resnet", "levels": "all"},
    "no levels": {"model": "test_resnet", "levels": 0},
    "unknown pages": {"model": "test_resnet", "pages": ["first"]},
    "no data is not a number": '{"model": "test_resnet", "nodata": NaN}',
    "no pixels of an image": {"model": "test_resnet", "max_pixels": 0},
    "endless pixels of an image": {"model": "test_resnet", "max_pixels": 2**62},
    "stages are numbers": {"model": "test_resnet", "stages": [1, 2]},
    "too large a network": {"model": "regnety_1280", "image_size": [32, 32]},
    "too large a network of torchvision": {"model": "torchvision.models:regnet_y_128gf"},
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_cannot_be(name: str, labeled: Path, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path / "encoder.safetensors", METADATA[name])
    code, _, err = ask(*uses_of_encoder(encoder, labeled, tmp_path)["embed"])
    assert code == 2, err
    assert "encoder.safetensors" in err
    assert "Traceback" not in err
    assert len(err) < 1000


def shared(levels: int) -> dict[str, Any]:
    """2^levels paths to one tensor, in a few hundred bytes."""
    inner: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(levels):
        inner = {"a": inner, "b": inner}
    return inner


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def cycle() -> dict[str, Any]:
    inner: dict[str, Any] = {"w": torch.zeros(1)}
    inner["a"] = inner
    return inner


def bomb(path: Path) -> None:
    """A compressed archive of a few megabytes that claims 10 GiB."""
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        with archive.open("archive/data/1", "w", force_zip64=True) as file:
            for _ in range(40):
                file.write(bytes(2**28 // 8))


WEIGHTS: dict[str, Callable[[], object]] = {
    "2^40 paths": lambda: shared(40),
    "3,000 levels": lambda: nested(300),
    "cycle": cycle,
    "60,000 dots": lambda: {"a." * 60_000 + "w": torch.zeros(1)},
    "30,000 prefixes": lambda: {f"{i // 9}.{i}": torch.zeros(1) for i in range(30_000)},
    "30,000 dicts": lambda: {f"d{i}": {"w": torch.zeros(1)} for i in range(30_000)},
    "a view of endless values": lambda: {"conv1.0.weight": torch.zeros(1).expand(16, 10**9, 3, 3)},
    "names with escapes": lambda: {f"\x1b[31m{i}\r\n": torch.zeros(1) for i in range(8)},
    "a list": lambda: [torch.zeros(1)],
    "a number": lambda: 3,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_cannot_be(name: str, labeled: Path, tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save(WEIGHTS[name](), tmp_path / "weights.pt")
    finally:
        sys.setrecursionlimit(limit)
    line = uses_of_encoder(tmp_path / "weights.pt", labeled, tmp_path)["embed"]
    code, _, err = ask(*line, "--model", "test_resnet")
    assert code == 2, err
    assert "weights.pt" in err
    assert not set(err) & {"\x1b", "\r"}


def test_archives_that_claim_more_than_they_hold(labeled: Path, tmp_path: Path) -> None:
    bomb(tmp_path / "weights.pt")
    line = uses_of_encoder(tmp_path / "weights.pt", labeled, tmp_path)["embed"]
    code, _, err = ask(*line, "--model", "test_resnet")
    assert code == 2, err
    assert "it claims 1," in err
    header = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "claims.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    line = uses_of_encoder(tmp_path / "claims.safetensors", labeled, tmp_path)["embed"]
    code, _, err = ask(*line, "--model", "test_resnet")
    assert code == 2, err
    assert "claims.safetensors" in err


CONFIGS: list[tuple[str, str, dict[str, Any], str]] = [
    ("pretrain", "data", {"workers": 1_000_000}, "--workers 1000000"),
    ("pretrain", "data", {"workers": "two"}, "--workers takes int"),
    ("pretrain", "data", {"image_size": [10**6, 10**6]}, "--image-size 1000000 1000000"),
    ("pretrain", "model", {"decoder_width": 10**9}, "--decoder-width 1000000000"),
    ("pretrain", "schedule", {"epochs": "x"}, "--epochs takes float"),
    ("pretrain", "optimizer", {"betas": [[[]]]}, "--betas takes"),
    ("finetune", "data", {"workers": 1_000_000}, "--workers 1000000"),
    ("finetune", "augment", {"repeats": 10**6}, "--repeats 1000000"),
    ("finetune", "run", {"batch_size": 10**12}, "--batch-size 1000000000000"),
]


@pytest.mark.parametrize(("kind", "group", "values", "message"), CONFIGS)
def test_configurations_that_cannot_be(
    kind: str, group: str, values: dict[str, Any], message: str, runs: Path, tmp_path: Path
) -> None:
    run = copy_of(runs / kind, tmp_path / "run")
    change_config(run, group, **values)
    code, _, err = ask(kind, "--output", run)
    assert code == 2, err
    assert message in err
    assert "config.json" in err
    if values == {"workers": 1_000_000}:
        assert "choose with --workers" in err
        code, _, err = ask(kind, "--output", run, "--workers", 0)
        assert code == 0, err


@pytest.mark.parametrize("content", ["[" * 10_000, "[1]", "{}", "3", '{"sparkmim": 1, "model": []}', "\x00"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_configuration_of_something_else(kind: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    code, _, err = ask(kind, "--output", tmp_path / "run")
    assert code == 2, err
    assert str(tmp_path / "run") in err


# --- links -----------------------------------------------------------------------------------------------------------

OWNED = [
    ".lock",
    "config.json",
    "plan.json",
    "metrics.jsonl",
    "checkpoints",
    "checkpoints/step-000000009.pt",
    "reconstructions",
    "mistakes",
    "tensorboard",
    "encoder.safetensors",
    "report.html",
    "broken_images.txt",
]


@pytest.mark.parametrize("owned", OWNED)
def test_links_in_a_run_folder_are_not_followed(owned: str, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs / "pretrain", tmp_path / "run")
    path, outside = run / owned, tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    if path.is_dir():
        import shutil

        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    folder = owned in ("checkpoints", "reconstructions", "mistakes", "tensorboard")
    path.symlink_to(outside if folder else outside / "file")
    code, _, err = ask("pretrain", "--output", run, "--epochs", 1)
    assert code == 2, err
    assert f"{path} is a link to {outside}" in err
    assert (outside / "file").read_text() == "mine"
    assert [entry.name for entry in outside.iterdir()] == ["file"]
    path.unlink()  # the remedy of the message: without the file the run goes on, or says what is missing
    code, _, err = ask("pretrain", "--output", run)
    assert code in (0, 2), err
    assert "is a link" not in err


@pytest.mark.parametrize("owned", [".lock", "metrics.jsonl"])
def test_files_with_another_name_elsewhere_are_not_written(owned: str, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs / "pretrain", tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    (run / owned).unlink(missing_ok=True)
    os.link(tmp_path / "mine", run / owned)
    code, _, err = ask("pretrain", "--output", run)
    assert code == 2, err
    assert "has another name elsewhere" in err
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("owned", [".lock", "config.json", "metrics.jsonl", "encoder.safetensors"])
def test_pipes_in_a_run_folder_do_not_wait(owned: str, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs / "pretrain", tmp_path / "run")
    (run / owned).unlink(missing_ok=True)
    os.mkfifo(run / owned)
    for line in (
        ["pretrain", "--output", run],
        ["embed", "--encoder", run, "--output", tmp_path / "x.npz"],
        ["reconstruct", "--run", run, "--output", tmp_path / "x.png"],
    ):
        code, _, err = ask(*line)
        assert code == 2, err
        assert f"{run / owned} is a device, a pipe or a socket" in err or f"there is no run in {run}" in err


def test_a_picture_outside_of_the_run_is_not_shown(runs: Path, tmp_path: Path) -> None:
    from PIL import Image

    from sparkmim.reporting.report.page import write_report

    run = copy_of(runs / "finetune", tmp_path / "run")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "secret.png")
    results = json.loads((run / "results.json").read_text())
    results["validation"] = {**results.get("validation", {}), **results.get("test", {})} or None
    mistake = {"image": "x", "class": "a", "predicted": "b", "probability": 0.9, "picture": "../../../secret.png"}
    results["validation"] = {
        "confusion": [[1, 0], [0, 1]],
        "top1": 1.0,
        "mean_per_class": 1.0,
        "images": 2,
        "mistakes": [mistake],
        "unreadable": {},
    }
    results["classes"], results["train"] = ["a", "b"], {"per_class": [1, 1]}
    (run / "results.json").write_text(json.dumps(results))
    (run / "mistakes" / "validation").mkdir(parents=True, exist_ok=True)
    assert "<figure><img alt=" not in write_report(run).read_text()


# --- permissions and names -------------------------------------------------------------------------------------------


def test_the_umask_holds(tmp_path: Path) -> None:
    from sparkmim.utils.io import write_text

    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            write_text(tmp_path / f"{mask}.txt", "x")
        finally:
            os.umask(before)
        assert (tmp_path / f"{mask}.txt").stat().st_mode & 0o777 == 0o666 & ~mask
