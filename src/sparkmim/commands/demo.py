"""`sparkmim demo`."""

from __future__ import annotations

from pathlib import Path

from .outcome import report_outcome


def command(output: Path = Path("runs/demo")) -> int:
    """Pretrain a ResNet-18 on built-in photographs, in minutes on a CPU.

    Args:
        output: folder of the run.
    """
    from ..pretraining.run import pretrain

    outcome = pretrain(output, recipe="demo", chosen={"model": "resnet18"})
    assert outcome is not None
    advice = [
        "With your own images, without labels:",
        "    sparkmim pretrain --model resnet50 --data FOLDER --output runs/mine",
    ]
    return report_outcome(output, outcome, advice)
