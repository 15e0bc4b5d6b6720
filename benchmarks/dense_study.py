"""Measure what pretraining adds to a segmenter or a detector, against the same network from scratch.

    python benchmarks/dense_study.py segmentation --data CAMVID --unlabeled FRAMES --output STUDY
    python benchmarks/dense_study.py detection --data BCCD --unlabeled PHOTOGRAPHS --output STUDY

One encoder is pretrained on `--unlabeled`. Both arms, from it and from scratch, are trained with the same share of the
labels, the same number of views and the same learning rates; each chooses its own rate by the validation images at
seed 0, and is scored on the test images with the weights after the last step. `seed` draws the labeled images, the
views and the weights that are not pretrained.

Every result is written to STUDY/results.jsonl when its run ends; the same command continues an interrupted study, also
in the middle of a run. Seed 0 of both arms comes first. STUDY/table.md is rewritten after each run. `--epochs` of the
pretraining, `--views` and `--rates` size the study; `--check` runs what explains a small gain, after the seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.pretraining.run import pretrain
from sparkmim.transfer.run import finetune
from sparkmim.utils.io import write_text

Line = dict[str, Any]

NEVER = 1e9
"""Epochs between two evaluations, where only the last weights are scored."""

TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {
        "scores": ("miou", "accuracy"),
        "settings": {"head": "fpn", "decoder_width": 64, "overlap": 0.0, "ignore_index": 11},
    },
    "detection": {"scores": ("map", "map50"), "settings": {"head": "faster-rcnn", "fpn_width": 64}},
}
"""Scores of each task, by the first of which a rate is chosen, and settings of both arms."""

ARMS = ("spark", "scratch")

CHECKS: dict[str, dict[str, Any]] = {
    "spark, all layers alike": {"layer_decay": 1.0},
    "spark, layer decay 0.9": {"layer_decay": 0.9},
}
"""Changes of the arm from the encoder that may explain a small gain."""


def main() -> None:
    """Run all that is not done, and write the table."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    once(args, "pretrain", lambda run: pretraining(args, run))
    for rate in args.rates:
        for arm in ARMS:
            once(args, f"{arm}/{rate:g}/0", lambda run, arm=arm, rate=rate: trained(args, run, arm, rate, 0))
    for seed in range(1, args.seeds):
        for arm in ARMS:
            rate = chosen_rate(args, arm)
            once(
                args,
                f"{arm}/{rate:g}/{seed}",
                lambda run, arm=arm, rate=rate, seed=seed: trained(args, run, arm, rate, seed),
            )
    for name, change in CHECKS.items() if args.check else ():
        rate = chosen_rate(args, "spark")
        once(
            args,
            f"{name}/{rate:g}/0",
            lambda run, rate=rate, change=change: trained(args, run, "spark", rate, 0, change),
        )


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="labeled images with their splits")
    parser.add_argument("--unlabeled", type=Path, required=True, help="images to pretrain on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--classes", type=Path, help="table of a segmentation's classes")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--pretrain-crop", choices=("native", "resized"), default="native")
    parser.add_argument("--epochs", type=float, default=60.0, help="of the pretraining")
    parser.add_argument("--share", type=float, default=0.25, help="of the labels")
    parser.add_argument("--views", type=int, default=1920, help="of each fine-tuning")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3, 3e-4))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def results(args: argparse.Namespace) -> dict[str, Line]:
    """Return the results of every run that has ended, by name."""
    journal = args.output / "results.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    return {line["run"]: line for line in lines}


