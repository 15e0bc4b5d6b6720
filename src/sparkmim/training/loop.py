"""The training loop: step after step, and what happens between them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from ..data.decoding.encoded import UnreadableImage
from ..data.loader import Batches, ReaderDied, read
from ..data.sampler import Positions
from ..utils.devices import shapes_that_vary
from ..utils.distributed import OtherProcessStopped, broadcast, by_first_process, gather, largest
from ..utils.interruption import Interrupted, interruptible
from ..utils.logging import log
from ..utils.text import verb
from .errors import RunStopped, explained, last_good, never_finite, not_finite, readers_died, weights_not_finite
from .metrics import Metrics, peak_memory_bytes
from .progress import Progress
from .schedule import steps_of
from .signals import StopAnywhere, StopRequest, name_of, number_of
from .step import StepResult, Trainer
from .task import TrainingTask
from .trackers import tracker
from .unreadable import TooManyUnreadable, UnreadableImages
from .waits import Waits

ORIGIN = ("origin", "origin_file")
"""Parts of a checkpoint that tell of the file from which its run was resumed: a digest, and where it lay."""

MAX_SKIPPED = 50
"""Steps in a row whose gradients are not finite in float16; the scale of the loss was halved at each one."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        step: steps done.
        steps: steps planned.
        loss: moving average of the loss; None if nothing was left to do.
        measured: the newest numbers of evaluators, by name.
        interrupted: the signal that interrupted the run, or "time limit"; None if it came to its end.
    """

    step: int
    steps: int
    loss: float | None
    measured: Mapping[str, float]
    interrupted: str | None


class Wishes(NamedTuple):
    """What the processes of a run wish for between two steps.

    Attributes:
        signal: that asks for a stop, if one does.
        reader_died: a process that reads images has died.
        save: a checkpoint is due.
    """

    signal: str | None
    reader_died: bool
    save: bool

    @property
    def stop(self) -> bool:
        """Whether the run is to save and end."""
        return self.signal is not None or self.reader_died


class TrainingLoop:
    """One process's part of a run.

    Args:
        task: what is trained.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.
        stop: what asks for a stop, if it listens already.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    def __init__(
        self,
        task: TrainingTask[Any],
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
        stop: StopRequest | None = None,
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
        self.skipped = 0  # steps in a row whose gradients were not finite in float16
        self.unmeasured: list[str] = []  # evaluators that were left for a stop, called when the run resumes
        self.unpublished = False  # what is made of the last checkpoint was left for a stop
        if state is not None:
            self.trainer.load(state)
            self.unreadable.load_state(state["broken"])
            self.losses, self.norms = state.get("unlogged", ([], []))
            self.unmeasured = self._evaluators_left(state.get("unmeasured", []))
        self.saved = self._progress_made()
        shown = state.get("told") if state is not None else None  # older checkpoints have none
        self.average, self.measured = shown or (None, {})
        self.stop = stop or StopRequest()
        self.origin = {name: (state or {}).get(name) for name in ORIGIN}
        self.keep_folder: Callable[[], bool] = lambda: False  # before a checkpoint; see run.py
        self.waits = Waits(self.config.data.workers)
        self._restart_checkpoint_clock()
        self._restart_interval()

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
            order=self.config.data.order,
        )

    def train(self) -> Outcome:
        """Train from the current step to the last.

        Raises:
            RunStopped: if the loss is not finite, too many images are broken, memory or the disk is full.
            OtherProcessStopped: if another process of the run cannot continue.
        """
        trainer, nothing_left = self.trainer, self.trainer.step == self.trainer.steps and not self.unmeasured
        with explained(trainer, self.run), self.stop:
            self.stop.at_once = False
            self.anywhere = StopAnywhere(self.stop, self.fabric)
            if nothing_left:
                self._publish()  # a crash may have come between the last checkpoint and what is made of it
            elif self._agree().signal is None:
                self._train()
            stopped = self._agree().signal  # all leave together: torchrun ends those that stay
            left = trainer.step < trainer.steps or bool(self.unmeasured) or self.unpublished
            if stopped is not None and self.fabric.world_size > 1:
                self.stop.hold()
        loss, measured = (None, {}) if nothing_left else (self.average, self.measured)
        return Outcome(trainer.step, trainer.steps, loss, measured, stopped if left else None)

    def _train(self) -> None:
        """Take the steps that are left, or those up to a stop, and save."""
        task, trainer, run = self.task, self.trainer, self.config.run
        start = trainer.step
        pictures = {round(trainer.steps * n / task.pictures) for n in range(1, task.pictures + 1)}
        due_every = [steps_of(e.epochs, len(self.source), run.batch_size) for e in task.evaluators]
        trainer.model.train()
        with ExitStack() as until_end, self._saving_if_too_many_are_unreadable():
            self.progress = Progress(trainer.steps, trainer.step, loss=self.average, measured=self.measured)
            until_end.callback(self.progress.close)
            batches = until_end.enter_context(read(task.batches(self.positions())))
            self.metrics = self._open_metrics()
            until_end.callback(self._close_metrics)
            self._restart_checkpoint_clock()
            self._restart_interval()
            self._measure_left()
            wishes = self._agree()
            while trainer.step < trainer.steps and not wishes.stop:
                try:
                    result = trainer.train_step(batches)
                except (ReaderDied, UnreadableImage, OtherProcessStopped) as error:
                    self._save()  # all processes have given up this step together
                    if isinstance(error, ReaderDied):
                        names = [self.source.name(index) for index in error.indices]
                        raise readers_died(trainer, self.run, str(error), names) from error
                    raise
                self.pending.append(result)
                self.unreadable.add(result.broken)
                self.progress.advance()
                if trainer.step == start + 1 and trainer.not_compiled is not None:
                    log.info(f"not compiled ({trainer.not_compiled}); continuing without, with the same numbers")
                self.after_step(trainer.step)
                last = trainer.step == trainer.steps
                if last or trainer.step % run.log_every == 0:
                    self._log()
                for number, every in enumerate(due_every):
                    if last or (trainer.step % every == 0 and 2 * (trainer.steps - trainer.step) >= every):
                        self._evaluate(number)
                if trainer.step in pictures:
                    self._draw()
                wishes = self._agree(batches)
                if wishes.signal is not None and not last:
                    log.info(f"{wishes.signal}: saving")
                if wishes.save and not last and not wishes.stop:
                    self._save()
            self._save()
            if wishes.reader_died:
                if batches.died is None:
                    raise OtherProcessStopped("a process that reads images died")
                raise readers_died(trainer, self.run, batches.died)

    def _open_metrics(self) -> Metrics | None:
        if not self.fabric.is_global_zero:
            return None
        return Metrics(self.run, self.trainer.step, tracker(self.config, self.run))

    def _close_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    @contextmanager
    def _saving_if_too_many_are_unreadable(self) -> Iterator[None]:
        """Save what is trained before the run stops for images that cannot be read: all processes stop together."""
        try:
            yield
        except TooManyUnreadable as error:
            self._save()
            raise error.images.too_many() from error

    def _restart_checkpoint_clock(self) -> None:
        self.checkpoint_due = time.monotonic() + 60 * self.config.run.checkpoint_minutes

    def _restart_interval(self) -> None:
        """Restart the measurement of speed."""
        self.interval_start, self.interval_step = time.monotonic(), self.trainer.step
        self.trainer.waited = 0.0

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Do something other than steps; it does not count as training time."""
        self._read_pending()
        start = time.monotonic()
        with self.trainer.eager(), shapes_that_vary():
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
        scaled = self.config.run.precision == "16-mixed"  # there, steps whose gradients overflow are skipped
        for result, mine, loss, norm in zip(pending, own[:, 0].tolist(), losses, norms, strict=True):
            if not (math.isfinite(loss) and (scaled or math.isfinite(norm))):
                suspects = [] if math.isfinite(mine) and not math.isfinite(loss) else result.indices
                names = [self.source.name(i) for part in gather(self.fabric, suspects) for i in part]
                raise not_finite(self.trainer, self.run, result.step, loss, norm, names)
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped >= MAX_SKIPPED:
                raise never_finite(self.trainer, self.run, result.step, self.skipped)
        self.losses += losses
        self.norms += [norm for norm in norms if math.isfinite(norm)]
        for part in gather(self.fabric, self.unreadable.errors):
            self.unreadable.add(part.items())
        if self.unreadable.update_list(write=self.fabric.is_global_zero):
            log.info(
                f"{self.unreadable.summary()} and {verb(len(self.unreadable.errors), 'are')} replaced by others; see "
                f"{self.run.broken}"
            )

    def _log(self) -> None:
        """Write a line of metrics of the steps since the last one."""
        self._read_pending()
        lr, decay = self.trainer.rates(self.trainer.step - 1)
        images = (self.trainer.step - self.interval_step) * self.config.run.batch_size
        seconds = time.monotonic() - self.interval_start
        self.waits.add(self.trainer.waited, seconds)
        self._write(
            {
                "loss": sum(self.losses) / len(self.losses),
                "lr": lr,
                "weight_decay": decay,
                **({"grad_norm": sum(self.norms) / len(self.norms)} if self.norms else {}),
                **(self.task.watch() if self.fabric.is_global_zero else {}),
                "images_per_second": images / seconds,
                "data_wait": min(1.0, self.trainer.waited / seconds),
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
        self.average = self.progress.loss

    def _agree(self, batches: Batches[Any] | None = None) -> Wishes:
        """Return what the processes of the run wish for; all get the same answer, at the same step.

        It is asked for after each step: schedulers end a job half a minute after they signal.
        """
        number = number_of(self.stop.signal)
        died = batches is not None and batches.died is not None
        due = self.fabric.is_global_zero and time.monotonic() >= self.checkpoint_due
        number, died_anywhere, save = largest(self.fabric, (number, died, due))
        return Wishes(name_of(number), bool(died_anywhere), bool(save))

    def _evaluate(self, number: int) -> None:
        """Measure, and write the numbers; if a stop is asked for meanwhile, it is left until the run resumes."""
        try:
            with self._aside(), interruptible(self.anywhere):
                broadcast(self.fabric, self.trainer.model.buffers())  # on CPUs each has statistics of its own
                values = self.task.evaluators[number].measure()
        except Interrupted:
            self.trainer.model.train()
            self.unmeasured.append(self.task.evaluators[number].name)
            return
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunStopped(
                    f"{name} is {value} after step {self.trainer.step}, though all training losses were finite. Last "
                    f"good state: {last_good(self.run)}",
                    everywhere=True,
                )
        self.measured = self.measured | values
        self._write(values)

    def _measure_left(self) -> None:
        """Call the evaluators that were left for a stop, and save, so that they are called once."""
        names, self.unmeasured = self.unmeasured, []
        for number, evaluator in enumerate(self.task.evaluators):
            if evaluator.name in names:
                self._evaluate(number)
        if self.trainer.step < self.trainer.steps:
            self._save()

    def _evaluators_left(self, recorded: Iterable[str | int]) -> list[str]:
        """Return which of the evaluators that a checkpoint records as left there still are; older ones number them."""
        names = [evaluator.name for evaluator in self.task.evaluators]
        left = {
            names[key] if isinstance(key, int) else key for key in recorded if key in range(len(names)) or key in names
        }
        return [name for name in names if name in left]

    def _draw(self) -> None:
        with self._aside():
            if self.fabric.is_global_zero:
                self.task.draw()

    def _progress_made(self) -> tuple[int, tuple[str, ...]]:
        """Return what a checkpoint differs in from the one before."""
        return self.trainer.step, tuple(self.unmeasured)

    def _save(self) -> None:
        """Write a checkpoint, unless the newest one is of this state, and what is made of it."""
        new = self.saved != self._progress_made()
        if new:
            with self._aside():
                by_first_process(self.fabric, self._write_checkpoint)
            self.saved = self._progress_made()
        if self.trainer.step < self.trainer.steps:
            if new:
                self._publish()
        elif not self.unmeasured:
            self._publish()
        self._restart_checkpoint_clock()

    def _write_checkpoint(self) -> None:
        """Write a checkpoint of a state known to be finite, after the lines of metrics up to it."""
        bad = self.trainer.nonfinite_tensors()
        if bad:
            raise weights_not_finite(self.trainer, self.run, bad)
        state = {
            **self.trainer.state(),
            "broken": self.unreadable.state(),
            "unlogged": (self.losses, self.norms),
            "unmeasured": self.unmeasured,
            "told": (self.average, self.measured),
            "config": json.dumps(self.config.to_dict()),
            "processes": self.fabric.world_size,
            **self.origin,
        }
        if self.keep_folder() and self.metrics is not None:
            self.metrics.close()
            self.metrics = self._open_metrics()
        if self.metrics is not None:
            self.metrics.sync()
        self.run.save_checkpoint(state, self.trainer.step, self.config.run.keep_checkpoints)

    def _publish(self) -> None:
        """Write what is made of a checkpoint, unless a stop is asked for meanwhile: then it is left for later."""
        self.unpublished = False
        try:
            with self._aside(), interruptible(self.anywhere):
                self.task.publish()
        except Interrupted:
            self.unpublished = True
