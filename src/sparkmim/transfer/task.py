"""The fine-tuning task: views with targets, the average of the weights, validation, the model's file and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoints.run_folder import RunFolder
from ..data.loader import load
from ..data.sampler import Positions
from ..data.targets import Splits
from ..reporting.report.page import write_report
from ..training.errors import RunStopped
from ..training.layer_decay import decayed_groups
from ..training.task import Evaluator, TrainingTask
from ..training.unreadable import UnreadableImages
from ..utils.distributed import broadcast, gather_results
from ..utils.io import write_json
from ..utils.logging import log
from ..utils.text import verb
from .config import TransferConfig
from .model_file import save_model
from .network import Network
from .outputs import Outputs
from .tasks.base import TransferTask
from .views import TargetBatch, collate

FORMATS = {2: torch.channels_last}
"""In which images are convolved faster, by their number of axes."""


class FinetuningTask(TrainingTask[TargetBatch]):
    """One process's part of a fine-tuning.

    Args:
        config: every value resolved.
        task: what the network is trained for.
        network: what to train, with the weights to start from.
        splits: images to train on; to validate with: the weights that score best on them are kept, the last ones
            without; and images on which the weights that are kept are scored.
        run: the folder to write to.
        fabric: device, precision and processes, launched.
    """

    def __init__(
        self,
        config: TransferConfig,
        task: TransferTask[Any],
        network: Network,
        splits: Splits[Any],
        run: RunFolder,
        fabric: Fabric,
    ) -> None:
        super().__init__(config, network.module, splits.train.source, run, fabric)
        self.memory_format = FORMATS.get(network.backbone.dims)
        if self.memory_format is not None:
            network.module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.settings, self.task, self.network, self.splits = config, task, network, splits
        self.targets = task.describe_targets(splits.train)
        self.average = None
        if config.optimizer.ema:  # at first the mean of all weights so far
            self.average = ModelEmaV3(network.module, decay=config.optimizer.ema, use_warmup=True, warmup_power=1.0)
            self.average.module.to(fabric.device)
        self.views = task.views(splits.train, config)
        self.repeats = task.repeats(config)
        self.evaluators = [] if splits.val is None else [Evaluator(config.run.val_every, self.validate)]
        self.scored_on = task.fingerprint(splits.val)
        self.best: dict[str, Any] | None = None
        self._unreadable: UnreadableImages | None = None  # of the validation images
        if splits.val is not None:
            source, most = splits.val.source, config.data.max_broken
            self._unreadable = UnreadableImages(source, run, most, run.broken_held_out)

    @property
    def scored(self) -> nn.Module:
        """The network whose weights are scored and kept."""
        return self.model if self.average is None else self.average.module

    def param_groups(self) -> list[dict[str, object]]:
        """Return the parameters in groups by layer, see :func:`~sparkmim.training.layer_decay.decayed_groups`."""
        return decayed_groups(self.network, self.settings.optimizer.layer_decay)

    def batches(self, positions: Positions) -> DataLoader[TargetBatch]:
        """Return augmented views with their targets."""
        pinned = self.fabric.device.type == "cuda"
        return load(self.views, positions, self.settings.data.workers, collate, pin_memory=pinned)

    def blank_batch(self, images: int) -> TargetBatch:
        """Return black images with targets of zeros."""
        blank = torch.zeros(images, self.settings.model.in_chans, *self.settings.data.image_size)
        return TargetBatch(blank, self.task.blank_targets(self.splits.train, self.settings, images), [], [])

    def loss(self, model: Callable[..., Any], batch: TargetBatch) -> Tensor:
        """Return the task's loss."""
        device = self.fabric.device
        images = batch.images.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)

        def call(images: Tensor, *more: Any) -> Any:
            if self.memory_format is not None:
                images = images.contiguous(memory_format=self.memory_format)  # as the weights are
            return model(images, *more)

        return self.task.training_loss(call, images, targets, self.settings, self.targets)

    def after_step(self) -> None:
        """Let the average of the weights follow."""
        if self.average is not None:
            self.average.update(self.model, step=self.step)

    def validate(self) -> dict[str, float]:
        """Return scores of the validation images; the best weights so far are kept."""
        images: Any = self.splits.val
        outputs = self._outputs(images)
        self._list_unreadable(outputs.broken)
        scores = self.task.evaluate(outputs, images, self.settings)
        metric = self.task.metric
        if metric not in scores:
            raise RunStopped(f"{self.settings.model.task} names {metric!r} its metric, but scores {', '.join(scores)}")
        if self.best is None or self.task.is_better(scores[metric], self.best[metric]):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.scored.state_dict().items()}
            self.best = {metric: scores[metric], "step": self.step, "model": weights, "images": self.scored_on}
        return {f"val_{name}": score for name, score in scores.items()}

    def _list_unreadable(self, broken: Sequence[tuple[int, str]]) -> None:
        """List the validation images that cannot be read.

        Raises:
            TooManyUnreadable: if they are more than `--max-broken` allows.
        """
        assert self._unreadable is not None
        self._unreadable.add(broken)
        if self._unreadable.update_list(write=self.fabric.is_global_zero):
            log.warning(
                f"validation: {self._unreadable.summary()} and {verb(len(self._unreadable.errors), 'are')} left out; "
                f"see {self._unreadable.path}"
            )

    def state(self) -> dict[str, Any]:
        """Return the average, and the best weights so far."""
        average = None if self.average is None else self.average.module.state_dict()
        return {"average": average, "best": self.best}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint's state."""
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        best: dict[str, Any] | None = state["best"]
        alike = best is not None and best.get("images", self.scored_on) == self.scored_on  # older ones do not say
        self.best = best if alike else None

    def publish(self) -> None:
        """Write the model, at the end its scores, and the report."""
        step = self.step if self.best is None else self.best["step"]
        weights = self.scored.state_dict() if self.best is None else self.best["model"]
        if self.fabric.is_global_zero:
            own = asdict(self.task.settings)
            save_model(weights, self.run.classifier, self.settings, own, self.targets, step)
        if self.step == self.steps:
            if self.best is not None:
                self.scored.load_state_dict(weights)
            self._score_kept_weights(step)
        if self.fabric.is_global_zero:
            write_report(self.run.root)

    def _score_kept_weights(self, step: int) -> None:
        train = self.splits.train
        per_class = {"per_class": train.counts()} if hasattr(train, "counts") else {}
        results: dict[str, Any] = {
            **self.targets,
            "weights": {"step": step, "average": self.average is not None},
            "train": {"images": len(train), **per_class},
        }
        for name, images in (("validation", self.splits.val), ("test", self.splits.test)):
            if images is not None:
                outputs = self._outputs(images)
                if self.fabric.is_global_zero:
                    folder = self.run.mistakes / name
                    scored = self.task.results(outputs, images, self.settings, folder)
                    drawn = self.task.pictures(
                        self.scored, outputs, images, self.settings, self.targets, folder, self.fabric.device
                    )
                    unreadable = {images.source.name(i): " ".join(e.split()) for i, e in sorted(outputs.broken)}
                    results[name] = {**scored, **drawn, "unreadable": unreadable}
        if self.fabric.is_global_zero:
            write_json(self.run.results, results)

    def _outputs(self, images: Any) -> Outputs:
        """Return outputs for images, in float32 whatever the run's precision, as `sparkmim predict` computes them.

        All processes share the work and get those of the first one's weights.

        Raises:
            RunStopped: if none of the images can be read.
        """
        fabric, data = self.fabric, self.settings.data
        broadcast(fabric, self.scored.buffers())  # on CPUs each process has batch norm statistics of its own
        own = np.arange(fabric.global_rank, len(images), fabric.world_size)

        def own_outputs() -> Outputs:
            part = self.task.outputs(
                self.scored,
                images.subset(own),
                data,
                self.settings.model.in_chans,
                self.targets,
                batch_size=self.micro_batch,
                workers=data.workers,
                device=fabric.device,
            )
            return Outputs(part.values, own[part.indices].tolist(), [(int(own[i]), e) for i, e in part.broken])

        parts = gather_results(fabric, own_outputs)
        broken = [error for p in parts for error in p.broken]
        if len(broken) == len(images):
            raise RunStopped(f"none of {len(images)} images to be scored can be read; {broken[0][1]}")
        return Outputs(
            torch.cat([p.values for p in parts if p.indices]), [index for p in parts for index in p.indices], broken
        )
