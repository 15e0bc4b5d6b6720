"""What a command prints at the end of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.logging import is_rank_zero
from ..utils.text import counted
from .exit_codes import INTERRUPTED

if TYPE_CHECKING:
    from ..training.loop import Outcome


def report_outcome(
    output: Path, outcome: Outcome, advice: Sequence[str], command: str = "pretrain", *, trust: str = ""
) -> int:
    """Print how a run ended, where its results are and what to do next; return the exit code.

    Args:
        output: the run folder.
        outcome: of the run.
        advice: lines at the end.
        command: that resumes the run.
        trust: " --trust" for a run whose configuration names code.
    """
    from ..training.progress import format_metrics
    from ..training.signals import TIME_LIMIT

    if not is_rank_zero():
        return INTERRUPTED if outcome.interrupted else 0
    if outcome.interrupted and outcome.step == 0:
        longer = ", with a longer --time-limit if this repeats" if outcome.interrupted == TIME_LIMIT else ""
        print(f"\n{outcome.interrupted}: ended before the first step; give the same command again{longer}")
        return INTERRUPTED
    if outcome.interrupted:
        start = "torchrun ... -m sparkmim" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "sparkmim"
        print(f"\n{outcome.interrupted}: saved after step {outcome.step} of {outcome.steps}. To resume:")
        print(f"    {start} {command} --output {shlex.quote(str(output))}{trust}")
        return INTERRUPTED
    pictures = sorted((output / "reconstructions").glob("step-*.png"))
    loss = [] if outcome.loss is None else [f"loss {outcome.loss:.4f}"]
    print("\ndone: " + ", ".join([counted(outcome.steps, "step"), *loss, *format_metrics(outcome.measured)]))
    if pictures:
        print(f"  picture  {pictures[-1]}")
    print(f"  report   {output / 'report.html'}")
    print(f"  encoder  {output / 'encoder.safetensors'}")
    print("\n".join(advice))
    return 0
