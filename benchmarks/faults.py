"""A campaign of faults: runs are killed, starved and lied to, continued, and compared with undisturbed ones.

    python benchmarks/faults.py --output FILE.md                the whole campaign, about an hour on one core
    python benchmarks/faults.py --share 0.02 --output FILE.md   a part of each kind of fault
    python benchmarks/faults.py --only kill disk                some kinds

A process that has imported everything forks the runs: a tiny network, a step every 50 ms, a checkpoint after each one.
A run is lost if the command that began it, given again without the fault, does not bring it to its end; it differs if a
line of `metrics.jsonl`, a weight of the encoder or the classifier, or the weights, the optimizer or the precision of
the newest checkpoint differ in any bit. A message is unclear if it is a traceback, or the exit code is none of those
documented. As root, small disks and a small /dev/shm are real ones, mounted in a name space of this process.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import errno
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from safetensors.torch import load_file

from helpers import TINY_FINETUNE, assert_same_training, make_data, make_images
from integration.stops import arguments, free_port, start
from sparkmim.checkpoints.run_folder import BrokenCheckpoint, RunFolder, read_checkpoint
from sparkmim.data.config import DEFAULT_FILES
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.sources.address import open_source
from sparkmim.data.sources.base import open_image
from sparkmim.data.storage import reading
from sparkmim.models.spark import SparK
from sparkmim.training import metrics as metrics_module
from sparkmim.training import step as step_module
from sparkmim.training.step import Trainer
from sparkmim.utils import io as io_module

DOCUMENTED = (0, 2, 3, 75, 130, -signal.SIGKILL)
"""Exit codes that the guide names, and that of a killed process."""

PATIENCE = 120.0
"""Seconds after which a run hangs."""

Prepare = Callable[[int], None]
Disturb = Callable[[list[int]], None]


@dataclass
class Tally:
    """What faults of one kind came to."""

    what: str
    faults: int = 0
    lost: int = 0
    differing: int = 0
    hung: int = 0
    unclear: int = 0
    steps_lost: int = 0
    notes: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return a row of the table."""
        numbers = (self.faults, self.lost, self.differing, self.hung, self.unclear, self.steps_lost)
        return " | ".join(["", self.what, *map(str, numbers), ""]).strip()


@dataclass(frozen=True)
class Scene:
    """A command, its images, and how many processes it takes."""

    name: str
    command: Callable[[Path], list[str]]
    processes: int
    reference: Path

    def __str__(self) -> str:
        return f"{self.name}, {self.processes} process{'es' * (self.processes > 1)}"


def nothing(_: int) -> None: ...


def fault(function: Callable[..., None], *args: Any) -> Prepare:
    """Return what brings a fault into each process of a run, before it begins."""
    return lambda _: function(*args)


def wait_for(pids: list[int]) -> list[int]:
    """Return the exit codes of processes; those that hang are killed and counted as None would be: by 124."""
    codes: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[pid] = 124
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def live(
    scene: Scene, output: Path, prepare: Prepare = nothing, disturb: Disturb = lambda pids: None, logs: str = "log"
) -> tuple[list[int], str]:
    """Run a command once; return the exit codes of its processes, and what they said."""
    port, pids = free_port(), []
    names = [output.with_name(f"{output.name}.{logs}.{rank}") for rank in range(scene.processes)]
    for rank, log in enumerate(names):
        log.unlink(missing_ok=True)
        pids.append(start(scene.command(output), log, partial(prepare, rank), rank, scene.processes, port))
    disturb(pids)
    codes = wait_for(pids)
    return codes, "\n".join(log.read_text() for log in names)


def newest_step(output: Path) -> int:
    """Return the step of the newest checkpoint by its name, 0 without one."""
    paths = RunFolder(output).list_checkpoints()
    return int(paths[-1].stem.removeprefix("step-")) if paths else 0


