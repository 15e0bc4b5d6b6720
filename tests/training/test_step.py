"""What a training step asks of the other processes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from sparkmim.training.config import LoopConfig, OptimizerConfig, ScheduleConfig
from sparkmim.training.optim import param_groups_weight_decay
from sparkmim.training.step import Trainer


class Task:
    """A linear layer on batches of ones; it has what a Trainer asks of its task."""

    def __init__(self, fabric: Fabric, accumulate: int) -> None:
        self.fabric, self.source, self.model = fabric, range(64), nn.Linear(4, 1)
        self.micro_batch, self.step, self.steps = 8 // accumulate, 0, 0
        self.config: Any = SimpleNamespace(
            run=LoopConfig(batch_size=8, accumulate=accumulate),
            schedule=ScheduleConfig(epochs=2.0, warmup_epochs=0.0),
            optimizer=OptimizerConfig(optimizer="sgd", lr=0.1, betas=(0.9, 0.99)),
        )

    def param_groups(self) -> Any:
        return param_groups_weight_decay(self.model.named_parameters())

    def loss(self, model: Any, batch: Any) -> Tensor:
        out: Tensor = model(batch.images).square().mean()
        return out

    def after_step(self) -> None:
        pass


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    """One process that reduces its gradients all the same."""
    fabric = Fabric(accelerator="cpu", devices=1, strategy=DDPStrategy())
    fabric.launch()
    yield fabric
    torch.distributed.destroy_process_group()


def kept(reduced: list[Tensor], bucket: Tensor) -> torch.futures.Future[Tensor]:
    """Keep a bucket of gradients, which is the sum of all processes as it is."""
    reduced.append(bucket.clone())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket)
    return done


def test_gradients_are_reduced_once_a_step_however_many_micro_batches(fabric: Fabric) -> None:
    for accumulate in (1, 2, 4):
        trainer = Trainer(Task(fabric, accumulate))  # type: ignore[arg-type]
        reduced: list[Tensor] = []

        # A lambda, because DDP compares annotations of a hook with its own types.
        ddp: Any = trainer.wrapped._forward_module
        ddp.register_comm_hook(reduced, lambda state, bucket: kept(state, bucket.buffer()))
        batch = SimpleNamespace(images=torch.ones(8 // accumulate, 4), indices=[0], broken=[])
        for step in (1, 2, 3):
            trainer.train_step(iter([batch] * accumulate))  # type: ignore[arg-type]
            assert len(reduced) == step, "one bucket holds all parameters"
