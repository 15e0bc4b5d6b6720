"""The folder of a run: its files, and how they are written so that a crash never leaves half a file.

```
RUN/config.json          the configuration, every value resolved
RUN/plan.json            what was planned, for reading
RUN/environment.json     versions and device
RUN/metrics.jsonl        a line of numbers every few steps
RUN/checkpoints/         step-*.pt, the newest few
RUN/encoder.safetensors  the encoder as of the newest checkpoint
RUN/reconstructions/     step-*.png
RUN/model.safetensors    the classifier of a fine-tuning, as of the best validation so far
RUN/results.json         its scores, at the end
RUN/mistakes/            pictures of the worst mistakes, for each set of images
RUN/report.html          all of it to look at
RUN/broken_images.txt    images that could not be read, and why
RUN/tensorboard/         the metrics for TensorBoard
RUN/.lock                held by the process that trains here
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..utils.io import SUFFIX, write_atomically, write_text

PARTS = {"model", "optimizer", "precision", "step", "broken", "config"}
"""What every checkpoint holds."""


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


class Contents(NamedTuple):
    """What a folder holds that decides how a run goes on: `config.json`, None if there is none, and the names of its
    checkpoints."""

    config: bytes | None
    checkpoints: tuple[str, ...]


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.config = self.root / "config.json"
        self.plan = self.root / "plan.json"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.encoder = self.root / "encoder.safetensors"
        self.reconstructions = self.root / "reconstructions"
        self.classifier = self.root / "model.safetensors"
        self.results = self.root / "results.json"
        self.mistakes = self.root / "mistakes"
        self.broken = self.root / "broken_images.txt"
        self.tensorboard = self.root / "tensorboard"
        self.report = self.root / "report.html"
        self.lock = self.root / ".lock"

    def read_config(self) -> dict[str, Any] | None:
        """The recorded configuration, None if nothing was started here.

        Raises:
            ValueError: if the folder holds something that is not a run.
        """
        above = next((p for p in self.root.parents if p.exists()), None)
        if above is not None and not above.is_dir():
            raise ValueError(f"{self.root} cannot be made, for {above} is a file; use another --output")
        if not self.root.exists():
            return None
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is a file; --output takes a folder")
        if self.config.exists():
            try:
                recorded = json.loads(self.config.read_text())
            except ValueError as error:
                raise ValueError(f"{self.config} is not JSON ({error}); use another --output") from error
            if not isinstance(recorded, dict) or "sparkmim" not in recorded:
                raise ValueError(f"{self.config} is not of a run of sparkmim; use another --output")
            return recorded
        others = [p.name for p in self.root.iterdir() if p != self.lock and p.suffix != SUFFIX]
        if others:
            raise ValueError(
                f"{self.root} exists and is not a run of sparkmim (it holds {others[0]}); use another --output"
            )
        return None

    def contents(self) -> Contents:
        """What is there now."""
        config = self.config.read_bytes() if self.config.exists() else None
        return Contents(config, tuple(path.name for path in self.list_checkpoints()))

    def clean(self) -> None:
        """Remove what an interrupted write left behind."""
        for path in self.root.rglob("*" + SUFFIX):
            path.unlink(missing_ok=True)

    def checkpoint(self, step: int) -> Path:
        """That of a step."""
        return self.checkpoints / f"step-{step:09}.pt"

    def list_checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.checkpoints.glob("step-*.pt"))

    def save_checkpoint(self, state: Mapping[str, Any], step: int, keep: int) -> Path:
        """Write the checkpoint of a step, then remove all but the newest `keep`.

        Those of later steps, which were broken or given up when the run went on from an earlier one, go too: they would
        otherwise be taken for newer.
        """
        path = self.checkpoint(step)
        write_atomically(path, lambda file: torch.save(state, file))
        paths = self.list_checkpoints()
        place = paths.index(path) + 1
        for other in paths[: max(0, place - keep)] + paths[place:]:
            other.unlink(missing_ok=True)
        return path

    def begin_from(self, state: Mapping[str, Any], keep: int) -> None:
        """Make the state that a run goes on from the newest checkpoint here, before anything else is forgotten: if the
        run ends before its next checkpoint, it goes on from there again, with the metrics up to there."""
        if self.list_checkpoints()[-1:] != [self.checkpoint(state["step"])]:
            self.save_checkpoint(state, state["step"], keep)

    def newest_checkpoint(self) -> tuple[dict[str, Any], Path] | None:
        """The newest checkpoint that can be read, with its path.

        Raises:
            BrokenCheckpoint: if there are some but none can be read.
        """
        paths = self.list_checkpoints()
        errors = []
        for path in reversed(paths):
            try:
                return read_checkpoint(path), path
            except BrokenCheckpoint as error:
                errors.append(str(error))
        if errors:
            raise BrokenCheckpoint(
                f"no checkpoint of {self.root} can be read: {'; '.join(errors)}. Remove {self.checkpoints} to start "
                f"again from the beginning, or use another --output"
            )
        return None

    def truncate_metrics(self, step: int) -> None:
        """Forget the lines after a step, which will be computed again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the line that a crash cut off
            if values["step"] <= step:
                kept.append(line)
        write_text(self.metrics, "".join(line + "\n" for line in kept))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by :meth:`RunFolder.save_checkpoint`.

    Raises:
        BrokenCheckpoint: if it is missing, cut off, or not one of ours.
    """
    if path.is_dir():
        names = [str(p) for p in RunFolder(path).list_checkpoints()] or ["RUN/checkpoints/step-*.pt"]
        raise BrokenCheckpoint(f"{path} is a folder; --resume takes auto, never, or a checkpoint, as {names[-1]}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BrokenCheckpoint(
            f"there is no checkpoint {path}; --resume takes auto, never, or one of RUN/checkpoints"
        ) from error
    except Exception as error:  # whatever torch makes of a foreign file
        reason = " ".join(str(error).split(". ")[0].split())  # advice of torch's follows, of no use here
        raise BrokenCheckpoint(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}): it is cut off, or no checkpoint"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise BrokenCheckpoint(
            f"{path} is not a checkpoint of a sparkmim pretraining; --init reads weights from elsewhere"
        )
    return state