def last_logged(output: Path) -> int:
    """Return the last step that `metrics.jsonl` tells of."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        return int(json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def unlike(one: Path, other: Path) -> str:
    """Return in what two runs differ, empty if in nothing."""
    try:
        assert_same_training(one, other)
        made = [name for name in ("encoder.safetensors", "model.safetensors") if (other / name).exists()]
        for name in made:
            assert same(load_file(one / name), load_file(other / name)), name
    except (AssertionError, OSError, ValueError) as error:
        return f"{type(error).__name__} {str(error).splitlines()[:1]}"
    return ""


def end_of(said: str) -> str:
    """Return the last lines of what a run said."""
    return " / ".join(said.strip().splitlines()[-3:])[-600:]


class Campaign:
    """Faults of every kind, each a method, and what they came to.

    Args:
        root: folder of the runs.
        share: of the faults of each kind to try.
        seed: of all that is drawn.
    """

    def __init__(self, root: Path, share: float, seed: int) -> None:
        self.root, self.share, self.chance = root, share, random.Random(seed)
        self.tallies: dict[str, Tally] = {}
        self.images = make_images(root / "images")
        self.labeled = make_data(root / "labeled")
        self.scenes: dict[tuple[str, int], Scene] = {}
        self.seconds: dict[str, float] = {}
        self._runs = 0

    def scene(self, name: str, processes: int = 1) -> Scene:
        """Return a scene with its undisturbed run."""
        if (name, processes) not in self.scenes:
            commands = {"pretrain": self._pretrain, "finetune": self._finetune}
            made = Scene(name, partial(commands[name], processes), processes, self.new(f"{name}-{processes}"))
            began = time.monotonic()
            codes, said = live(made, made.reference)
            self.seconds[str(made)] = time.monotonic() - began
            if set(codes) != {0}:
                raise RuntimeError(f"the undisturbed run of {made} ended with {codes}:\n{said}")
            self.scenes[name, processes] = made
        return self.scenes[name, processes]

    def _pretrain(self, processes: int, output: Path) -> list[str]:
        more = {"workers": 0, "checkpoint_minutes": 0.0, "val_share": 0.0, "val_every": None, "epochs": 4.0}
        return arguments(output, self.images, processes, **more)

    def _finetune(self, processes: int, output: Path) -> list[str]:
        settings = TINY_FINETUNE | {"data": self.labeled, "checkpoint_minutes": 0.0, "image_size": 64, "epochs": 2.0}
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items()]
        return ["finetune", "--output", str(output), *[part for pair in pairs for part in pair]]

    def new(self, name: str) -> Path:
        """Return the folder of another run."""
        self._runs += 1
        return self.root / f"{self._runs:05}-{name}"

    def some(self, count: int) -> int:
        """Return how many of so many faults are tried."""
        return max(1, round(self.share * count))

    def tally(self, what: str) -> Tally:
        """Return the tally of a kind of fault."""
        return self.tallies.setdefault(what, Tally(what))

    def note_life(self, tally: Tally, scene: Scene, codes: list[int], said: str) -> None:
        """Count a run that hung, and one that ended unclearly."""
        tally.hung += 124 in codes
        odd = [code for code in codes if code not in (*DOCUMENTED, 124)]
        if odd or "Traceback (most recent" in said:
            tally.unclear += 1
            tally.notes.append(f"{scene}: exit {codes}: {end_of(said)}")

    def finish(self, tally: Tally, scene: Scene, output: Path, what: str = "") -> None:
        """Continue a disturbed run to its end, and compare it with the undisturbed one."""
        codes, said = live(scene, output, logs="last")
        if set(codes) != {0}:
            tally.lost += 1
            tally.notes.append(
                f"{scene} {what}: lost, exit {codes}: {' / '.join(said.strip().splitlines()[-3:])[:600]}"
            )
            return
        difference = unlike(output, scene.reference)
        if difference:
            tally.differing += 1
            tally.notes.append(f"{scene} {what}: {difference}")
        else:
            shutil.rmtree(output, ignore_errors=True)

    def disturbed(
        self, what: str, scene: Scene, prepare: Prepare = nothing, disturb: Disturb = lambda pids: None, label: str = ""
    ) -> None:
        """Try one fault in one run, continue that, and compare."""
        tally, output = self.tally(what), self.new("run")
        codes, said = live(scene, output, prepare, disturb)
        tally.faults += 1
        self.note_life(tally, scene, codes, said)
        tally.steps_lost = max(tally.steps_lost, last_logged(output) - newest_step(output))
        self.finish(tally, scene, output, label)

    # --- kinds of faults --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill runs at random moments, four times each, then let them end."""
        for name, processes, count in (("pretrain", 1, 100), ("finetune", 1, 100), ("pretrain", 2, 60)):
            scene = self.scene(name, processes)
            whole = self.seconds[str(scene)]
            tally = self.tally(f"kill -9 at a random moment: {scene}")
            for _ in range(max(1, self.some(count) // 4)):
                output = self.new("killed")
                for _ in range(min(4, self.some(count))):
                    moment = self.chance.uniform(0.1, 1.0) * whole
                    codes, said = live(scene, output, disturb=partial(self._kill, moment))
                    tally.faults += 1
                    self.note_life(tally, scene, codes, said)
                    tally.steps_lost = max(tally.steps_lost, last_logged(output) - newest_step(output))
                self.finish(tally, scene, output)

    def _kill(self, moment: float, pids: list[int]) -> None:
        time.sleep(moment)
        for number, pid in enumerate(self.chance.sample(pids, len(pids))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if number == 0 and len(pids) > 1:
                time.sleep(self.chance.choice([0.0, 0.05, 2.0]))  # torchrun ends the others somewhat later

    def storm(self) -> None:
        """Send SIGTERM, SIGUSR1 and SIGHUP again and again to all processes."""
        for name, processes, count in (("pretrain", 1, 20), ("finetune", 1, 10), ("pretrain", 2, 10)):
            scene = self.scene(name, processes)
            for _ in range(self.some(count)):
                began = self.chance.uniform(0.5, 1.0) * self.seconds[str(scene)]
                self.disturbed(f"a storm of signals: {scene}", scene, disturb=partial(self._storm, began))

    def _storm(self, began: float, pids: list[int]) -> None:
        time.sleep(began)
        for _ in range(200):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, self.chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]))
            time.sleep(0.005)

    def disk(self) -> None:
        """Fill the disk: at each call that writes, and for real, at many sizes."""
        for name in ("pretrain", "finetune"):
            scene = self.scene(name)
            counted = self.new("count")
            counts = counted.with_suffix(".writes")
            live(scene, counted, fault(full_from, -1, counts))
            writes = int(counts.read_text())
            for at in spread(writes, self.some(60)):
                what = f"no space left from the n-th write on (of {writes}): {name}"
                self.disturbed(what, scene, fault(full_from, at), label=f"write {at}")
        if not mounts():
            return
        scene = self.scene("pretrain")
        tally = self.tally("a disk of 0 to 20 MB, then enlarged: pretrain")
        for kib in spread(20 * 1024, self.some(40)):
            disk = self.new("disk")
            disk.mkdir()
            with mounted(disk, max(64, kib)):
                codes, said = live(scene, disk / "run")
                tally.faults += 1
                self.note_life(tally, scene, codes, said)
                subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
                self.finish(tally, scene, disk / "run", f"{kib} KiB")

    def shared(self) -> None:
        """Give processes that read images little shared memory."""
        if not mounts():
            return
        plain = self.scene("pretrain")
        scene = Scene("pretrain", lambda output: [*plain.command(output), "--workers", "2"], 1, plain.reference)
        tally = self.tally("/dev/shm of 4 KiB to 4 MiB, two readers: pretrain")
        for kib in spread(4096, self.some(12)):
            output = self.new("shared")
            with mounted(Path("/dev/shm"), max(4, kib)):
                codes, said = live(scene, output)
            tally.faults += 1
            self.note_life(tally, scene, codes, said)
            self.finish(tally, scene, output, f"{kib} KiB")

    def clock(self) -> None:
        """Let the clock jump, by days and backward; that of the machine's running time forward, as after a sleep."""
        scene = self.scene("pretrain")
        for seed in range(self.some(20)):
            self.disturbed("clock jumps: pretrain", scene, fault(jumping_clock, seed))

    def nan(self) -> None:
        """Put NaN into weights, gradients and images, at each step."""
        scene = self.scene("pretrain")
        for kind in (nan_weights, nan_gradients, nan_images):
            for at in spread(6, self.some(6)):
                what = f"NaN in {kind.__name__.removeprefix('nan_')}: pretrain"
                self.disturbed(what, scene, fault(kind, at))

    def checkpoint(self) -> None:
        """Cut the newest checkpoint off, or flip one of its bits, at many places; the older one is to be taken."""
        scene = self.scene("pretrain")
        paths = RunFolder(scene.reference).list_checkpoints()
        content = paths[-1].read_bytes()
        whole = read_checkpoint(paths[-1])
        copy = self.new("checkpoints")
        copy.mkdir()
        path = copy / paths[-1].name
        for what, count in (("cut off", 200), ("with a flipped bit", 200)):
            tally = self.tally(f"the newest checkpoint {what}, read")
            for place in spread(len(content), self.some(count)):
                path.write_bytes(damaged(content, what, place, self.chance))
                tally.faults += 1
                with suppress(BrokenCheckpoint):
                    tally.differing += not same(read_checkpoint(path), whole)
            for place in spread(len(content), self.some(10)):
                run, tally = self.new("damaged"), self.tally(f"the newest checkpoint {what}, the run continued")
                shutil.copytree(scene.reference, run)
                newest = RunFolder(run).list_checkpoints()[-1]
                newest.write_bytes(damaged(content, what, place, self.chance))
                tally.faults += 1
                tally.steps_lost = 1
                self.finish(tally, scene, run, str(place))

    def twice(self) -> None:
        """Start two runs in one folder, at moments that differ a little."""
        scene = self.scene("pretrain")
        tally = self.tally("two runs in one folder: pretrain")
        for _ in range(self.some(20)):
            output, port = self.new("twice"), free_port()
            logs = [output.with_name(f"{output.name}.twice.{number}") for number in range(2)]
            pids = []
            for log in logs:
                pids.append(start(scene.command(output), log, lambda: None, 0, 1, port))
                time.sleep(self.chance.uniform(0, 1) * self.seconds[str(scene)])
            codes = wait_for(pids)
            tally.faults += 1
            self.note_life(tally, scene, codes, "\n".join(log.read_text() for log in logs))
            self.finish(tally, scene, output)

    def vanish(self) -> None:
        """Move the folder of a run away and back while it trains."""
        scene = self.scene("pretrain")
        tally = self.tally("the folder vanishes for up to a second, and returns: pretrain")
        for _ in range(self.some(20)):
            output = self.new("vanishing")
            codes, said = live(scene, output, disturb=partial(self._vanish, output, self.seconds[str(scene)]))
            tally.faults += 1
            self.note_life(tally, scene, codes, said)
            self.finish(tally, scene, output)

    def _vanish(self, output: Path, whole: float, pids: list[int]) -> None:
        away, end = output.with_name(output.name + ".away"), time.monotonic() + PATIENCE
        while not output.exists() and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(self.chance.uniform(0, 0.4) * whole)
        output.rename(away)
        time.sleep(self.chance.choice([0.0, 0.01, 0.1, 1.0]))
        with suppress(OSError):  # the run has made another one meanwhile, and goes on there
            away.rename(output)

    def store(self) -> None:
        """Read images from a store that fails, is slow, or sends less than it was asked for."""
        plain = self.scene("pretrain")
        folder = self.images
        shards = self.root / "shards"
        subprocess.run(["tar", "--sort=name", "-cf", str(shards) + ".tar", "-C", str(folder), "."], check=True)
        address = f"wds://faulty://{shards}.tar"
        given = str(folder)
        scene = Scene(
            "pretrain", lambda out: [address if a == given else a for a in plain.command(out)], 1, plain.reference
        )
        for how in ("errors", "delays", "truncations"):
            for seed in range(self.some(20)):
                what = f"reads of a store with {how}: pretrain from tar files"
                self.disturbed(what, scene, fault(faulty_store, how, seed))

    def mutants(self) -> None:
        """Read mutated images: headers, sizes, bombs. Each is read, or listed with a reason."""
        folder, count = self.root / "mutants", self.some(2000)
        write_mutants(folder, count, self.chance)
        tally = self.tally("mutated images, each read by itself")
        seen = in_child(partial(read_all, folder))
        tally.faults += count
        tally.lost += count - int(seen["read"] + seen["refused"])
        tally.unclear += int(seen["without a reason"])
        tally.hung += seen["slowest"] > 10
        tally.notes.append(
            f"mutated images: {seen['read']:.0f} read, {seen['refused']:.0f} refused with a reason, slowest "
            f"{seen['slowest']:.2f} s, memory grew by {seen['MiB']:.0f} MiB"
        )
        plain = self.scene("pretrain")
        given, more = str(self.images), ["--max-broken", "1"]
        scene = Scene(
            "pretrain", lambda o: [str(folder) if a == given else a for a in plain.command(o)] + more, 1, Path()
        )
        tally = self.tally("mutated images, a run on them: pretrain")
        codes, said = live(scene, self.new("mutants"))
        tally.faults += 1
        tally.lost += codes != [0]
        self.note_life(tally, scene, codes, said)
        if codes != [0]:
            tally.notes.append(f"a run on mutated images: exit {codes}: {said.strip()[-500:]}")


