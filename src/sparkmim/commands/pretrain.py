"""`sparkmim pretrain`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..pretraining.config import PretrainConfig
from ..utils.logging import is_rank_zero
from .options import value_of, with_flags
from .outcome import report_outcome


def command_for(arguments: Sequence[str]) -> Callable[..., int]:
    """Return the command with flags for the settings of the objective and the source that its arguments name."""
    return with_flags(command, PretrainConfig, {name: value_of(arguments, name) for name in ("objective", "data")})


def command(
    output: Path,
    settings: Mapping[str, Any],
    recipe: str | None = None,
    resume: str = "auto",
    plan: bool = False,
    trust: bool = False,
) -> int:
    """Pretrain a network on a folder of images, or resume a run.

    The recipe decides all that is not set, and the plan is shown before the run begins. Ctrl-C and SIGTERM save and
    exit with code 75; the same command, or `sparkmim pretrain --output RUN` alone, resumes.

    Args:
        output: folder of the run.
        settings: fields of the configuration.
        recipe: auto (the default) fits everything to the images and the device; paper; fast; demo; or
            FILE.py:FUNCTION.
        resume: auto resumes the run in the folder, if there is one; never refuses to; a checkpoint file is resumed
            from.
        plan: measure a few steps, print time and memory, and exit.
        trust: run the code that a run to be resumed names: only for files whose source you trust.
    """
    from ..checkpoints.run_folder import RunFolder
    from ..objectives.base import find_objective
    from ..pretraining.kinds import kind_in
    from ..pretraining.run import pretrain
    from ..training.recorded import names_unknown_code

    outcome = pretrain(output, recipe=recipe, resume=resume, plan=plan, chosen=settings, trust=trust)
    if outcome is None:
        return 0
    again = " --trust" if names_unknown_code(PretrainConfig, output, resumed=outcome.interrupted is not None) else ""
    if outcome.interrupted or not is_rank_zero():
        return report_outcome(output, outcome, [], trust=again)
    run = shlex.quote(str(output))
    recorded = RunFolder(output).read_config() or {}
    pictures = find_objective(PretrainConfig.plugins_of(recorded).get("objective", "pixels")).reconstructs
    kind = kind_in(PretrainConfig.from_dict(recorded))
    images = kind == "images"
    advice = [
        f"{'More pictures, features' if pictures else 'Features'} of {kind}"
        + (", and a classifier from labeled ones:" if images else ":"),
        *[f"    sparkmim reconstruct --run {run} --data FOLDER --output picture.png{again}"] * pictures,
        f"    sparkmim embed --encoder {run}/encoder.safetensors --data FOLDER --output features.npz{again}",
        *[f"    sparkmim finetune --encoder {run} --data LABELED --output runs/classifier{again}"] * images,
    ]
    return report_outcome(output, outcome, advice, trust=again)
