"""Where numbers go: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Mapping

import torch

from ..checkpoints.run_folder import RunFolder
from ..utils.io import open_own
from .tensorboard import EventFile
from .trackers import Tracker


class Metrics:
    """Write each line of numbers to the run folder.

    Args:
        run: the folder; lines after `step` are removed.
        step: steps done.
        tracker: takes the lines too, if there is one.
    """

    def __init__(self, run: RunFolder, step: int, tracker: Tracker | None = None) -> None:
        run.truncate_metrics(step)
        self.tracker = tracker
        self.file = open_own(run.metrics, "a", buffering=1)
        self.board = EventFile(run.tensorboard, step + 1)

    def write(self, values: Mapping[str, float]) -> None:
        """Write one object on a line.

        Raises:
            ValueError: if a number is not finite.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        self.file.write(json.dumps(values) + "\n")
        numbers = {name: value for name, value in values.items() if name not in ("step", "epoch")}
        self.board.write(int(values["step"]), numbers)
        if self.tracker is not None:
            self.tracker.write(int(values["step"]), numbers)

    def sync(self) -> None:
        """Bring all lines to the disk: those up to a checkpoint must not be lost where it stands."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.board.flush()

    def close(self) -> None:
        """Write what is buffered."""
        try:
            self.file.close()
        finally:
            self.board.close()
            if self.tracker is not None:
                self.tracker.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
