"""A training step: the model, its optimizer and their state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from ..data.decoding.encoded import UnreadableImage
from ..data.loader import ReaderDied
from ..data.seeding import Stream, keyed_seed
from ..utils.distributed import OtherProcessStopped, largest
from ..utils.modules import preserved_buffers
from ..utils.text import counted
from .compile import compile_model, eager, reason, uncompile
from .optim import build_optimizer, load_optimizer, set_rates
from .schedule import learning_rate, steps_of, weight_decay
from .task import BatchT, TrainingTask


class StepResult(NamedTuple):
    """The result of a step. Its numbers are still on the device: reading them would wait for it.

    Attributes:
        step: number of the step, 0 being the first.
        loss: scalar, of this process's images.
        grad_norm: scalar, of all gradients together, before clipping.
        indices: the images' numbers.
        broken: number and error of each image that could not be read.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    indices: list[int]
    broken: list[tuple[int, str]]


def synchronized(model: nn.Module) -> nn.Module:
    """Return the model with batch norms over all processes.

    By timm's conversion: torch's loses the activation of those batch norms of timm's that have one.
    """
    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


class Trainer:
    """A model under training.

    Args:
        task: what is trained, and its loss.

    Attributes:
        step: steps done.
        steps: steps in all.
        accumulate: micro-batches of a step.
        wrapped: the model as it is called in training, which sees to precision and gradients of other processes.
        waited: seconds that steps have waited for batches, since the loop last set it to 0.
        not_compiled: why the model is not compiled though that was tried; None as long as nothing is in the way.
    """

    def __init__(self, task: TrainingTask[Any]) -> None:
        self.task = task
        self.config, self.fabric = task.config, task.fabric
        run, images = self.config.run, len(task.source)
        self.steps = steps_of(self.config.schedule.epochs, images, run.batch_size)
        self.warmup = round(self.config.schedule.warmup_epochs * images / run.batch_size)
        self.accumulate = run.accumulate
        self.step = 0
        self.waited = 0.0
        self._kept: list[Tensor] = []  # running statistics as of the last step
        task.steps = self.steps
        optimizer = build_optimizer(task.param_groups(), self.config.optimizer)
        model = task.model
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            model = task.model = synchronized(model)
        compile_model(model, run.compile)
        self._trying = run.compile == "try"  # until the first micro-batch has shown whether it can be
        self.not_compiled: str | None = None
        self.model = model
        self.optimizer = optimizer
        self.wrapped, self._stepper = self.fabric.setup(model, optimizer)

    def eager(self) -> AbstractContextManager[object]:
        """Return a context in which the model is not compiled, for other calls than those of training."""
        return eager(self.config.run.compile)

    def rates(self, step: int) -> tuple[float, float]:
        """Return learning rate and weight decay of a step."""
        optimizer = self.config.optimizer
        return (
            learning_rate(step, self.steps, self.warmup, optimizer.lr, self.config.schedule),
            weight_decay(step, self.steps, optimizer.weight_decay, optimizer.weight_decay_end),
        )

    def _next(self, batches: Iterator[BatchT]) -> BatchT:
        """Return the next batch, and count how long it was waited for."""
        start = time.monotonic()
        try:
            return next(batches)
        finally:
            self.waited += time.monotonic() - start

    def train_step(self, batches: Iterator[BatchT]) -> StepResult:
        """Accumulate the gradients of the step's micro-batches, clip, update.

        Raises:
            ReaderDied: if a batch cannot be read; the model is as after the step before, in all processes.
            UnreadableImage: likewise.
            OtherProcessStopped: likewise, if another process could not read one.
        """
        step = self.step
        set_rates(self.optimizer, *self.rates(step))
        losses: list[Tensor] = []
        indices: list[int] = []
        broken: list[tuple[int, str]] = []
        several = self.fabric.world_size > 1
        failed: Exception | None = None
        if several or self.accumulate > 1:
            self._keep_buffers()
        for turn in range(self.accumulate):
            try:
                batch = self._next(batches) if failed is None else self.task.blank_batch(self.task.micro_batch)
            except (ReaderDied, UnreadableImage) as error:
                failed = error
                if not several:
                    break
                batch = self.task.blank_batch(self.task.micro_batch)  # the others wait for this process's gradients
            indices += batch.indices
            broken += batch.broken
            differentiate = self._differentiate_first if self._trying else self._differentiate
            losses.append(differentiate(batch, turn))
        if largest(self.fabric, [failed is not None])[0]:  # so that the last finished step can be saved
            self._give_up_step()
            raise failed or OtherProcessStopped("a process cannot read its images")
        norm = self.fabric.clip_gradients(
            self.wrapped, self._stepper, max_norm=self.config.optimizer.clip or math.inf, error_if_nonfinite=False
        )
        assert isinstance(norm, Tensor)
        self._stepper.step()
        self._stepper.zero_grad()
        self.step = self.task.step = step + 1
        self.task.after_step()
        return StepResult(step, torch.stack(losses).mean(), norm.detach(), indices, broken)

    def _keep_buffers(self) -> None:
        """Keep the running statistics for the case that a step is given up after some of its forward passes."""
        buffers = list(self.model.buffers())
        if not self._kept:
            self._kept = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._kept, buffers)

    def _give_up_step(self) -> None:
        """Undo what a step has done before its update."""
        self._stepper.zero_grad()
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), self._kept, strict=False):
                buffer.copy_(before)

    def _differentiate(self, batch: BatchT, turn: int) -> Tensor:
        """Return the loss of a step's micro-batch, and add its gradients to those of the ones before."""
        fabric = self.fabric
        key = turn * fabric.world_size + fabric.global_rank
        torch.manual_seed(keyed_seed(self.config.run.seed, Stream.STEP, self.step, key))
        with fabric.no_backward_sync(self.wrapped, enabled=turn < self.accumulate - 1):
            loss = self.task.loss(self.wrapped, batch)
            fabric.backward(loss / self.accumulate)
        return loss.detach()

    def _differentiate_first(self, batch: BatchT, turn: int) -> Tensor:
        """Differentiate the first micro-batch of all, compiled if it can be, else as if that had never been tried."""
        self._trying = False
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            return self._differentiate(batch, turn)
        except Exception as error:  # of whatever kind: one that compiling is not to blame for comes again below
            self.not_compiled = reason(error)
        uncompile(self.model)
        self._stepper.zero_grad()
        with torch.no_grad():  # a forward pass may have gone well before its backward pass could not be compiled
            for name, buffer in buffers.items():
                self.model.get_buffer(name).copy_(buffer)
        return self._differentiate(batch, turn)

    def nonfinite_tensors(self) -> list[str]:
        """Return the names of parameters and running statistics that are not finite. Waits for the device."""
        running = [(name, buffer) for name, buffer in self.model.named_buffers() if ".running_" in name]
        return [name for name, tensor in [*self.model.named_parameters(), *running] if not tensor.isfinite().all()]

    def state(self) -> dict[str, Any]:
        """Return what is needed to resume. No generator's state: randomness is keyed on the step."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            **self.task.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Raises:
            ValueError: if it is of another model, or of a later step than the last.
        """
        if state["step"] > self.steps:
            raise ValueError(f"the checkpoint is of step {state['step']}, after the last step {self.steps} of this run")
        try:
            self.model.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(" ".join(str(error).split("\n")[:2]).split())
            raise ValueError(
                f"the checkpoint is of another model: {reason}; continue with the model and optimizer that the run "
                f"began with, or use another --output for a new run"
            ) from error
        if state["precision"]:  # the scaling of losses, which a run in another precision does not have
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.task.load_state(state)
        self.step = self.task.step = state["step"]


def require_enough_values(trainer: Trainer) -> None:
    """Raise if a batch norm would see one value per channel in a micro-batch, from which it cannot learn.

    This can only happen where one image is taken at a time, and is tried then.

    Raises:
        ValueError: with the settings that give it more.
    """
    task, run = trainer.task, trainer.config.run
    if task.micro_batch > 1 or (trainer.fabric.world_size > 1 and trainer.fabric.device.type == "cuda"):
        return
    training, device = trainer.model.training, trainer.fabric.device
    devices = [device] if device.type == "cuda" else []
    trainer.model.train()
    try:
        with torch.no_grad(), preserved_buffers(trainer.model), torch.random.fork_rng(devices), trainer.eager():
            task.loss(trainer.model, task.blank_batch(1))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        processes = counted(trainer.fabric.world_size, "process", "processes")
        parts = f"--batch-size {run.batch_size}, --accumulate {run.accumulate}, {processes}"
        raise ValueError(
            f"the network's batch norm would see one value per channel in one image at a time ({parts}); use a smaller "
            f"--accumulate or --batch-size {2 * run.accumulate * trainer.fabric.world_size}, or larger images"
        ) from error
    finally:
        trainer.model.train(training)