KINDS = [
    *("kill", "storm", "disk", "shared", "clock", "nan", "checkpoint", "twice", "vanish", "store", "mutants"),
]


# --- faults, in the process of a run --------------------------------------------------------------------------------


def full_from(at: int, counts: Path | None = None) -> None:
    """Let every call that writes a file fail from the `at`th on; with -1 none fails, and their number is written."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if counts is not None:
            with open(counts, "w") as file:
                file.write(str(calls))
        if 0 <= at < calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(owner: Any, name: str, applies: Callable[..., bool] = lambda *_, **__: True) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if applies(*args, **kwargs):
                call()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    failing(os, "fsync")
    failing(os, "replace")
    failing(os, "mkdir")
    failing(os, "open", lambda path, flags, *_, **__: bool(flags & os.O_CREAT))
    failing(metrics_module.Metrics, "write")
    failing(metrics_module.Metrics, "sync")
    original = io_module.write_atomically

    def half_written(path: Path, write: Callable[[Any], object]) -> None:
        def write_some(file: Any) -> object:
            call()
            return write(file)

        original(path, write_some)

    for module in list(sys.modules.values()):
        if getattr(module, "write_atomically", None) is original:
            module.write_atomically = half_written  # type: ignore[attr-defined]


def jumping_clock(seed: int) -> None:
    """Let the time of day jump anywhere, and the machine's running time forward."""
    chance, real, running = random.Random(seed), time.time, time.monotonic
    ahead = 0.0

    def monotonic() -> float:
        nonlocal ahead
        if chance.random() < 0.02:
            ahead += chance.choice([1.0, 3600.0, 1e6])
        return running() + ahead

    time.time = lambda: real() + chance.choice([-1e8, -86400.0, 0.0, 0.0, 3600.0, 1e8])
    time.monotonic = monotonic


