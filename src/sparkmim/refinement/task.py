"""The refinement task: pairs of views, their contrast, the encoder's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ..checkpoints.encoder import network_metadata, save_encoder
from ..checkpoints.run_folder import RunFolder
from ..data.loader import load
from ..data.normalize import Normalize
from ..data.sampler import Positions
from ..data.sources.base import ImageSource
from ..reporting.report.page import write_report
from ..training.layer_decay import decayed_groups
from ..training.task import TrainingTask
from .config import RefineConfig
from .losses import found_positives, nearest_positives, neighbor_contrast, nt_xent
from .network import ContrastiveNetwork, Projected
from .views import PairBatch, PairedViews, collate_pairs


class RefinementTask(TrainingTask[PairBatch]):
    """One process's part of a refinement.

    Args:
        config: every value resolved.
        network: what to train, with the weights to start from.
        source: images to train on.
        run: the folder to write to.
        fabric: device, precision and processes, launched.
    """

    def __init__(
        self, config: RefineConfig, network: ContrastiveNetwork, source: ImageSource, run: RunFolder, fabric: Fabric
    ) -> None:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, network, source, run, fabric)
        self.settings, self.network = config, network
        self.normalize = Normalize(config.data, fabric.device)
        self.views = PairedViews(source, config.data, config.views, config.model.in_chans, config.run.seed)
        self._found: Tensor | None = None

    def param_groups(self) -> list[dict[str, object]]:
        """Return the parameters in groups by layer, see :func:`~sparkmim.training.layer_decay.decayed_groups`."""
        return decayed_groups(self.network, self.settings.optimizer.layer_decay)

    def batches(self, positions: Positions) -> DataLoader[PairBatch]:
        """Return pairs of views."""
        pinned = self.fabric.device.type == "cuda"
        return load(self.views, positions, self.settings.data.workers, collate_pairs, pin_memory=pinned)

    def blank_batch(self, images: int) -> PairBatch:
        """Return pairs of black views."""
        size = self.settings.model.in_chans, *self.settings.data.image_size
        return PairBatch(torch.zeros(2 * images, *size, dtype=torch.uint8), [], [])

    def loss(self, model: Callable[..., Any], batch: PairBatch) -> Tensor:
        """Return the contrast of the views of all processes' micro-batches."""
        images = self.normalize(batch.images).contiguous(memory_format=torch.channels_last)
        own: Projected = model(images)
        everything = Projected(*(self._of_all_processes(part) for part in own))
        first = self.fabric.global_rank * len(own.projections)
        self._found = found_positives(own.projections, everything.projections, first=first)
        contrast, temperature = self.settings.contrast, self.settings.contrast.temperature
        if contrast.positives == "views":
            return nt_xent(own.projections, everything.projections, temperature, first=first)
        network = self.network
        assert network.queue is not None
        positives = nearest_positives(own.projections, network.queue, network.filled)
        loss = neighbor_contrast(positives, everything.predictions, temperature, first=first)
        network.remember(everything.projections[::2])
        return loss

    def _of_all_processes(self, part: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of their ranks; gradients flow back to each."""
        if self.fabric.world_size == 1:
            return part
        gathered = self.fabric.all_gather(part, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def watch(self) -> dict[str, float]:
        """Return how many views find the other view of their image among all of the micro-batch."""
        return {} if self._found is None else {"positives_found": float(self._found)}

    def publish(self) -> None:
        """Write encoder and report."""
        if self.fabric.is_global_zero:
            model = self.settings.model
            metadata = network_metadata(
                model.model, model.stages, model.in_chans, self.settings.data, step=self.step, levels=model.levels
            )
            save_encoder(self.network.encoder, self.run.encoder, metadata)
            write_report(self.run.root)
