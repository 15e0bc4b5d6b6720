"""`sparkmim refine`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..refinement.config import RefineConfig
from ..utils.logging import is_rank_zero
from .options import with_flags
from .outcome import report_outcome


def command_for(arguments: Sequence[str]) -> Callable[..., int]:
    """Return the command with its flags."""
    return with_flags(command, RefineConfig, {})


def command(
    output: Path,
    settings: Mapping[str, Any],
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    trust: bool = False,
) -> int:
    """Refine a pretrained encoder by contrast of views, for use without fine-tuning, or resume a run.

    The ordinary network learns from whole images that two views of one are more alike than those of different ones. The
    recipe decides all that is not set, and the plan is shown before the run begins. Ctrl-C and SIGTERM save and exit
    with code 75; the same command, or `sparkmim refine --output RUN` alone, resumes.

    Args:
        output: folder of the run.
        settings: fields of the configuration.
        recipe: auto (the default) fits everything to the encoder, the images and the device; or FILE.py:FUNCTION.
        resume: auto resumes the run in the folder, if there is one; never refuses to; a checkpoint file is resumed
            from.
        plan: measure a few steps, print time and memory, and exit.
        trust: run the code that the encoder's file or a run to be resumed names: only for files whose source you trust.
    """
    from ..refinement.run import refine
    from ..training.recorded import names_unknown_code

    outcome = refine(output, recipe=recipe, resume=resume, plan=plan, chosen=settings, trust=trust)
    if outcome is None:
        return 0
    again = " --trust" if names_unknown_code(RefineConfig, output, resumed=outcome.interrupted is not None) else ""
    if outcome.interrupted or not is_rank_zero():
        return report_outcome(output, outcome, [], "refine", trust=again)
    run = shlex.quote(str(output))
    advice = [
        "What its features are worth, and features of images:",
        f"    sparkmim knn --encoder {run} --data LABELED{again}",
        f"    sparkmim embed --encoder {run} --data FOLDER --output features.npz{again}",
    ]
    return report_outcome(output, outcome, advice, "refine", trust=again)
