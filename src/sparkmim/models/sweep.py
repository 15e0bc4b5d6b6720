"""Many networks, each checked where it can do no harm, outcomes kept as they come."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch

from .. import backbone, sparse
from .inspection import one_line
from .verdict import Verdict, check_model, family_of, inspect_model

_TASKS: dict[str, Callable[[str], Verdict]] = {"inspect": inspect_model, "check": check_model}


def _work(connection: Any) -> None:
    while True:
        task, model = connection.recv()
        try:
            connection.send(_TASKS[task](model))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {one_line(error)}")


class Worker:
    """A process that inspects and checks networks. One that crashes or takes too long is replaced.

    Args:
        timeout: seconds that one network may take.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._process: Any = None

    def __call__(self, task: str, model: str) -> Verdict:
        """The outcome of a task; what went wrong is its error."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
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
    """Outcomes so far, a line of JSON each, so that a sweep can be continued by the engine that began it.

    Args:
        path: of the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.engine = fingerprint()
        self.known: dict[tuple[str, str], Verdict] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            entry = json.loads(line)
            if entry.pop("engine") == self.engine:
                self.known[entry.pop("task"), entry["model"]] = Verdict(**entry)

    def __call__(self, task: str, model: str, worker: Worker) -> Verdict:
        """The outcome of a task, from the file if it is there."""
        if (task, model) not in self.known:
            verdict = self.known[task, model] = worker(task, model)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"engine": self.engine, "task": task, **asdict(verdict)}) + "\n")
        return self.known[task, model]


def fingerprint() -> str:
    """Of the code and the versions that outcomes depend on."""
    digest = hashlib.sha256(f"torch {torch.__version__} timm {timm.__version__}".encode())
    folder = Path(next(iter(sparse.__path__)))
    for path in [Path(__file__), Path(backbone.__file__), *sorted(folder.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def sweep(
    patterns: Sequence[str] = (),
    *,
    every: bool = False,
    journal: Path | None = None,
    timeout: float = 1800.0,
    tell: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Inspect timm's networks, and check those that count.

    Args:
        patterns: names of networks, with `*` and `?`; all of those. Without any, of each family the smallest that
            counts.
        every: all networks.
        journal: file of the outcomes, to continue from.
        timeout: seconds that one network may take.
        tell: is told of every outcome as it comes.

    Raises:
        ValueError: for a pattern that no network has.
    """
    names: list[str] = timm.list_models()
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"timm has no network {pattern!r}; timm.list_models() lists the names")
    if patterns:
        names = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    worker, known = Worker(timeout), Journal(journal)
    verdicts: list[Verdict] = []
    counting: list[Verdict] = []
    try:
        for name in names:
            verdict = known("inspect", name, worker)
            if verdict.excluded or verdict.error:
                verdicts.append(verdict)
                tell(verdict)
            else:
                counting.append(verdict)
        if not patterns and not every:
            smallest: dict[str, Verdict] = {}
            for verdict in sorted(counting, key=lambda verdict: verdict.parameters):
                smallest.setdefault(verdict.family, verdict)
            counting = sorted(smallest.values(), key=lambda verdict: verdict.family)
        for inspected in counting:
            verdict = known("check", inspected.model, worker)
            verdicts.append(verdict)
            tell(verdict)
    finally:
        worker.close()
    return verdicts