def once(args: argparse.Namespace, name: str, run: Any) -> Line:
    """Carry out a run, unless it is done, and return its result."""
    done = results(args)
    if name in done:
        return done[name]
    print(f"\n=== {name}", flush=True)
    before = time.process_time()
    line = {"run": name, **run(args.output / name.replace(", ", "-").replace(" ", "-"))}
    line["processor_seconds"] = round(time.process_time() - before, 1)  # of this process: less after an interruption
    with (args.output / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    write_text(args.output / "table.md", table(args))
    return line


def pretraining(args: argparse.Namespace, run: Path) -> Line:
    """Pretrain the encoder."""
    chosen = {
        "model": args.model,
        "data": args.unlabeled,
        "image_size": tuple(args.image_size),
        "crop": args.pretrain_crop,
        "decoder_width": 64,
        "batch_size": 32,
        "epochs": args.epochs,
        "seed": 0,
        **computed(),
    }
    outcome = ended(pretrain(run, chosen=chosen))
    return {"loss": outcome.loss, "epochs": args.epochs}


def trained(
    args: argparse.Namespace, run: Path, arm: str, rate: float, seed: int, change: Mapping[str, Any] | None = None
) -> Line:
    """Train with a share of the labels, and return the scores of the last weights."""
    task = TASKS[args.task]
    chosen = {
        "task": args.task,
        "model": args.model,
        "encoder": "none" if arm == "scratch" else str(args.output / "pretrain" / "encoder.safetensors"),
        "data": args.data,
        "label_share": args.share,
        "image_size": tuple(args.image_size),
        "batch_size": args.batch_size,
        "lr": rate,
        "seed": seed,
        "val_every": NEVER,
        **computed(),
        **task["settings"],
        **(change or {}),
    }
    if args.classes is not None:
        chosen["classes"] = args.classes
    images = labeled_images(args)
    chosen["epochs"] = args.views / images
    chosen["warmup_epochs"] = chosen["epochs"] / 10
    ended(finetune(run, chosen=chosen))
    scores = json.loads(RunFolder(run).results.read_text())
    shutil.rmtree(RunFolder(run).checkpoints, ignore_errors=True)
    return {split: {name: scores[split][name] for name in task["scores"]} for split in ("validation", "test")}


def labeled_images(args: argparse.Namespace) -> int:
    """Return how many images a run is trained with."""
    if args.task == "segmentation":
        every = len(list((args.data / "train" / "images").iterdir()))
    else:
        every = len((args.data / "ImageSets" / "Main" / "train.txt").read_text().split())
    return max(1, round(args.share * every))


def computed() -> dict[str, Any]:
    """Return how everything is computed: on one thread, in float32."""
    return {"device": "cpu", "precision": "32", "workers": 0, "keep_checkpoints": 1, "checkpoint_minutes": 2.0}


def ended(outcome: Any) -> Any:
    """Return how a run ended; stop the study if it was interrupted."""
    if outcome.interrupted is not None:
        raise SystemExit(75)
    return outcome


def chosen_rate(args: argparse.Namespace, arm: str) -> float:
    """Return the rate of the highest score of the validation images at seed 0."""
    done, score = results(args), TASKS[args.task]["scores"][0]
    return max(args.rates, key=lambda rate: done[f"{arm}/{rate:g}/0"]["validation"][score])


def table(args: argparse.Namespace) -> str:
    """Return all scores in percent, and the differences of the seeds that both arms have, as Markdown."""
    done, names = results(args), TASKS[args.task]["scores"]
    lines = [
        f"| run | {' | '.join(f'val {n} | test {n}' for n in names)} | processor s |",
        "|---" * (2 + 2 * len(names)) + "|",
    ]
    for name, line in done.items():
        if "test" in line:
            values = [f"{100 * line[split][n]:.1f}" for n in names for split in ("validation", "test")]
            lines.append(f"| {name} | {' | '.join(values)} | {line['processor_seconds']:.0f} |")
    if all(f"{arm}/{rate:g}/0" in done for arm in ARMS for rate in args.rates):
        rates = {arm: chosen_rate(args, arm) for arm in ARMS}
        for n in names:
            gains = [
                100
                * (
                    done[f"spark/{rates['spark']:g}/{s}"]["test"][n]
                    - done[f"scratch/{rates['scratch']:g}/{s}"]["test"][n]
                )
                for s in range(args.seeds)
                if all(f"{arm}/{rates[arm]:g}/{s}" in done for arm in ARMS)
            ]
            spread = f" (standard deviation {statistics.stdev(gains):.1f})" if len(gains) > 1 else ""
            lines += ["", f"{n}: SparK above scratch by {statistics.mean(gains):+.1f}{spread}, {len(gains)} seeds."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
