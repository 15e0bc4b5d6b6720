"""Runs that are asked to stop: a process that has imported everything forks runs, which get signals at given moments.

Not a test: `python stops.py IMAGES OUTPUT CASE...` prints what was seen as JSON, a line for each case
`PHASE:SIGNAL:TARGET:PROCESSES`; `all` are those of the whole table.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from helpers import TINY_PRETRAIN
from sparkmim.checkpoints import run_folder
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import run_command
from sparkmim.data.loader import MaskedViews
from sparkmim.models.spark import SparK
from sparkmim.pretraining import task
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.training import errors
from sparkmim.training import run as training_run
from sparkmim.training.lock import lock
from sparkmim.training.step import Trainer
from sparkmim.utils import distributed
from sparkmim.utils.logging import printing

PHASES = ("prepare", "read", "accumulate", "step", "validate", "save")
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
TARGETS = ("trainer", "readers", "all")

AT = 3
"""Step during which the signal comes."""

SLOW = 0.3
"""Seconds that a checkpoint takes at least, so that processes which do not wait for it leave before."""

FLAGS: dict[str, Any] = {"val_share": 0.4, "val_every": 0.5, "workers": 1, "epochs": 4.0, "pictures": 0}

Prepare = Callable[[int], None]
"""What a process does before its run, by its rank."""


def arguments(output: Path, images: Path, processes: int, **more: Any) -> list[str]:
    """The command of a run; the step is computed in two parts by one process or by two."""
    settings = TINY_PRETRAIN | FLAGS | {"data": images, "accumulate": 2 // processes} | more
    settings["image_size"] = 64
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if value is not None]
    return ["pretrain", "--output", str(output), *itertools.chain(*pairs)]


def send(number: signal.Signals, target: str) -> None:
    """Send a signal to this process, to those that read for it, or to all of its group."""
    if target == "trainer":
        os.kill(os.getpid(), number)
    elif target == "all":
        os.killpg(0, number)
    else:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, number)


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Do something before each call of a method."""
    original = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, method)


def once_in(phase: str, act: Callable[[], None]) -> None:
    """Do something once when a run comes to a phase of the step `AT`."""
    steps: list[int] = []
    done: list[int] = []
    main = os.getpid()

    def note(trainer: Trainer, batches: Any) -> None:
        steps.append(trainer.step)

    def now(*_: Any, **__: Any) -> None:
        if os.getpid() == main and not done and (phase == "prepare" or (steps and steps[-1] + 1 >= AT)):
            done.append(1)
            act()

    before(Trainer, "train_step", note)
    if phase == "prepare":
        before(Pretraining, "validate", now)
    elif phase == "read":
        before(Trainer, "train_step", now)
    elif phase == "accumulate":
        before(Trainer, "_differentiate", lambda self, batch, turn: now() if turn == self.accumulate - 1 else None)
    elif phase == "step":
        before(Trainer, "rates", now)
    elif phase == "validate":
        before(SparK, "forward", lambda self, *_: None if self.training else now())
    elif phase == "save":
        before(run_folder, "write_atomically", now)


def slow_checkpoints() -> None:
    before(run_folder, "write_atomically", lambda *_: time.sleep(SLOW))


