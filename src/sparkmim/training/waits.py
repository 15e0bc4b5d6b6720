"""How long steps wait for images, and what to do where that limits a run."""

from __future__ import annotations

from ..utils.logging import log
from .recipes import cores_per_process

LEAST_SECONDS = 60.0
"""Seconds of training by which a share is judged."""

LIMIT = 0.25
"""Share of the time from which on reading limits a run."""


class Waits:
    """Add up how long steps have waited for batches, and warn once if reading limits the run.

    Args:
        workers: processes that read images.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.waited = self.seconds = 0.0
        self.warned = False

    def add(self, waited: float, seconds: float) -> None:
        """Add an interval of training in which steps have waited, in seconds."""
        self.waited, self.seconds = self.waited + waited, self.seconds + seconds
        if self.warned or self.seconds < LEAST_SECONDS:
            return
        share, self.waited, self.seconds = self.waited / self.seconds, 0.0, 0.0
        if share >= LIMIT:
            self.warned = True
            log.warning(
                f"steps wait for images {share:.0%} of the time (data_wait in metrics.jsonl): reading limits this run. "
                f"{remedy(self.workers, cores_per_process())}"
            )


def remedy(workers: int, cores: int) -> str:
    """Return how images are read faster."""
    more = max(1, cores - 1)
    ways = [f"more --workers (now {workers}, of {cores} cores)"] if workers < more else []
    ways += ["smaller images (sparkmim pack --resize 512)", "simplejpeg for JPEG files (pip install 'sparkmim[fast]')"]
    return f"What helps: {', '.join(ways)}. Stop it and give the same command with other --workers at any time"
