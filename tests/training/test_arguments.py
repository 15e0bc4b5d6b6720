"""What the public functions and the environment may say is validated before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkmim import finetune, pretrain
from sparkmim.training.config import LoopConfig
from sparkmim.training.run import launch
from sparkmim.utils.distributed import local_processes, processes_here
from sparkmim.utils.trust import require_trust

WRONG: list[tuple[str, Any]] = [
    *[("output", value) for value in (None, 5, "")],
    *[("recipe", value) for value in (len, 5, Path("own.py:short"))],
    *[("resume", value) for value in (None, True, 1)],
    *[("plan", value) for value in ("yes", 1)],
    *[("chosen", value) for value in (["model"], "model", 5)],
    *[("after_step", value) for value in (5, "print")],
    *[("trust", value) for value in ("no", 1, None)],
]


@pytest.mark.parametrize("function", [pretrain, finetune])
@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_arguments(tmp_path: Path, function: Callable[..., Any], name: str, value: Any) -> None:
    given = {"output": tmp_path / "run"} | {name: value}
    with pytest.raises(ValueError, match=rf"^{name} takes .*, not "):
        function(given.pop("output"), **given)
    assert not (tmp_path / "run").exists()


def test_text_is_no_trust() -> None:
    """`trust="no"` would trust."""
    with pytest.raises(ValueError, match="trust takes True or False, not 'no'"):
        require_trust("os:abort", "network", "file", trust="no")  # type: ignore[arg-type]


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Processes would wait for each other."""
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert processes_here() == 2
    monkeypatch.delenv(missing)
    with pytest.raises(
        ValueError, match=rf"WORLD_SIZE is 2, but {missing} is not set; start the processes by torchrun"
    ):
        processes_here()
    monkeypatch.delenv("WORLD_SIZE")
    assert processes_here() == 1


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5"])
@pytest.mark.parametrize(("name", "read"), [("WORLD_SIZE", processes_here), ("LOCAL_WORLD_SIZE", local_processes)])
def test_no_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[], int], value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"the environment variable {name} is '{value}'"):
        read()


SCHEDULERS: dict[str, dict[str, str]] = {
    "srun": {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
    "sbatch": {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "LSF": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_SIZE": "2"},
    "Kubeflow": {"KUBERNETES_PORT": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1", "WORLD_SIZE": "1", "RANK": "0"},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_process_in_a_job_of_a_scheduler(monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    """Variables of a job do not make a process wait for others."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "node1", "SLURM_NNODES": "1"}
    for name, value in (SCHEDULERS[scheduler] | (slurm if scheduler in ("srun", "sbatch") else {})).items():
        monkeypatch.setenv(name, value)
    fabric = launch(LoopConfig(batch_size=2, device="cpu"))
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
