"""The training loop: step after step, and what happens between them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from ..data.loader import read
from ..data.sampler import Positions
from ..utils.distributed import gather
from ..utils.logging import log
from .errors import RunStopped, explained, last_good, not_finite, weights_not_finite
from .metrics import Metrics, peak_memory_bytes
from .progress import Progress
from .schedule import steps_of
from .signals import StopRequest
from .step import StepResult, Trainer
from .task import Evaluator, TrainingTask
from .unreadable import UnreadableImages

AGREE_SECONDS = 5.0
"""Between two times that processes ask each other whether to stop; schedulers kill half a minute after they signal."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        step: steps done.
        steps: steps planned.
        loss: moving average of the loss; None if nothing was left to do.
        measured: the newest numbers of evaluators, by name.
        interrupted: the signal that interrupted the run, if one did.
    """

    step: int
    steps: int
    loss: float | None
    measured: Mapping[str, float]
    interrupted: str | None


class TrainingLoop:
    """One process's part of a run.

    Args:
        task: what is trained.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    def __init__(
        self,
        task: TrainingTask[Any],
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.task, self.trainer = task, Trainer(task)
        self.config, self.source, self.run, self.fabric = task.config, task.source, task.run, task.fabric
        self.after_step = after_step or (lambda step: None)
        self.unreadable = UnreadableImages(task.source, task.run, task.config.data.max_broken)
        self.pending: list[StepResult] = []  # steps whose numbers are still on the device
        self.average: float | None  # moving one of the loss, which the user saw last
        self.measured: dict[str, float]  # the newest numbers of evaluators
        self.losses: list[float] = []  # of the steps since the last line of metrics
        self.norms: list[float] = []
        if state is not None:
            self.trainer.load(state)
            self.unreadable.load_state(state["broken"])
            self.losses, self.norms = state.get("unlogged", ([], []))
        shown = state.get("told") if state is not None else None  # older checkpoints have none
        self.average, self.measured = shown or (None, {})
        self.stop = StopRequest()

    def positions(self) -> Positions:
        """Return which images the remaining steps show."""
        return Positions(
            len(self.source),
            self.config.run.batch_size,
            self.trainer.steps,
            self.config.run.seed,
            start=self.trainer.step,
            accumulate=self.config.run.accumulate,
            process=self.fabric.global_rank,
            processes=self.fabric.world_size,
            repeats=self.task.repeats,
        )

    def train(self) -> Outcome:
        """Train from the current step to the last.

        Raises:
            RunStopped: if the loss is not finite, too many images are broken, memory or the disk is full.
        """
        task, trainer, run, first = self.task, self.trainer, self.config.run, self.fabric.is_global_zero
        start = trainer.step
        if trainer.step == trainer.steps:
            with explained(trainer, self.run), trainer.eager():
                task.publish()  # a crash may have come between the last checkpoint and what is made of it
            return Outcome(trainer.step, trainer.steps, None, {}, None)
        loader = task.batches(self.positions())
        pictures = {round(trainer.steps * n / task.pictures) for n in range(1, task.pictures + 1)}
        due_every = [steps_of(e.epochs, len(self.source), run.batch_size) for e in task.evaluators]
        self.progress = Progress(trainer.steps, trainer.step, loss=self.average, measured=self.measured)
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
                self.unreadable.add(result.broken)
                self.progress.advance()
                if trainer.step == start + 1 and trainer.not_compiled is not None:
                    log.info(f"not compiled ({trainer.not_compiled}); continuing without, with the same numbers")
                self.after_step(trainer.step)
                last = trainer.step == trainer.steps
                if last or trainer.step % run.log_every == 0:
                    self._log()
                for evaluator, every in zip(task.evaluators, due_every, strict=True):
                    if last or (trainer.step % every == 0 and 2 * (trainer.steps - trainer.step) >= every):
                        self._evaluate(evaluator)
                if trainer.step in pictures:
                    self._draw()
                asked, due = self._agree()
                if asked is not None and not last:
                    log.info(f"{asked}: saving")
                if due and not last and asked is None:
                    self._save()
            self._save()
        interrupted = asked if trainer.step < trainer.steps else None
        return Outcome(trainer.step, trainer.steps, self.progress.loss, self.measured, interrupted)

    def _restart_checkpoint_clock(self) -> None:
        self.checkpoint_due = time.monotonic() + 60 * self.config.run.checkpoint_minutes

    def _restart_interval(self) -> None:
        """Restart the measurement of speed."""
        self.interval_start, self.interval_step = time.monotonic(), self.trainer.step

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Do something other than steps; it does not count as training time."""
        self._read_pending()
        start = time.monotonic()
        with self.trainer.eager():
            yield
        self.interval_start += time.monotonic() - start

    def _read_pending(self) -> None:
        """Wait for the numbers of the steps since the last time, from all processes; raise if one is not finite."""
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
        for part in gather(self.fabric, self.unreadable.errors):
            self.unreadable.add(part.items())
        if self.unreadable.update_list(write=self.fabric.is_global_zero):
            log.info(f"{self.unreadable.summary()} and are replaced by others; see {self.run.broken}")
        self.losses += losses
        self.norms += [norm for norm in norms if math.isfinite(norm)]

    def _log(self) -> None:
        """Write a line of metrics of the steps since the last one."""
        self._read_pending()
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
        """Return the signal that asks for a stop, and whether a checkpoint is due, by the first process's clock.

        All processes get the same answer, at the same step, for what follows is work that they do together.
        """
        if self.fabric.world_size == 1:
            return self.stop.signal, time.monotonic() >= self.checkpoint_due
        step, (then, before) = self.trainer.step, self.agreed
        if step < self.agree_at and step % self.config.run.log_every:
            return None, False  # asking every step would wait for the device
        self._read_pending()  # so that the time is that of the steps, not of handing them to the device
        now = time.monotonic()
        answers = gather(self.fabric, (self.stop.signal, now >= self.checkpoint_due, (now - then) / (step - before)))
        pace = answers[0][2]
        self.agreed, self.agree_at = (now, step), step + max(1, int(AGREE_SECONDS / pace))
        return next((name for name, _, _ in answers if name is not None), None), answers[0][1]

    def _evaluate(self, evaluator: Evaluator) -> None:
        """Measure, and write the numbers."""
        with self._aside():
            values = evaluator.measure()
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunStopped(
                    f"{name} is {value} after step {self.trainer.step}, though all training losses were finite. Last "
                    f"good state: {last_good(self.run)}"
                )
        self.measured |= values
        self._write(values)

    def _draw(self) -> None:
        with self._aside():
            if self.fabric.is_global_zero:
                self.task.draw()

    def _save(self) -> None:
        """Write a checkpoint, and what is made of it, of a state known to be finite."""
        with self._aside():
            if self.fabric.is_global_zero:
                bad = self.trainer.nonfinite_tensors()
                if bad:
                    raise weights_not_finite(self.trainer, self.run, bad)
                state = {
                    **self.trainer.state(),
                    "broken": self.unreadable.state(),
                    "unlogged": (self.losses, self.norms),
                    "told": (self.progress.loss, self.measured),
                    "config": json.dumps(self.config.to_dict()),
                }
                self.run.save_checkpoint(state, self.trainer.step, self.config.run.keep_checkpoints)
            self.task.publish()
        self._restart_checkpoint_clock()
