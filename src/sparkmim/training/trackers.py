"""Services that take the metrics of a run, by their own packages: Weights & Biases and MLflow."""

from __future__ import annotations

import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..checkpoints.run_folder import RunFolder
from ..utils.io import read_json, write_json
from ..utils.logging import log
from .config import TrainingConfig

PROJECT = "sparkmim"
"""Project or experiment of runs whose user has named none."""

LONGEST = 250
"""Characters of a value that MLflow keeps."""


class Tracker(ABC):
    """Send numbers to a service; its failures are told, once, and end nothing: `metrics.jsonl` has all of them.

    Args:
        name: of the service's package.
        config: of the run.
        run: its folder.
    """

    def __init__(self, name: str, config: TrainingConfig, run: RunFolder) -> None:
        self.name = name
        self.failed = False
        self._try(lambda: self.begin(import_module(name), config, run))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._try(lambda: self.send(step, values))

    def close(self) -> None:
        """Send what is left. The run may be continued under the same identity."""
        self._try(self.end)

    def _try(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:  # the service, its package or the connection to it
            self.failed = True
            said = " ".join(str(error).split())[:300]
            log.warning(
                f"--log {self.name} has failed and is left off ({type(error).__name__}: {said}); metrics.jsonl and "
                "TensorBoard have all numbers"
            )

    @abstractmethod
    def begin(self, package: Any, config: TrainingConfig, run: RunFolder) -> None:
        """Begin a run of the service, or continue the one of this folder."""

    @abstractmethod
    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""

    @abstractmethod
    def end(self) -> None:
        """End the run of the service for now."""


class WeightsAndBiases(Tracker):
    """Weights & Biases; its own variables (WANDB_PROJECT, WANDB_MODE, ...) hold."""

    def begin(self, package: Any, config: TrainingConfig, run: RunFolder) -> None:
        """Begin or continue a run."""
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity(run),
            name=run.root.absolute().name,
            dir=str(run.root),
            config=config.to_dict(),
            resume="allow",
        )

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._run.log(dict(values), step=step)

    def end(self) -> None:
        """End the run for now."""
        self._run.finish()


class MLflow(Tracker):
    """MLflow; its own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) hold."""

    def begin(self, package: Any, config: TrainingConfig, run: RunFolder) -> None:
        """Begin a run, or continue the one that is tagged with this folder."""
        client = self._client = package.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if found is None else found.experiment_id
        tag = identity(run)
        runs = client.search_runs([experiment], filter_string=f"tags.sparkmim = '{tag}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        tags = {"sparkmim": tag, "mlflow.runName": run.root.absolute().name}
        self._id = client.create_run(experiment, tags=tags).info.run_id
        for field, value in config.flat().items():
            client.log_param(self._id, field, str(value)[:LONGEST])

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def end(self) -> None:
        """End the run for now."""
        self._client.set_terminated(self._id)


TRACKERS: Mapping[str, type[Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""By the name of their package."""


def require_tracker(name: str) -> None:
    """Raise unless the package of a service can be imported.

    Raises:
        ValueError: naming it, and how to install it.
    """
    if name == "none":
        return
    try:
        import_module(name)
    except ImportError as error:
        raise ValueError(f"--log {name} needs its package ({error}): pip install {name}, or --log none") from error


def tracker(config: TrainingConfig, run: RunFolder) -> Tracker | None:
    """Return what sends the metrics of a run elsewhere, None if nothing does."""
    name = config.run.log
    return None if name == "none" else TRACKERS[name](name, config, run)


def identity(run: RunFolder) -> str:
    """Return by what a service knows a run folder again, kept in the folder."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing, or made by somebody else
        known = str(read_json(run.tracking)["id"])
        if re.fullmatch(r"[0-9a-f]{16}", known):
            return known
    made = secrets.token_hex(8)
    write_json(run.tracking, {"id": made})
    return made
