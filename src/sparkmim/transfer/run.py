"""The public function :func:`finetune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.run_folder import RunFolder
from ..data.volumes.opening import Stores
from ..training.loop import Outcome
from ..training.recorded import config_in, require_arguments, require_sound_run
from ..training.run import train
from ..utils.logging import without_repeats
from .config import CLASSIFICATION, config_type_of
from .prepare import FineTuning


def finetune(
    output: str | Path,
    *,
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    chosen: Mapping[str, Any] | None = None,
    after_step: Callable[[int], None] | None = None,
    trust: bool = False,
) -> Outcome | None:
    """Fine-tune an encoder on labeled images, or resume a run. What happens is logged by the logger "sparkmim".

    Args:
        output: the run folder.
        recipe: a name of :mod:`sparkmim.transfer.recipes`, or `FILE.py:FUNCTION`; "small-data" for a new run if not
            given.
        resume: "auto" continues the run that is in the folder, if there is one; "never" refuses if there is one; a
            checkpoint file is continued from.
        plan: measure a few steps, log how long the run will take, and write nothing.
        chosen: fields of the configuration by name, see :class:`~sparkmim.transfer.config.FinetuneConfig`; they take
            precedence over the recipe. Settings of another task than classification are named `task.FIELD`.
        after_step: called with the number of steps done after each one.
        trust: run the code that the encoder's file or a run to be resumed names, beyond what `chosen` names.

    Returns:
        How the run ended, None for a plan. Its scores are in the folder's `results.json`.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot continue.

    Examples:
        >>> finetune("runs/classifier", chosen={"encoder": "runs/mine", "data": "labeled"})
    """
    require_arguments(
        output=output, recipe=recipe, resume=resume, plan=plan, chosen=chosen, after_step=after_step, trust=trust
    )
    chosen = chosen or {}
    recorded = recorded_task(output, resume)
    require_sound_run(config_type_of(recorded), output, resume, chosen, trust=trust)
    task = chosen.get("task", recorded)
    if recorded is not None and config_type_of(task) is not config_type_of(recorded):
        raise ValueError(
            f"{output if RunFolder(output).config.exists() else resume} is of another task ({recorded} there, {task} "
            "asked for); leave --task to it, or begin a new run from its weights: --encoder RUN/model.safetensors"
        )
    stores = Stores(None if plan else output, chosen.get("store"), chosen.get("workers"))
    with without_repeats():
        return train(
            FineTuning(task, trust=trust, stores=stores),
            output,
            recipe=recipe,
            resume=resume,
            plan=plan,
            chosen=chosen,
            after_step=after_step,
        )


def recorded_task(output: str | Path, resume: str) -> str | None:
    """Return the task of the run in a folder, or of the checkpoint that a new one resumes; None without either.

    Raises:
        ValueError: if the folder holds something that is not a run, or the checkpoint cannot be read.
    """
    recorded = RunFolder(output).read_config()
    if recorded is None and resume not in ("auto", "never"):
        recorded = config_in(Path(resume).expanduser())
    model = (recorded or {}).get("model")
    if not isinstance(model, dict) or "encoder" not in model:  # of a pretraining
        return None
    return str(model.get("task", CLASSIFICATION))