def at_step(at: int, act: Callable[[Trainer], None]) -> None:
    """Do something before a step."""
    original = step_module.Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step == at:
            act(self)
        return original(self, batches)

    step_module.Trainer.train_step = train_step  # type: ignore[method-assign]


def nan_weights(at: int) -> None:
    """Put NaN into a weight before a step."""

    def act(trainer: Trainer) -> None:
        with torch.no_grad():
            next(trainer.model.parameters()).view(-1)[0] = float("nan")

    at_step(at, act)


def nan_gradients(at: int) -> None:
    """Put NaN into a gradient of a step."""

    def act(trainer: Trainer) -> None:
        next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))

    at_step(at, act)


def nan_images(at: int) -> None:
    """Put NaN into the images of a step."""
    original = SparK.forward

    def forward(self: SparK, images: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(self, images * float("nan"), *args, **kwargs)

    def act(trainer: Trainer) -> None:
        SparK.forward = forward  # type: ignore[method-assign]

    at_step(at, act)


class Faulty(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Local files by a store that has faults."""

    protocol = "faulty"
    how = "none"
    chance = random.Random(0)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return bytes of a file, unless this is a bad moment."""
        content: bytes = super().cat_file(path, start, end, **kwargs)
        bad = self.chance.random() < 0.2
        if self.how == "errors" and bad:
            raise self.chance.choice([ConnectionResetError("reset"), TimeoutError("timeout"), OSError(5, "I/O error")])
        if self.how == "delays" and bad:
            time.sleep(0.1)
        if self.how == "truncations" and bad and start is not None:
            return content[: self.chance.randrange(len(content) + 1)]
        return content


fsspec.register_implementation("faulty", Faulty)


def faulty_store(how: str, seed: int) -> None:
    """Begin the faults of the store, without a cache and without the waits between two tries."""
    os.environ["SPARKMIM_CACHE_GB"] = "0"
    Faulty.how, Faulty.chance = how, random.Random(seed)
    reading.WAITS = (0.0,) * 12  # type: ignore[assignment]


# --- disks ----------------------------------------------------------------------------------------------------------

_own: list[bool] = []


def mounts() -> bool:
    """Enter a name space of mounts of this process's own, and return whether that is allowed."""
    if not _own:
        new = 0x00020000  # CLONE_NEWNS
        _own.append(os.geteuid() == 0 and ctypes.CDLL(None).unshare(new) == 0)
        if _own[0]:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    return _own[0]


@contextmanager
def mounted(place: Path, kib: int) -> Iterator[None]:
    """Mount an empty disk of so many KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# --- files ----------------------------------------------------------------------------------------------------------


def spread(size: int, count: int) -> list[int]:
    """Return so many numbers below a size, evenly spread."""
    count = min(size, count)
    return [number * size // count for number in range(count)]


def damaged(content: bytes, what: str, place: int, chance: random.Random) -> bytes:
    """Return a file that is cut off at a place, or one of whose bits there is another."""
    if what == "cut off":
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def same(one: Any, other: Any) -> bool:
    """Return whether two contents are equal in every bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")


def write_mutants(folder: Path, count: int, chance: random.Random) -> None:
    """Write images whose bytes are changed, cut off, swapped or claim other sizes."""
    folder.mkdir()
    seeds: list[tuple[str, bytes]] = []
    generator = np.random.default_rng(0)
    for kind in FORMATS:
        for mode in ("RGB", "L"):
            buffer = BytesIO()
            picture = Image.fromarray(generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)).convert(mode)
            picture.save(buffer, kind)
            seeds.append((kind.lower(), buffer.getvalue()))
    buffer = BytesIO()
    np.save(buffer, generator.random((40, 56, 3), dtype=np.float32))
    seeds.append(("npy", buffer.getvalue()))
    for number in range(count):
        ending, content = seeds[number % len(seeds)]
        (folder / f"{number:05}.{ending}").write_bytes(mutant(bytearray(content), chance))


def mutant(content: bytearray, chance: random.Random) -> bytes:
    """Return an image with one kind of damage."""
    head = min(len(content), 64)
    kind = chance.randrange(5)
    if kind == 0:
        del content[chance.randrange(len(content)) :]
    elif kind == 1:  # sizes, counts and offsets stand at the beginning
        content[chance.randrange(head)] = chance.randrange(256)
    elif kind == 2:
        place = chance.randrange(head - 4)
        content[place : place + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0"])
    elif kind == 3:
        for _ in range(chance.randrange(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    else:
        start = chance.randrange(len(content))
        content[start:start] = content[chance.randrange(len(content)) :][: chance.randrange(200)]
    return bytes(content)


def read_all(folder: Path) -> dict[str, float]:
    """Read each image of a folder; return what was seen."""
    source = open_source(folder)
    seen = {"read": 0, "refused": 0, "without a reason": 0, "slowest": 0.0, "MiB": 0.0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(len(source)):
        began = time.monotonic()
        try:
            open_image(source, index, DEFAULT_FILES).decode(3)
            seen["read"] += 1
        except UnreadableImage as error:
            seen["refused"] += 1
            seen["without a reason"] += not str(error).strip()
        seen["slowest"] = max(seen["slowest"], time.monotonic() - began)
    seen["MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return seen


def in_child(function: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the result of a function in a process of its own, of which a crash counts as nothing read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            os.write(writer, json.dumps(function()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    nothing_read = {"read": 0, "refused": 0, "without a reason": 0, "slowest": 0.0, "MiB": 0.0}
    return json.loads(content) if content else nothing_read


# --- the report -----------------------------------------------------------------------------------------------------

HEADING = "| fault | tried | runs lost | results differ | hung | unclear messages | most steps lost |"


def report(tallies: Iterable[Tally], command: str, seconds: float) -> str:
    """Return the campaign's table as Markdown."""
    tallies = list(tallies)
    total = Tally("**all**")
    for tally in tallies:
        for name in ("faults", "lost", "differing", "hung", "unclear"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.steps_lost = max(total.steps_lost, tally.steps_lost)
    notes = [f"- {note}" for tally in tallies for note in tally.notes]
    rows = [f"| {tally.row().strip('| ')} |" for tally in [*tallies, total]]
    return "\n".join(
        [
            "# A campaign of faults",
            "",
            f"`{command}`, {datetime.date.today()}, {seconds / 60:.0f} minutes at low priority beside other work, "
            f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores.",
            "",
            "A run is continued by the same command after the fault, and compared with an undisturbed one: lines of",
            "`metrics.jsonl`, the encoder or classifier, and weights, optimizer and precision of the newest",
            "checkpoint, to the bit. Steps lost are those that `metrics.jsonl` tells of and no checkpoint has; here a",
            "checkpoint is written after each step.",
            "",
            HEADING,
            "|---|" + "---|" * 6,
            *rows,
            "",
            *notes,
            "",
        ]
    )


def main() -> int:
    """Try faults of all kinds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        campaign = Campaign(Path(folder), chosen.share, chosen.seed)
        for kind in chosen.only:
            print(f"{time.monotonic() - began:6.0f} s  {kind}", file=sys.stderr, flush=True)
            getattr(campaign, kind)()
            text = report(campaign.tallies.values(), shlex_join(sys.argv), time.monotonic() - began)
            if chosen.output:
                chosen.output.write_text(text)
    print(text)
    return int(any(t.lost or t.differing or t.hung or t.unclear for t in campaign.tallies.values()))


def shlex_join(words: list[str]) -> str:
    """Return the command as it was given."""
    return "python " + " ".join(["benchmarks/faults.py", *words[1:]])


if __name__ == "__main__":
    sys.exit(main())
