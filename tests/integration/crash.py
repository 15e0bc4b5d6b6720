"""Runs that die: a process that has imported everything forks runs, which are killed, until one gets to its end.

Not a test: `python crash.py SCENARIO OUTPUT IMAGES KILLS` prints what was seen as JSON. A fork costs nothing, where
each new interpreter would import torch for seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from helpers import TINY_PRETRAIN
from sparkmim.checkpoints.run_folder import BrokenCheckpoint, RunFolder
from sparkmim.pretraining import task as pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.utils.io import SUFFIX

EPOCHS = 8.0
"""Of the run that is killed at random moments."""


def start(output: Path, images: Path, prepare: Callable[[], None] = lambda: None, **settings: Any) -> int:
    """A run in a process of its own, a checkpoint after every step; its process number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        quiet = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        prepare()
        chosen = TINY_PRETRAIN | {"data": images, "checkpoint_minutes": 0.0} | settings
        outcome = pretrain(output, chosen=chosen)
        code = 0 if outcome is not None and outcome.step == outcome.steps else 2
    except BaseException as error:  # this process must not go on as its parent
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Minus the signal, or the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def newest_step(run: RunFolder) -> int | None:
    """None without a checkpoint, -1 if none can be read."""
    try:
        newest = run.newest_checkpoint()
    except BrokenCheckpoint:
        return -1
    return None if newest is None else newest[0]["step"]


def partials(run: RunFolder) -> list[str]:
    return [path.name for path in run.root.rglob("*" + SUFFIX)]


def random_moments(output: Path, images: Path, kills: int) -> dict[str, Any]:
    """Kill at random moments, and no later than one step further, so that the run does not come to its end before;
    then let it end."""
    run, chance = RunFolder(output), random.Random(0)
    settings: dict[str, Any] = {"epochs": EPOCHS}
    pretraining.write_report = lambda _: None  # type: ignore[assignment,attr-defined,return-value]
    began = time.monotonic()
    code = wait(start(output.with_name("warm"), images))  # how long does all of it take?
    whole = time.monotonic() - began
    longest = 0.3 * whole
    steps: list[int | None] = []
    codes = [code]
    for _ in range(kills):
        before = run.list_checkpoints()[-1:]
        pid = start(output, images, **settings)
        end = time.monotonic() + chance.uniform(0, longest)
        while time.monotonic() < end and run.list_checkpoints()[-1:] == before:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        codes.append(wait(pid))
        steps.append(newest_step(run))
        if codes[-1] == 0:
            break
        # One life in three gets to another step, however busy the machine is.
        longest *= 1.2 if steps[-1] == (steps[-2] if len(steps) > 1 else None) else 0.7
    codes.append(wait(start(output, images, **settings)))
    return {"codes": codes, "steps": steps, "partials": partials(run)}


def die_in(function: str, module: Any, at: int, half: bool = False) -> Callable[[], None]:
    """Make the `at`th call of a function kill the process, after half of what it writes where `half`."""

    def prepare() -> None:
        original, calls = getattr(module, function), []

        def dies(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                if half:
                    file: BinaryIO = args[1]
                    file.write(b"half a checkpoint" * 1000)
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, function, dies)

    return prepare


def bad_moments(output: Path, images: Path, kills: int) -> dict[str, Any]:
    """Die while a checkpoint is written, and between the files that belong together; then let the run end."""
    run = RunFolder(output)
    deaths = [
        die_in("write_json", sys.modules["sparkmim.training.run"], 1),  # nothing is there yet
        die_in("write_json", sys.modules["sparkmim.training.run"], 2),  # the configuration alone is
        die_in("save", torch, 1, half=True),
        die_in("save", torch, 3, half=True),
        die_in("save_encoder", pretraining, 1),
        die_in("write_report", pretraining, 1),
        die_in("truncate_metrics", RunFolder, 1),
    ]
    codes, steps, left = [], [], []
    for death in deaths:
        codes.append(wait(start(output, images, death)))
        steps.append(newest_step(run))
        left.append(len(partials(run)))
    codes.append(wait(start(output, images)))
    return {"codes": codes, "steps": steps, "left": left, "partials": partials(run)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario = {"random": random_moments, "bad": bad_moments}[sys.argv[1]]
    print(json.dumps(scenario(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
