"""Several nodes by torchrun's rendezvous, processes that are killed and started again, and a job of SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers import TINY_PRETRAIN, final, lines, numbers
from integration.stops import free_port
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain

pytestmark = pytest.mark.slow

FLAGS = "--model test_resnet --image-size 64 --decoder-width 32 --batch-size 4 --lr 0.01 --seed 1 --epochs 2.4 "
FLAGS += "--warmup-epochs 0.8 --precision 32 --device cpu --workers 0 --pictures 0 --log-every 1 --checkpoint-minutes 0"


NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Or processes that are started again may find the addresses of those before them, and wait for them."""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def workers_of(pid: int) -> list[int]:
    """The processes that a torchrun has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_two_nodes_go_on_after_one_of_their_processes_is_killed(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torchrun --max-restarts; the numbers are those of one process that accumulates two parts."""
    run, port = tmp_path / "run", free_port()
    torchrun = (
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 2 --rdzv-backend c10d --rdzv-id 7 "
    )
    torchrun += (
        f"--rdzv-endpoint 127.0.0.1:{port} --local-addr 127.0.0.1 -m -- sparkmim pretrain --accumulate 1 {FLAGS}"
    )
    for node in range(2):
        command = [sys.executable, *torchrun.split(), "--output", str(run), "--data", str(images)]
        with (tmp_path / f"node{node}.log").open("w") as log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=os.environ | NEW_STORE)
            )
    monkeypatch.setattr(Pretraining, "check", lambda *_: None)
    pretrain(tmp_path / "one", chosen=TINY_PRETRAIN | {"data": images, "accumulate": 2, "pictures": 0})
    end = time.monotonic() + 180
    while not (run / "checkpoints" / "step-000000002.pt").exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    for worker in workers_of(started[1].pid):
        os.kill(worker, signal.SIGKILL)
    codes = [process.wait(timeout=200) for process in started]
    said = [(tmp_path / f"node{node}.log").read_text() for node in range(2)]
    assert codes == [0, 0], said
    assert "continuing after step" in said[0] + said[1]
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(
        torch.tensor(numbers(run)), torch.tensor(numbers(tmp_path / "one")), rtol=1e-5, atol=1e-6
    )
    assert json.loads((run / "environment.json").read_text())["processes"] == "2"


def test_a_job_of_slurm_is_queued_again_if_it_has_saved(
    tmp_path: Path, images: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """The script, with srun and scontrol that do what theirs would on a machine of one node."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    stand_ins = {
        "scontrol": f'[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {calls}',
        "srun": 'shift; exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, content in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{content}\n")
        (programs / name).chmod(0o755)
    script = Path(__file__).parents[2] / "examples" / "slurm.sh"
    slurm = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node1"}
    environment = (
        os.environ | slurm | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "1", "RESTARTS": "0"}
    )
    run = tmp_path / "run"
    command = ["bash", str(script), *FLAGS.split(), "--output", str(run), "--data", str(images)]

    def job(*more: str) -> tuple[int, str]:
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=200)
        return done.returncode, done.stdout + done.stderr

    code, said = job("--model", "no_such_network")
    assert code != 0, said
    assert not calls.exists(), "a job that cannot train is not queued again"
    said_to = tmp_path / "job.log"
    with said_to.open("w") as log:
        started.append(
            subprocess.Popen([*command, "--epochs", "400"], env=environment, stdout=log, start_new_session=True)
        )
    end = time.monotonic() + 120
    while not (run / "checkpoints" / "step-000000002.pt").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    started[0].send_signal(signal.SIGTERM)  # SLURM's, before it takes the node
    assert started[0].wait(timeout=120) != 0
    assert "SIGTERM: saved after step" in said_to.read_text()
    assert calls.read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    assert final(run)["step"] >= 2
