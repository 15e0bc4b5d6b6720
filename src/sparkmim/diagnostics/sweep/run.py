"""Check many networks, each in a separate process, and store outcomes as they come."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import queue
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from fnmatch import fnmatch
from itertools import repeat
from pathlib import Path
from typing import Any

import timm
import torch

from ... import sparse
from ...models import alignment, backbone
from ...utils.logging import log
from .inspection import one_line
from .verdict import Verdict, check_model, family_of, inspect_model

_TASKS: dict[str, Callable[[str], Verdict]] = {"inspect": inspect_model, "check": check_model}


def _work(connection: Any, memory: int | None, threads: int | None) -> None:
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        task, model = connection.recv()
        try:
            answer: Any = _TASKS[task](model)
        except Exception as error:
            answer = f"{type(error).__name__}: {one_line(error)}"
        connection.send(answer)


class Worker:
    """A process that inspects and checks networks, replaced if it crashes or takes too long.

    Args:
        timeout: seconds that one network may take.
        memory: bytes that the process may use; None for no limit.
        threads: number of threads; None for the number of cores.
    """

    def __init__(self, timeout: float, memory: int | None = None, threads: int | None = None) -> None:
        self.timeout, self.memory, self.threads = timeout, memory, threads
        self._process: Any = None

    def __call__(self, task: str, model: str) -> Verdict:
        """Return the outcome of a task, with the error if it failed."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, self.memory, self.threads), daemon=True)
            self._process.start()
            theirs.close()
        self._connection.send((task, model))
        try:
            answer = self._connection.recv() if self._connection.poll(self.timeout) else None
        except EOFError:
            self._process.join()
            answer = f"its process ended with code {self._process.exitcode}"
            self.close()
        if answer is None:
            answer = f"it took longer than {self.timeout:g} seconds"
            self.close()
        if isinstance(answer, Verdict):
            return answer
        return Verdict(model=model, family=family_of(model), error=answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


class Journal:
    """Outcomes so far, a line of JSON each, so that a sweep can be resumed.

    Args:
        path: the file; None to store nothing.
        older: also use outcomes of other versions, except failures.
    """

    def __init__(self, path: Path | None, *, older: bool = False) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.versions = versions()
        self.known: dict[tuple[str, str], Verdict] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            entry = json.loads(line)
            task, verdict = entry.pop("task"), Verdict(**entry)
            good = task == "inspect" or verdict.passed
            if verdict.versions == self.versions or (older and good):
                self.known[task, verdict.model] = verdict

    def __call__(self, task: str, model: str, worker: Worker) -> Verdict:
        """Return the outcome of a task, from the file if it is there."""
        if (task, model) not in self.known:
            verdict = self.known[task, model] = replace(worker(task, model), versions=self.versions)
            if self.path is not None:
                with self.lock, self.path.open("a") as file:
                    file.write(json.dumps({"task": task, **asdict(verdict)}) + "\n")
        return self.known[task, model]


def versions() -> str:
    """Return what outcomes depend on: a digest of the code, and versions."""
    digest = hashlib.sha256()
    folder = Path(next(iter(sparse.__path__)))
    own = [Path(__file__).parent / name for name in ("inspection.py", "verdict.py")]
    for path in [*own, Path(backbone.__file__), Path(alignment.__file__), *sorted(folder.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return f"engine {digest.hexdigest()[:12]}, torch {torch.__version__}, timm {timm.__version__}"


def sweep(
    patterns: Sequence[str] = (),
    *,
    every: bool = False,
    up_to: float = math.inf,
    journal: Path | None = None,
    older: bool = False,
    jobs: int = 1,
    memory: float | None = None,
    timeout: float = 1800.0,
) -> list[Verdict]:
    """Inspect timm's networks, and check the convolutional ones, the smallest first; log each outcome.

    Args:
        patterns: names of networks, with `*` and `?`. Without any, the smallest convolutional network of each family.
        every: check all networks.
        up_to: millions of parameters; larger networks without a stored outcome are pending.
        journal: file of the outcomes, to resume from.
        older: also use stored outcomes of other versions, except failures.
        jobs: number of networks at a time, each in a process of its own.
        memory: GiB that each network may use; no limit by default.
        timeout: seconds that one network may take.

    Returns:
        A verdict for each network, or for each architecture that several networks share.

    Raises:
        ValueError: for a pattern without a match, or fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"expected --jobs of at least 1, got {jobs}")
    names: list[str] = timm.list_models()
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"timm has no network {pattern!r}; timm.list_models() lists the names")
    if patterns:
        names = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    known = Journal(journal, older=older)
    limit = None if memory is None else int(memory * 2**30)
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for _ in range(jobs):
        workers.put(Worker(timeout, limit, threads))

    def outcome(task: str, model: str) -> Verdict:
        worker = workers.get()
        try:
            return known(task, model, worker)
        finally:
            workers.put(worker)

    pool = ThreadPoolExecutor(jobs)
    try:
        verdicts: list[Verdict] = []
        counting: list[Verdict] = []
        for verdict in pool.map(outcome, repeat("inspect"), names):
            if verdict.excluded or verdict.error:
                verdicts.append(verdict)
                log.info(str(verdict))
            else:
                counting.append(verdict)
        distinct = _distinct(counting) if every or patterns else _smallest_of_families(counting)
        asked = [v for v in distinct if v.parameters <= up_to * 1e6 or ("check", v.model) in known.known]
        for verdict, inspected in zip(pool.map(outcome, repeat("check"), [v.model for v in asked]), asked, strict=True):
            verdicts.append(replace(verdict, same=inspected.same))
            log.info(str(verdict))
        verdicts += [replace(v, pending=True) for v in distinct if v not in asked]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not workers.empty():
            workers.get().close()
    return verdicts


def _distinct(counting: Sequence[Verdict]) -> list[Verdict]:
    """Return one network of each architecture, the smallest first, with the names of the others."""
    same: dict[str, list[Verdict]] = {}
    for verdict in sorted(counting, key=lambda v: (v.parameters, len(v.model), v.model)):
        same.setdefault(verdict.architecture, []).append(verdict)
    return [replace(first, same=[other.model for other in others]) for first, *others in same.values()]


def _smallest_of_families(counting: Sequence[Verdict]) -> list[Verdict]:
    smallest: dict[str, Verdict] = {}
    for verdict in sorted(counting, key=lambda v: v.parameters):
        smallest.setdefault(verdict.family, verdict)
    return sorted(smallest.values(), key=lambda v: v.family)
