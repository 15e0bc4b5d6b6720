"""The training loop: step after step, and what happens between them."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from ..checkpoints.run_folder import RunFolder
from ..data.loader import read
from ..data.sampler import Positions
from ..data.sources.base import ImageSource
from ..utils.distributed import gather
from .config import TrainingConfig
from .errors import RunStopped, explained, kept, not_finite, spoilt
from .metrics import Metrics, peak_memory_bytes
from .progress import Progress
from .schedule import steps_of
from .signals import StopRequest
from .step import StepResult, Trainer
from .unreadable import BrokenImages

AGREE_SECONDS = 5.0
"""Between two times that processes ask each other whether to stop; schedulers kill half a minute after they signal."""


class Outcome(NamedTuple):
    """How a run ended: steps done and planned, moving average of the loss, the newest numbers measured, and the
    signal that interrupted it, if one did.
    """

    step: int
    steps: int
    loss: float | None
    measured: Mapping[str, float]
    interrupted: str | None


class Evaluation(NamedTuple):
    """Something to measure between steps.

    Attributes:
        epochs: between two times; it is measured after the last step as well, and not shortly before.
        measure: gives finite numbers by name, the same in all processes, which do it together.
    """

    epochs: float
    measure: Callable[[], dict[str, float]]


class Training(ABC):
    """One process's part of a training of any kind; what kind, its subclasses say.

    Args:
        config: what to do.
        trainer: what is trained.
        source: images to train on.
        run: where to write.
        fabric: device, precision and processes, launched.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    evaluations: Sequence[Evaluation]
    """What to measure between steps."""

    pictures: int
    """How many times over the run to draw."""

    repeats: int = 1
    """Views of each image in a step."""

    def __init__(
        self,
        config: TrainingConfig,
        trainer: Trainer[Any, Any],
        source: ImageSource,
        run: RunFolder,
        fabric: Fabric,
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.trainer, self.source, self.run, self.fabric = config, trainer, source, run, fabric
        self.after_step = after_step or (lambda step: None)
        self.broken = BrokenImages(source, run, config.data.max_broken)
        self.pending: list[StepResult] = []  # steps whose numbers are still on the device
        self.average: float | None  # moving one of the loss, which the user saw last
        self.measured: dict[str, float]  # the newest numbers of evaluations
        self.losses: list[float] = []  # of the steps since the last line of metrics
        self.norms: list[float] = []
        if state is not None:
            self.trainer.load(state)
            self.broken.load(state["broken"])
            self.losses, self.norms = state.get("unlogged", ([], []))
        told = state.get("told") if state is not None else None  # older checkpoints have none
        self.average, self.measured = told or (None, {})
        self.stop = StopRequest()

    @abstractmethod
    def batches(self, positions: Positions) -> DataLoader[Any]:
        """The batches to train on."""

    @abstractmethod
    def estimate(self) -> list[str]:
        """How long the run will take, in lines for the user; see :func:`~sparkmim.training.estimate.estimate`."""

    @abstractmethod
    def draw(self) -> None:
        """Draw what the model does now; one process's work."""

    @abstractmethod
    def publish(self) -> None:
        """Write what is made of a checkpoint, all processes' work."""

    def state(self) -> dict[str, Any]:
        """For the checkpoint, beside the trainer's and the loop's own."""
        return {}

    def positions(self) -> Positions:
        """Which images the steps to come show."""
        return Positions(
            len(self.source),
            self.config.run.batch_size,
            self.trainer.steps,
            self.config.run.seed,
            start=self.trainer.step,
            accumulate=self.config.run.accumulate,
            process=self.fabric.global_rank,
            processes=self.fabric.world_size,
            repeats=self.repeats,
        )

    def train(self) -> Outcome:
        """Train from the current step to the last.

        Raises:
            RunStopped: if the loss is not finite, too many images are broken, memory or the disk is full.
        """
        trainer, run, first = self.trainer, self.config.run, self.fabric.is_global_zero
        start = trainer.step
        if trainer.step == trainer.steps:
            with explained(trainer, self.run), trainer.eager():
                self.publish()  # a crash may have come between the last checkpoint and what is made of it
            return Outcome(trainer.step, trainer.steps, None, {}, None)
        loader = self.batches(self.positions())
        pictures = {round(trainer.steps * n / self.pictures) for n in range(1, self.pictures + 1)}
        due_every = [steps_of(e.epochs, len(self.source), run.batch_size) for e in self.evaluations]
        self.progress = Progress(trainer.steps, trainer.step, shown=first, loss=self.average, measured=self.measured)
        trainer.model.train()
        asked: str | None = None  # the signal that asks for a stop
        with explained(trainer, self.run), self.stop, ExitStack() as until_end:
            until_end.callback(self.progress.close)
            batches = until_end.enter_context(read(loader))
            self.metrics = Metrics(self.run, trainer.step) if first else None
            if self.metrics is not None:
                until_end.callback(self.metrics.close)
            self._restart_checkpoint_clock()
            self._restart_interval()
            self.agreed, self.agree_at = (time.monotonic(), trainer.step), trainer.step + 1
            while trainer.step < trainer.steps and asked is None:
                result = trainer.train_step(batches)
                self.pending.append(result)
                self.broken.note(result.broken)
                self.progress.advance()
                if trainer.step == start + 1 and trainer.not_compiled is not None:
                    self.progress.say(f"not compiled ({trainer.not_compiled}); going on without, with the same numbers")
                self.after_step(trainer.step)
                last = trainer.step == trainer.steps
                if last or trainer.step % run.log_every == 0:
                    self._log()
                for evaluation, every in zip(self.evaluations, due_every, strict=True):
                    if last or (trainer.step % every == 0 and 2 * (trainer.steps - trainer.step) >= every):
                        self._evaluate(evaluation)
                if trainer.step in pictures:
                    self._draw()
                asked, due = self._agree()
                if asked is not None and not last:
                    self.progress.say(f"{asked}: saving")
                if due and not last and asked is None:
                    self._save()
            self._save()
        interrupted = asked if trainer.step < trainer.steps else None
        return Outcome(trainer.step, trainer.steps, self.progress.loss, self.measured, interrupted)

    def _restart_checkpoint_clock(self) -> None:
        self.checkpoint_due = time.monotonic() + 60 * self.config.run.checkpoint_minutes

    def _restart_interval(self) -> None:
        """Begin to measure speed anew."""
        self.interval_start, self.interval_step = time.monotonic(), self.trainer.step

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Something else than steps, which does not count as time of training."""
        self._read()
        start = time.monotonic()
        with self.trainer.eager():
            yield
        self.interval_start += time.monotonic() - start

    def _read(self) -> None:
        """Wait for the numbers of the steps since the last time, from all processes, and see that they are finite."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        own = torch.stack([torch.stack([result.loss.float(), result.grad_norm.float()]) for result in pending])
        numbers = self.fabric.all_reduce(own.clone(), reduce_op="mean")  # which works in place
        assert isinstance(numbers, torch.Tensor)
        losses, norms = numbers.T.tolist()
        scaled = self.config.run.precision == "16-mixed"  # there, gradients that overflow are skipped
        for result, mine, loss, norm in zip(pending, own[:, 0].tolist(), losses, norms, strict=True):
            if not (math.isfinite(loss) and (scaled or math.isfinite(norm))):
                suspects = [] if math.isfinite(mine) and not math.isfinite(loss) else result.indices
                names = [self.source.name(i) for part in gather(self.fabric, suspects) for i in part]
                raise not_finite(self.trainer, self.run, result.step, loss, norm, names)
        for part in gather(self.fabric, self.broken.errors):
            self.broken.note(part.items())
        if self.broken.list_new(write=self.fabric.is_global_zero):
            self.progress.say(f"{self.broken.count()} and others take their place; see {self.run.broken}")
        self.losses += losses
        self.norms += [norm for norm in norms if math.isfinite(norm)]

    def _log(self) -> None:
        """Write a line of the numbers of the steps since the last one."""
        self._read()
        lr, decay = self.trainer.rates(self.trainer.step - 1)
        images = (self.trainer.step - self.interval_step) * self.config.run.batch_size
        self._write(
            {
                "loss": sum(self.losses) / len(self.losses),
                "lr": lr,
                "weight_decay": decay,
                **({"grad_norm": sum(self.norms) / len(self.norms)} if self.norms else {}),
                "images_per_second": images / (time.monotonic() - self.interval_start),
                "peak_memory_bytes": peak_memory_bytes(self.fabric.device),
            }
        )
        self.losses, self.norms = [], []
        self._restart_interval()

    def _write(self, values: dict[str, float]) -> None:
        step = self.trainer.step
        line = {"step": step, "epoch": round(step * self.config.run.batch_size / len(self.source), 4), **values}
        if self.metrics is not None:
            self.metrics.write(line)
        self.progress.show(line)

    def _agree(self) -> tuple[str | None, bool]:
        """The signal that asks for a stop, and whether it is time for a checkpoint, by the first process's clock.

        All processes get the same answer, at the same step, for what follows is work that they do together.
        """
        if self.fabric.world_size == 1:
            return self.stop.signal, time.monotonic() >= self.checkpoint_due
        step, (then, before) = self.trainer.step, self.agreed
        if step < self.agree_at and step % self.config.run.log_every:
            return None, False  # asking every step would wait for the device
        self._read()  # so that the time is that of the steps, not of handing them to the device
        now = time.monotonic()
        answers = gather(self.fabric, (self.stop.signal, now >= self.checkpoint_due, (now - then) / (step - before)))
        pace = answers[0][2]
        self.agreed, self.agree_at = (now, step), step + max(1, int(AGREE_SECONDS / pace))
        return next((name for name, _, _ in answers if name is not None), None), answers[0][1]

    def _evaluate(self, evaluation: Evaluation) -> None:
        """Measure, and write the numbers."""
        with self._aside():
            values = evaluation.measure()
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunStopped(
                    f"{name} is {value} after step {self.trainer.step}, though all training losses were finite. Last "
                    f"good state: {kept(self.run)}"
                )
        self.measured |= values
        self._write(values)

    def _draw(self) -> None:
        with self._aside():
            if self.fabric.is_global_zero:
                self.draw()

    def _save(self) -> None:
        """Write a checkpoint, and what is made of it, of a state known to be finite."""
        with self._aside():
            if self.fabric.is_global_zero:
                bad = self.trainer.not_finite()
                if bad:
                    raise spoilt(self.trainer, self.run, bad)
                state = {
                    **self.trainer.state(),
                    **self.state(),
                    "broken": self.broken.state(),
                    "unlogged": (self.losses, self.norms),
                    "told": (self.progress.loss, self.measured),
                    "config": json.dumps(self.config.to_dict()),
                }
                self.run.save_checkpoint(state, self.trainer.step, self.config.run.keep_checkpoints)
            self.publish()
        self._restart_checkpoint_clock()
