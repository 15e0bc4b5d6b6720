"""The public function :func:`pretrain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.volumes.opening import Stores
from ..training.loop import Outcome
from ..training.recorded import require_arguments, require_sound_run
from ..training.run import train
from .config import PretrainConfig
from .prepare import Pretraining


def pretrain(
    output: str | Path,
    *,
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    chosen: Mapping[str, Any] | None = None,
    after_step: Callable[[int], None] | None = None,
    trust: bool = False,
) -> Outcome | None:
    """Pretrain a network, or resume a run. What happens is logged by the logger "sparkmim".

    Args:
        output: the run folder.
        recipe: a name of :mod:`sparkmim.recipes`, or `FILE.py:FUNCTION`; "auto" for a new run if not given.
        resume: "auto" continues the run that is in the folder, if there is one; "never" refuses if there is one; a
            checkpoint file is continued from.
        plan: measure a few steps, log how long the run will take, and write nothing.
        chosen: fields of the configuration by name, see :class:`~sparkmim.pretraining.config.PretrainConfig`; they take
            precedence over the recipe. Settings of an objective are named `objective.FIELD`.
        after_step: called with the number of steps done after each one.
        trust: run the code that a run to be resumed names, beyond what `chosen` names.

    Returns:
        How the run ended, None for a plan.

    Raises:
        ValueError: for anything that can be found wrong before the run begins.
        RunStopped: if the run cannot continue.

    Examples:
        >>> pretrain("runs/mine", chosen={"model": "resnet50", "data": "photographs"})
    """
    require_arguments(
        output=output, recipe=recipe, resume=resume, plan=plan, chosen=chosen, after_step=after_step, trust=trust
    )
    given = chosen or {}
    require_sound_run(PretrainConfig, output, resume, given, trust=trust)
    return train(
        Pretraining(
            Stores(None if plan else output, given.get("store"), given.get("workers")),
            output=output,
            plan=plan,
            trust=trust,
        ),
        output,
        recipe=recipe,
        resume=resume,
        plan=plan,
        chosen=given,
        after_step=after_step,
    )
