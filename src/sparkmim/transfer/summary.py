"""How a finished fine-tuning did, in lines for the user."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.run_folder import RunFolder
from ..training.recorded import names_unknown_code
from ..utils.text import counted
from .config import TransferConfig


def summary_of_results(output: Path) -> list[str]:
    """Return the scores of a run, where its files are, and what can be done next."""
    run = RunFolder(output)
    results = json.loads(run.results.read_text())
    lines = [""]
    for name in ("validation", "test"):
        if name in results:
            score = results[name]
            lines.append(
                f"{name}: {describe_score(score)}, {counted(score['images'], 'image')}"
                + (f", {score['broken']} unreadable, named in {run.results}" if score["broken"] else "")
            )
    weights = results["weights"]
    written = "masks" if "ignore_index" in results else "detections" if "categories" in results else "predictions.csv"
    kept = "the best on the validation images" if "validation" in results else "the last"
    return [
        *lines,
        f"  weights  {run.classifier} (of step {weights['step']}, {kept})",
        f"  report   {run.report}",
        "Predict with it:",
        f"    sparkmim predict --run {shlex.quote(str(output))} --data FOLDER --output {written}"
        + (" --trust" if names_unknown_code(TransferConfig, output) else ""),
    ]


def describe_score(score: Mapping[str, Any]) -> str:
    """Return the scores of a set of images as text."""
    if "miou" in score:
        if score["dice"] is None:
            return f"mIoU {score['miou']:.2%}, no Dice: the images show the background alone, and nothing else is found"
        return f"mIoU {score['miou']:.2%}, Dice {score['dice']:.2%} (mean over images {score['dice_per_image']:.2%})"
    if "map50" in score:
        masks = f", of masks {score['mask_map']:.2%} and {score['mask_map50']:.2%}" if "mask_map" in score else ""
        return f"mAP {score['map']:.2%}, mAP50 {score['map50']:.2%}{masks}"
    if "top1" in score:
        return f"top-1 {score['top1']:.2%}, mean of classes {score['mean_per_class']:.2%}"
    numbers = {name: value for name, value in score.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