def start(command: list[str], log: Path, prepare: Callable[[], None], rank: int, processes: int, port: int) -> int:
    """One of the processes of a run; its process number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as it is not under `nohup`
        quiet = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if processes > 1:
            os.environ |= {
                **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "none",
                "GROUP_RANK": "0",
                "TORCHELASTIC_USE_AGENT_STORE": "False",
            }
        prepare()
        Pretraining.check = lambda *_: None  # type: ignore[assignment,method-assign]
        task.write_report = lambda _: None  # type: ignore[assignment, attr-defined, return-value]
        with printing():
            code = run_command(command)
    except BaseException as error:  # this process must not go on as its parent
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    output: Path,
    images: Path | list[Path],
    prepare: Prepare,
    processes: int,
    each: list[dict[str, Any]] | None = None,
    **more: Any,
) -> list[int]:
    """The exit codes of the processes of a run, minus the signal that ended one; their logs are beside the folder.

    `each` are further settings of each process.
    """
    port = free_port()
    pids = []
    for rank in range(processes):
        own = images[rank] if isinstance(images, list) else images
        command = arguments(output, own, processes, **{**more, **(each[rank] if each else {})})
        log = output.with_suffix(f".{rank}.log")
        pids.append(start(command, log, partial(prepare, rank), rank, processes, port))
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def nothing(_: int) -> None: ...


def stop(output: Path, images: Path, phase: str, name: str, target: str, processes: int) -> dict[str, Any]:
    """Stop a run by a signal to its last process, or with `all` to each, and continue it to its end."""

    def prepare(rank: int) -> None:
        slow_checkpoints()
        if target == "all" or rank == (0 if phase == "save" else processes - 1):  # the first process saves
            once_in(phase, lambda: send(signal.Signals[name], target))

    began = time.monotonic()
    minutes = 0.0 if phase == "save" else 10.0
    stopped = run(output, images, prepare, processes, checkpoint_minutes=minutes)
    seconds = time.monotonic() - began
    found = sorted(path.name for path in (output / "checkpoints").glob("*"))
    halves = [path.name for path in output.rglob("*.partial")]
    ended = stopped if set(stopped) == {0} else run(output, images, nothing, processes)
    return {"codes": stopped, "seconds": seconds, "checkpoints": found, "partial": halves, "ended": ended}


def unlike(output: Path, images: Path) -> dict[str, Any]:
    """A process whose copy of the images lacks one."""
    other = output.with_name("fewer")
    other.mkdir()
    for path in sorted(images.iterdir())[1:]:
        (other / path.name).write_bytes(path.read_bytes())
    return {"codes": run(output, [images, other], nothing, 2, val_share=0.0, val_every=None)}


def stuck(output: Path, images: Path) -> dict[str, Any]:
    """A process that hangs in a step; torchrun would end it when the others have left."""

    def prepare(rank: int) -> None:
        for module in (distributed, training_run, errors):
            module.WAIT = timedelta(seconds=3)  # type: ignore[attr-defined]
        if rank == 1:
            signal.signal(signal.SIGALRM, lambda *_: os._exit(9))
            once_in("step", hang)

    return {"codes": run(output, images, prepare, 2)}


def hang() -> None:
    signal.alarm(12)
    time.sleep(60)


def unlike_settings(output: Path, images: Path) -> dict[str, Any]:
    """A process that shall measure and draw at other steps, at which the other would wait for it."""
    codes = []
    for name, values in {"log_every": (1, 2), "val_every": (0.5, 1.0), "pictures": (0, 2)}.items():
        flags = [{name: value} for value in values]
        codes.append(run(output, images, nothing, 2, each=flags))
    return {"codes": codes}


def unlike_code(output: Path, images: Path) -> dict[str, Any]:
    """A node whose copy of the network's file is another."""
    flags = []
    for rank in range(2):
        file = output.with_name(f"node{rank}") / "net.py"
        file.parent.mkdir()
        file.write_text(f"import timm\ndef net():\n    return timm.create_model('test_resnet')\n# {rank}\n")
        flags.append({"model": f"{file}:net"})
    return {"codes": run(output, images, nothing, 2, each=flags)}


def crashed(output: Path, images: Path) -> dict[str, Any]:
    """A reader of the second process dies of an image, in the second part of a step."""

    def die(views: MaskedViews, keys: Any) -> None:
        if get_worker_info() is not None and any(epoch == 1 for epoch, _ in keys):
            os.kill(os.getpid(), signal.SIGSEGV)

    def prepare(rank: int) -> None:
        if rank == 1:
            before(MaskedViews, "__getitems__", die)

    more: dict[str, Any] = {"accumulate": 2, "val_share": 0.0, "val_every": None}
    return {"codes": [run(output, images, prepare, 2, **more), run(output, images, nothing, 2, **more)]}


def locked(output: Path, images: Path) -> dict[str, Any]:
    """A folder in which another run trains."""
    with lock(RunFolder(output)):
        return {"codes": run(output, images, nothing, 2)}


def other_processes(output: Path, images: Path) -> dict[str, Any]:
    """Four parts by one process, then the same by two, then one process whose parts are told, and one of three."""
    codes = [run(output, images, partial(stop_after, 2), 1, accumulate=4)]
    again = {"accumulate": None}
    codes += [run(output, images, partial(stop_after, 4), 2, **again), run(output, images, nothing, 3, **again)]
    codes += [run(output, images, nothing, 1, accumulate=2)]
    return {"codes": codes}


def stop_after(step: int, rank: int) -> None:
    before(Trainer, "train_step", lambda self, _: send(signal.SIGTERM, "trainer") if self.step == step - 1 else None)


SCENARIOS = {
    "unlike": unlike,
    "unlike_settings": unlike_settings,
    "unlike_code": unlike_code,
    "crashed": crashed,
    "stuck": stuck,
    "locked": locked,
    "other_processes": other_processes,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    images, folder, cases = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    if cases == ["all"]:
        table = itertools.product(PHASES, SIGNALS, TARGETS, ("1", "2"))
        cases = [":".join(case) for case in table if case[0] != "prepare" or case[2] != "readers"]
    for case in cases:
        if case in SCENARIOS:
            print(json.dumps({"case": case, **SCENARIOS[case](folder / case, images)}), flush=True)
            continue
        phase, name, target, processes = case.split(":")
        seen = stop(folder / case.replace(":", "-"), images, phase, name, target, int(processes))
        print(json.dumps({"case": case, **seen}), flush=True)
