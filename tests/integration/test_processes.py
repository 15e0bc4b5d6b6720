"""Two processes do what one does that accumulates two micro-batches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import STEPS, TINY_PRETRAIN, final, in_two_processes, lines, make_images, numbers
from sparkmim.cli import run_command
from sparkmim.pretraining.run import pretrain


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(output: Path, images: Path, *more: str) -> subprocess.Popen[str]:
    flags = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --accumulate 1 --lr 0.01 --seed 1 "
    flags += "--warmup-epochs 0.8 --precision 32 --device cpu --workers 0 --pictures 1 --max-broken 0.3"
    return start(
        "-m", "--", "sparkmim", "pretrain", "--output", str(output), "--data", str(images), *flags.split(), *more
    )


def start(*program: str) -> subprocess.Popen[str]:
    """A program in two processes."""
    torchrun = "-m torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1 --master-port"
    command = [sys.executable, *torchrun.split(), str(free_port()), *program]
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True))
    return STARTED[-1]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """Processes that wait for each other are ended with the test."""
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    STARTED.clear()


@pytest.fixture(scope="module")
def with_a_broken_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_images(tmp_path_factory.mktemp("images"))
    (folder / "4.png").write_bytes(b"no image")
    return folder


def test_two_processes_equal_two_micro_batches(tmp_path: Path, with_a_broken_one: Path) -> None:
    labeled = tmp_path / "labeled"
    for number, name in enumerate(("a", "b", "c")):
        make_images(labeled / name, 3, seed=number)
    (labeled / "b" / "1.png").write_bytes(b"no image")
    process = launch(
        *(tmp_path / "two", with_a_broken_one, "--epochs", "2.4", "--checkpoint-minutes", "0", "--log-every", "1"),
        *("--monitor", "knn", "--monitor-data", str(labeled), "--monitor-every", "1"),
    )
    chosen = TINY_PRETRAIN | {"data": with_a_broken_one, "accumulate": 2, "max_broken": 0.3}
    assert pretrain(tmp_path / "one", chosen=chosen) is not None
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    two, one = numbers(tmp_path / "two"), numbers(tmp_path / "one")
    assert [line[0] for line in two] == list(range(1, STEPS + 1))  # each once
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-5, atol=1e-6)
    mine, other = final(tmp_path / "two")["model"], final(tmp_path / "one")["model"]
    assert mine.keys() == other.keys()
    for name in mine:
        if "running" not in name and "tracked" not in name:  # these are of each process's part
            torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-5, msg=name)
    for folder in ("one", "two"):
        (line,) = (tmp_path / folder / "broken_images.txt").read_text().splitlines()
        assert line.startswith("4.png\t")
    assert out.count("1 of 10 images cannot be read") == 1
    assert out.count("done: 6 steps") == 1
    assert out.count("1 of 9 labeled images cannot be read") == 1
    watched = [line for line in lines(tmp_path / "two") if "knn_top1" in line]
    assert [line["step"] for line in watched] == [2, 4, 6]
    assert all(line["knn_top1"] * 8 == pytest.approx(round(line["knn_top1"] * 8)) for line in watched)
    assert "2 processes" in out


def test_sigterm_saves_and_the_same_command_continues(tmp_path: Path, images: Path) -> None:
    """Checkpoints come by the clock: both processes must save at the same step."""
    folder = tmp_path / "run"
    done = 0
    for _ in range(2):
        process = launch(folder, images, "--epochs", "1000", "--checkpoint-minutes", "0.01", "--log-every", "7")
        start, seen = time.monotonic(), len(lines(folder)) if done else 0
        while not (folder / "metrics.jsonl").exists() or len(lines(folder)) < seen + 5:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - start < 120
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert f"continuing after step {done} of 2500" in out or not done, out
        assert "SIGTERM: saved after step" in out, err
        step = final(folder)["step"]
        assert step > done
        logged = [line[0] for line in numbers(folder)]
        assert logged == sorted(set(logged))
        assert logged[-1] == step // 7 * 7
        done = step


TEACHER = """
import timm, torch

def make():
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=0)
"""


def test_distillation_by_two_processes_equals_two_micro_batches(tmp_path: Path, with_a_broken_one: Path) -> None:
    """The queue of vectors is left out: with micro-batches it is fuller for the second of them."""
    (tmp_path / "teacher.py").write_text(TEACHER)
    teacher = f"{tmp_path / 'teacher.py'}:make"
    asked = f"--objective distill --objective.pooled 0 --teacher {teacher} --teacher-size 64 --jitter 0"
    common = "--model test_resnet --image-size 64 --batch-size 4 --accumulate 1 --lr 0.01 --seed 1 --optimizer lamb "
    common += "--warmup-epochs 0.8 --precision 32 --device cpu --workers 0 --max-broken 0.3 --epochs 2.4 --log-every 1"
    in_two_processes(
        *("pretrain", "--output", str(tmp_path / "a" / "two"), "--data", str(with_a_broken_one)),
        *f"{common} {asked}".split(),
    )
    run_command(
        f"pretrain --output {tmp_path / 'b' / 'one'} --data {with_a_broken_one} {common} {asked} --accumulate 2".split()
    )
    two, one = numbers(tmp_path / "a" / "two"), numbers(tmp_path / "b" / "one")
    assert [line[0] for line in two] == list(range(1, STEPS + 1))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-5, atol=1e-6)
    (mine,), (other,) = (list((tmp_path / part).glob("teacher-*")) for part in "ab")
    for name in ("maps", "pooled", "state"):
        found, wanted = (np.load(folder / f"{name}.npy") for folder in (mine, other))
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3)  # half precision, of batches of other images


AGREE = """
import os, sys
from sparkmim.training.run import agree, launch
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.training.prepare import prepare
chosen = {"model": "test_resnet", "data": sys.argv[2], "batch_size": 8}
ready = prepare(Pretraining(), sys.argv[1], None, "auto", chosen, 2)
config = ready.config.replace({"accumulate": 1 + int(os.environ["RANK"])})
sys.stdout.write(f"parts: {agree(config, launch(config.run)).run.accumulate}\\n")  # at once: two processes write here
"""


def test_the_process_of_least_memory_decides_on_micro_batches(tmp_path: Path, images: Path) -> None:
    """Otherwise they wait for each other's gradients at different steps."""
    script = tmp_path / "script.py"
    script.write_text(AGREE)
    out, err = start(str(script), str(tmp_path / "run"), str(images)).communicate(timeout=120)
    assert out.count("parts: 2") == 2, err
