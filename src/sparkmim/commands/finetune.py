"""`sparkmim finetune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..transfer.config import TransferConfig, config_type_of
from ..utils.logging import is_rank_zero
from .options import value_of, with_flags
from .outcome import report_outcome


def command_for(arguments: Sequence[str]) -> Callable[..., int]:
    """Return the command with the flags of the task that its arguments name."""
    task = value_of(arguments, "task")
    return with_flags(command, config_type_of(task), {"task": task})


def command(
    output: Path,
    settings: Mapping[str, Any],
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    trust: bool = False,
) -> int:
    """Train a classifier, segmenter or detector on labeled images, from an encoder on, or resume a run.

    The recipe decides all that is not set, and the plan is shown before the run begins. Ctrl-C and SIGTERM save and
    exit with code 75; the same command, or `sparkmim finetune --output RUN` alone, resumes.

    Args:
        output: folder of the run.
        settings: fields of the configuration.
        recipe: small-data (the default), for hundreds to thousands of images; paper, for a million; or
            FILE.py:FUNCTION.
        resume: auto resumes the run in the folder, if there is one; never refuses to; a checkpoint file is resumed
            from.
        plan: measure a few steps, print time and memory, and exit.
        trust: run the code that the encoder's file or a run to be resumed names: only for files whose source you trust.
    """
    from ..training.recorded import names_unknown_code
    from ..transfer.run import finetune
    from ..transfer.summary import summary_of_results

    outcome = finetune(output, recipe=recipe, resume=resume, plan=plan, chosen=settings, trust=trust)
    if outcome is None:
        return 0
    if outcome.interrupted or not is_rank_zero():
        again = " --trust" if names_unknown_code(TransferConfig, output, resumed=True) else ""
        return report_outcome(output, outcome, [], "finetune", trust=again)
    for line in summary_of_results(output):
        print(line)
    return 0
