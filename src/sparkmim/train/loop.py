"""The training loop: step after step, and what happens between them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning_fabric import Fabric

from ..atomic import write_text
from ..data import ImageSource, evaluation_view, training_batches, training_view
from ..data.loader import MaskedViews, Positions, read
from ..interchange import save_encoder
from ..report import write_report
from ..spark import SparK
from .config import PretrainConfig
from .estimate import estimate
from .failures import RunStopped, explained, kept, not_finite, spoilt
from .interrupt import StopRequest
from .metrics import Metrics, Progress, peak_memory_bytes
from .monitor import draw, held_out_loss
from .run_folder import RunFolder
from .schedule import steps_of
from .step import StepResult, Trainer


class Outcome(NamedTuple):
    """How a run ended: steps done and planned, moving average of the loss, held-out loss, and the signal that
    interrupted it, if one did.
    """

    step: int
    steps: int
    loss: float | None
    val_loss: float | None
    interrupted: str | None


class Pretraining:
    """One process's part of a pretraining.

    Args:
        config: what to do.
        model: what to train.
        source: images to train on.
        held_out: images for the held-out loss.
        run: where to write.
        fabric: device, precision and processes, launched.
        state: of the checkpoint to continue from.
        after_step: called with the number of steps done after each one.

    Raises:
        ValueError: if the checkpoint is of another model.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: SparK,
        source: ImageSource,
        held_out: ImageSource | None,
        run: RunFolder,
        fabric: Fabric,
        state: dict[str, Any] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.source, self.run, self.fabric = config, source, run, fabric
        self.after_step = after_step or (lambda step: None)
        self.trainer = Trainer(config, model, len(source), fabric)
        self.broken: dict[int, str] = {}  # number of an image, and why it cannot be read
        self.listed = 0  # how many of them are in the list
        if state is not None:
            self.trainer.load(state)
            names = state["broken"]
            self.broken = {i: names[n] for i in range(len(source)) if (n := source.name(i)) in names} if names else {}
        self.views = self._views(source, train=True)
        self.shown = self._views(held_out or source, train=False)
        self.has_held_out = held_out is not None
        self.pending: list[StepResult] = []
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.stop = StopRequest()

    def _views(self, source: ImageSource, *, train: bool) -> MaskedViews:
        model, data = self.config.model, self.config.data
        grid = self.trainer.model.grid_shape(data.image_size)
        view = training_view(data) if train else evaluation_view(data)
        return MaskedViews(source, view, model.in_chans, grid, model.mask_ratio, self.config.run.seed)

    def _positions(self) -> Positions:
        return Positions(
            len(self.source),
            self.config.run.batch_size,
            self.trainer.steps,
            self.config.run.seed,
            start=self.trainer.step,
            accumulate=self.config.run.accumulate,
            process=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )

    def estimate(self) -> list[str]:
        """How long the run will take, in lines for the user; see :func:`~sparkmim.train.estimate.estimate`."""
        with explained(self.trainer, self.run):
            return estimate(self.trainer, self.views, self._positions())

    def train(self) -> Outcome:
        """Train from the current step to the last.

        Raises:
            RunStopped: if the loss is not finite, too many images are broken, memory or the disk is full.
        """
        trainer, run, first = self.trainer, self.config.run, self.fabric.is_global_zero
        if trainer.step == trainer.steps:
            with explained(trainer, self.run):
                self._publish()  # a crash may have come between the last checkpoint and what is made of it
            return Outcome(trainer.step, trainer.steps, None, None, None)
        loader = training_batches(
            self.views, self._positions(), self.config.data.workers, pin_memory=self.fabric.device.type == "cuda"
        )
        pictures = {round(trainer.steps * n / run.pictures) for n in range(1, run.pictures + 1)}
        val_steps = steps_of(run.val_every, len(self.source), run.batch_size)
        self.progress = Progress(trainer.steps, trainer.step, run.batch_size, shown=first)
        trainer.model.train()
        asked: str | None = None  # the signal that asks for a stop
        with explained(trainer, self.run), self.stop, ExitStack() as until_end:
            until_end.callback(self.progress.close)
            batches = until_end.enter_context(read(loader))
            self.metrics = Metrics(self.run, trainer.step) if first else None
            if self.metrics is not None:
                until_end.callback(self.metrics.close)
            self._restart_clocks()
            while trainer.step < trainer.steps and asked is None:
                result = trainer.train_step(batches)
                self.pending.append(result)
                self.broken |= dict(result.broken)
                self.progress.advance()
                self.after_step(trainer.step)
                last = trainer.step == trainer.steps
                if last or trainer.step % run.log_every == 0:
                    self._log()
                if self.has_held_out and (last or trainer.step % val_steps == 0):
                    self._evaluate()
                if trainer.step in pictures:
                    self._draw()
                asked, due = self._agree()
                if due and not last and asked is None:
                    self._save()
            self._save()
        interrupted = asked if trainer.step < trainer.steps else None
        return Outcome(trainer.step, trainer.steps, self.progress.loss, self.val_loss, interrupted)

    def _restart_clocks(self) -> None:
        self.checkpoint_due = time.monotonic() + 60 * self.config.run.checkpoint_minutes
        self._restart_interval()

    def _restart_interval(self) -> None:
        """Begin to measure speed anew, so that what happens between steps is not counted."""
        self.interval_start, self.interval_step = time.monotonic(), self.trainer.step

    def _log(self) -> None:
        """Read the numbers of the steps since the last time, and write a line of them."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        own = torch.stack([torch.stack([result.loss.float(), result.grad_norm.float()]) for result in pending])
        numbers = self.fabric.all_reduce(own, reduce_op="mean")
        assert isinstance(numbers, torch.Tensor)
        losses, norms = numbers.T.tolist()
        scaled = self.config.run.precision == "16-mixed"  # there, gradients that overflow are skipped
        for result, mine, loss, norm in zip(pending, own[:, 0].tolist(), losses, norms, strict=True):
            if not (math.isfinite(loss) and (scaled or math.isfinite(norm))):
                suspects = [] if math.isfinite(mine) and not math.isfinite(loss) else result.indices
                names = [self.source.name(i) for part in self._gather(suspects) for i in part]
                raise not_finite(self.trainer, self.run, result.step, loss, norm, names)
        self._list_broken()
        self.loss = sum(losses) / len(losses)
        finite = [norm for norm in norms if math.isfinite(norm)]
        lr, decay = self.trainer.rates(pending[-1].step)
        images = (self.trainer.step - self.interval_step) * self.config.run.batch_size
        self._write(
            {
                "loss": self.loss,
                "lr": lr,
                "weight_decay": decay,
                **({"grad_norm": sum(finite) / len(finite)} if finite else {}),
                "images_per_second": images / (time.monotonic() - self.interval_start),
                "peak_memory_bytes": peak_memory_bytes(self.fabric.device),
            }
        )
        self._restart_interval()

    def _write(self, values: dict[str, float]) -> None:
        step = self.trainer.step
        line = {"step": step, "epoch": round(step * self.config.run.batch_size / len(self.source), 4), **values}
        if self.metrics is not None:
            self.metrics.write(line)
        self.progress.show(line)

    def _gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        if self.fabric.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def _list_broken(self) -> None:
        """Let all processes know of broken images, list new ones, and stop if there are too many."""
        for part in self._gather(self.broken):
            self.broken |= part
        if len(self.broken) == self.listed:
            return
        self.listed = len(self.broken)
        lines = [f"{self.source.name(i)}\t{' '.join(error.split())}" for i, error in sorted(self.broken.items())]
        count = f"{len(lines)} of {len(self.source)} images cannot be read"
        if self.fabric.is_global_zero:
            write_text(self.run.broken, "\n".join(lines) + "\n")
            self.progress.say(f"{count} and others take their place; see {self.run.broken}")
        if len(lines) > self.config.data.max_broken * len(self.source):
            example = lines[0].replace("\t", ": ")
            raise RunStopped(
                f"{count}, more than the share of {self.config.data.max_broken} that --max-broken allows. The first: "
                f"{example}. All are listed in {self.run.broken}. Last good state: {kept(self.run)}"
            )

    def _agree(self) -> tuple[str | None, bool]:
        """The signal that asks for a stop, and whether it is time for a checkpoint, by the first process's clock.

        All processes get the same answer, at the same step, for what follows is work that they do together.
        """
        if (
            self.fabric.device.type == "cuda"
            and self.fabric.world_size > 1
            and self.trainer.step % self.config.run.log_every
        ):
            return None, False  # asking every step would wait for the device
        answers = self._gather((self.stop.signal, time.monotonic() >= self.checkpoint_due))
        return next((name for name, _ in answers if name is not None), None), answers[0][1]

    def _evaluate(self) -> None:
        """Write the held-out loss."""
        self._log()
        self.val_loss = held_out_loss(self.trainer, self.shown)
        if not math.isfinite(self.val_loss):
            raise RunStopped(
                f"the held-out loss is {self.val_loss} after step {self.trainer.step}, though the training loss is "
                f"{self.loss:.4g}. Last good state: {kept(self.run)}"
            )
        self._write({"val_loss": self.val_loss})
        self._restart_interval()

    def _draw(self) -> None:
        """Draw reconstructions."""
        self._log()
        if self.fabric.is_global_zero:
            draw(self.trainer, self.shown, self.run.reconstructions / f"step-{self.trainer.step:09}.png")
        self._restart_interval()

    def _save(self) -> None:
        """Checkpoint, encoder and report, of a state known to be finite."""
        self._log()
        if self.fabric.is_global_zero:
            bad = self.trainer.not_finite()
            if bad:
                raise spoilt(self.trainer, self.run, bad)
            names = {self.source.name(i): error for i, error in self.broken.items()}
            state = {**self.trainer.state(), "broken": names, "config": json.dumps(self.config.to_dict())}
            self.run.save_checkpoint(state, self.trainer.step, self.config.run.keep_checkpoints)
            self._publish()
        self._restart_clocks()

    def _publish(self) -> None:
        """Encoder and report."""
        if self.fabric.is_global_zero:
            save_encoder(self.trainer.model.encoder, self.run.encoder, encoder_metadata(self.config, self.trainer.step))
            write_report(self.run.root)


def encoder_metadata(config: PretrainConfig, step: int) -> dict[str, str]:
    """What the encoder's file says of itself: enough to build the network and to prepare its input."""
    model, data = config.model, config.data
    described = {
        "model": model.model,
        "stages": model.stages,
        "in_chans": model.in_chans,
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "step": step,
    }
    return {"sparkmim": json.dumps(described)}
