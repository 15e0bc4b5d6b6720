"""A step of training: the model, its optimiser and their state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from lightning_fabric import Fabric
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from ..data.seeding import keyed_seed
from .compile import compile_model, eager, reason, uncompile
from .config import TrainingConfig
from .optim import load_optimizer, set_rates
from .schedule import learning_rate, steps_of, weight_decay

STEP = 4
"""Key of the randomness within the network (stochastic depth, dropout)."""


class Numbered(Protocol):
    """A batch that knows which images it shows."""

    @property
    def indices(self) -> list[int]:
        """The images' numbers."""

    @property
    def broken(self) -> list[tuple[int, str]]:
        """Number and error of each image that could not be read."""


Model = TypeVar("Model", bound=nn.Module)
Shown = TypeVar("Shown", bound=Numbered)


class StepResult(NamedTuple):
    """What a step gives. Its numbers are still on the device: reading them would wait for it.

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


def synchronised(model: Model) -> Model:
    """With batch norms over all processes. timm's conversion, for torch's takes the activation out of those batch norms
    of timm's that have one."""
    converted: Model = convert_sync_batchnorm(model)
    return converted


class Trainer(ABC, Generic[Model, Shown]):
    """A model under training.

    Args:
        config: of the run.
        model: what to train.
        optimizer: of its parameters, see :func:`~sparkmim.training.optim.build_optimizer`.
        images: number of images to train on.
        fabric: device, precision and processes, launched.

    Attributes:
        step: steps done.
        steps: steps in all.
        micro_batch: images that this process takes at a time.
        wrapped: the model as it is called in training, which sees to precision and gradients of other processes.
        not_compiled: why the model is not compiled though that was tried; None as long as nothing is in the way.
    """

    def __init__(
        self, config: TrainingConfig, model: Model, optimizer: torch.optim.Optimizer, images: int, fabric: Fabric
    ) -> None:
        self.config, self.fabric = config, fabric
        self.step = 0
        self.steps = steps_of(config.schedule.epochs, images, config.run.batch_size)
        self.warmup = round(config.schedule.warmup_epochs * images / config.run.batch_size)
        self.micro_batch = config.run.batch_size // (config.run.accumulate * fabric.world_size)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = synchronised(model)
        compile_model(model, config.run.compile)
        self._trying = config.run.compile == "try"  # until the first micro-batch has shown whether it can be
        self.not_compiled: str | None = None
        self.model = model
        self.optimizer = optimizer
        self.wrapped, self._stepper = fabric.setup(model, optimizer)

    @abstractmethod
    def loss(self, batch: Shown) -> Tensor:
        """The loss of a micro-batch. Randomness is to come from torch's global generator."""

    def eager(self) -> AbstractContextManager[object]:
        """In which the model is not compiled, for other calls than those of training."""
        return eager(self.config.run.compile)

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rate and weight decay of a step."""
        optimizer = self.config.optimizer
        return (
            learning_rate(step, self.steps, self.warmup, optimizer.lr, self.config.schedule),
            weight_decay(step, self.steps, optimizer.weight_decay, optimizer.weight_decay_end),
        )

    def train_step(self, batches: Iterator[Shown]) -> StepResult:
        """Accumulate the gradients of the step's micro-batches, clip, update."""
        fabric, run, step = self.fabric, self.config.run, self.step
        set_rates(self.optimizer, *self.rates(step))
        losses: list[Tensor] = []
        indices: list[int] = []
        broken: list[tuple[int, str]] = []
        for turn in range(run.accumulate):
            batch = next(batches)
            indices += batch.indices
            broken += batch.broken
            differentiate = self._differentiate_first if self._trying else self._differentiate
            losses.append(differentiate(batch, turn))
        norm = fabric.clip_gradients(
            self.wrapped, self._stepper, max_norm=self.config.optimizer.clip or math.inf, error_if_nonfinite=False
        )
        assert isinstance(norm, Tensor)
        self._stepper.step()
        self._stepper.zero_grad()
        self.step += 1
        return StepResult(step, torch.stack(losses).mean(), norm.detach(), indices, broken)

    def _differentiate(self, batch: Shown, turn: int) -> Tensor:
        """The loss of a step's micro-batch, whose gradients are added to those of the ones before."""
        fabric, run = self.fabric, self.config.run
        torch.manual_seed(keyed_seed(run.seed, STEP, self.step, turn * fabric.world_size + fabric.global_rank))
        with fabric.no_backward_sync(self.wrapped, enabled=turn < run.accumulate - 1):
            loss = self.loss(batch)
            fabric.backward(loss / run.accumulate)
        return loss.detach()

    def _differentiate_first(self, batch: Shown, turn: int) -> Tensor:
        """The same for the first micro-batch of all, compiled if it can be, else as if that had never been tried."""
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

    def not_finite(self) -> list[str]:
        """Names of trained parameters and running statistics that are not finite. Waits for the device."""
        running = [(name, buffer) for name, buffer in self.model.named_buffers() if ".running_" in name]
        return [name for name, tensor in [*self.model.named_parameters(), *running] if not tensor.isfinite().all()]

    def state(self) -> dict[str, Any]:
        """What is needed to go on. No generator's state: randomness is keyed on the step."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: if it is of another model, or of a later step than the last.
        """
        if state["step"] > self.steps:
            raise ValueError(f"the checkpoint is of step {state['step']}, after the last step {self.steps} of this run")
        try:
            self.model.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(" ".join(str(error).split("\n")[:2]).split())
            raise ValueError(
                f"the checkpoint is of another model: {reason}; continue with the model and optimiser that the run "
                f"began with, or use another --output for a new run"
            ) from error
        if state["precision"]:  # the scaling of losses, which a run in another precision does not have
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = state["step"]
