"""Measure what pretraining adds to the segmentation of volumes: Dice with few and with all labels, and from scratch.

    python benchmarks/dice_study.py --data FOLDER --plans PLANS.json --output STUDY [--plan] [--only PATTERN]

`FOLDER` has `images` and `labels` of the same names, such as those of the Medical Segmentation Decathlon. `--held-out`
of them, drawn once, are scored and used for nothing else. The others are pretrained on without labels: by a light
decoder, and by the network's own. Each encoder, and none, is fine-tuned with `--labels` of them and `--seeds` seeds,
which draw the volumes and the crops alike for all arms, and what is random of the weights. Before that each arm chooses
among the same learning rates, with the fewest labels, on ten volumes that are neither trained on with labels then nor
held out.

Every result is written to STUDY/results.jsonl when its run ends, and STUDY/table.md anew. The same command continues.
All arms and seeds with the first number of `--labels` come first, so that a part of the study can be read.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.pretraining.run import pretrain
from sparkmim.training.loop import Outcome
from sparkmim.transfer.run import finetune
from sparkmim.utils.io import write_json, write_text

Line = dict[str, Any]

PRETRAINED: dict[str, dict[str, Any]] = {"spark": {"decoder_width": 32}, "own": {"decoder": "own"}}
"""Fields of the pretraining of each arm that has one."""

TITLES = {"spark": "SparK", "own": "SparK, own decoder", "scratch": "from scratch"}

CHOOSE_SEED, CHOOSE_VOLUMES = 100, 10

MANY = 20
"""Labeled volumes beyond which half as many steps more are made."""

MAY_CHANGE = ("output", "labels", "seeds", "only", "plan")
"""What may differ from one call to the next on a folder."""


class Study:
    """All runs of one study, in one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.root = args, args.output.absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.journal = self.root / "results.jsonl"
        settings = self.root / "settings.json"
        asked = {name: str(value) for name, value in vars(args).items() if name not in MAY_CHANGE}
        if not settings.exists():
            write_json(settings, asked)
        there = json.loads(settings.read_text())
        unlike = [name for name in asked if there.get(name) != asked[name]]
        if unlike:
            raise SystemExit(f"{self.root} holds a study of other settings ({', '.join(unlike)}); use another --output")
        images = sorted(path.name for path in (args.data / "images").glob("*.nii.gz"))
        order = np.random.default_rng(0).permutation(len(images)).tolist()
        self.held_out = [images[index] for index in sorted(order[: args.held_out])]
        self.train = [images[index] for index in sorted(order[args.held_out :])]

    def results(self) -> dict[str, Line]:
        """Return the results of every run that has ended, by name."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return {line["run"]: line for line in map(json.loads, lines)}

    def runs(self) -> dict[str, Any]:
        """Return what makes the result of each run, in order."""
        args = self.args
        found: dict[str, Any] = {f"pretrain/{name}": partial(self.pretrain, name) for name in PRETRAINED}
        for rate in args.rates if len(args.rates) > 1 else ():
            for arm in TITLES:
                found[f"choose/{arm}/{rate:g}"] = partial(self.choose, arm, rate)
        for labels in args.labels:
            for seed in range(args.seeds):
                for arm in TITLES:
                    found[f"finetune/{arm}/{labels}/{seed}"] = partial(self.finetune, arm, labels, seed)
        return found

    def run_all(self) -> None:
        """Carry out the runs that have no result yet."""
        for name, make in self.runs().items():
            if name in self.results() or not fnmatch.fnmatch(name, self.args.only):
                continue
            if self.args.plan:
                print(name)
                continue
            print(f"\n=== {name}", flush=True)
            begun = time.process_time()
            line = {"run": name, **make(self.root / name), "cpu_seconds": round(time.process_time() - begun, 1)}
            with self.journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shutil.rmtree(RunFolder(self.root / name).checkpoints, ignore_errors=True)
            write_text(self.root / "table.md", table(self.results(), self.args.labels))

    # --- the runs ---------------------------------------------------------------------------------------------------

    def pretrain(self, name: str, run: Path) -> Line:
        args = self.args
        chosen = {
            "model": f"nnunet:{args.plans}#3d_fullres",
            "data": self.listed("pretrain", [(name,) for name in self.train]),
            "image_size": args.crop,
            "batch_size": 4,
            "epochs": args.epochs,
            "warmup_epochs": args.epochs / 10,
            "pictures": 1,
            **self.common(0),
            **PRETRAINED[name],
        }
        return {"loss": ended(pretrain(run, chosen=chosen)).loss}

    def choose(self, arm: str, rate: float, run: Path) -> Line:
        drawn, few = self.drawn(CHOOSE_SEED), min(self.args.labels)
        return self.segmenter(run, arm, drawn[:few], drawn[few : few + CHOOSE_VOLUMES], CHOOSE_SEED, rate)

    def finetune(self, arm: str, labels: int, seed: int, run: Path) -> Line:
        return self.segmenter(run, arm, self.drawn(seed)[:labels], self.held_out, seed, self.chosen(arm))

    def chosen(self, arm: str) -> float:
        """Return the learning rate of the highest Dice on the volumes to choose by, or the only one."""
        if len(self.args.rates) == 1:
            return float(self.args.rates[0])
        lines = [line for run, line in self.results().items() if run.startswith(f"choose/{arm}/")]
        return float(max(lines, key=lambda line: line["dice"])["rate"])

    def drawn(self, seed: int) -> list[str]:
        """Return the volumes that may have labels in the order of a seed; fewer labels are the first of more."""
        return [self.train[index] for index in np.random.default_rng(seed + 1).permutation(len(self.train))]

    def segmenter(
        self, run: Path, arm: str, train: Sequence[str], scored: Sequence[str], seed: int, rate: float
    ) -> Line:
        """Fine-tune, and return Dice of the last weights' average: mean over classes of the mean over volumes."""
        args = self.args
        name = run.relative_to(self.root).as_posix().replace("/", "-")
        rows = [(image, image, split) for split, names in (("train", train), ("test", scored)) for image in names]
        steps = args.steps * 3 // 2 if len(train) > MANY else args.steps
        epochs = steps * args.batch_size / len(train)
        chosen = {
            "task": "segmentation",
            "model": f"nnunet:{args.plans}#3d_fullres",
            "encoder": str(self.root / f"pretrain/{arm}/encoder.safetensors") if arm in PRETRAINED else "none",
            "data": self.listed(name, rows),
            "image_size": args.window,
            "batch_size": args.batch_size,
            "epochs": epochs,
            "warmup_epochs": epochs / 10,
            "val_every": epochs,
            "flip": False,  # the classes are the front and the back of one organ
            "lr": rate,
            "layer_decay": args.layer_decay if arm in PRETRAINED else 1.0,
            **self.common(seed),
        }
        if arm == "scratch":
            chosen["in_chans"] = 1
        outcome = ended(finetune(run, chosen=chosen))
        score = json.loads(RunFolder(run).results.read_text())["test"]
        return {
            "rate": rate,
            "dice": score["dice_per_image"],
            "dice_of_classes": score["dice_per_image_of_classes"],
            "volumes": score["images"],
            "steps": steps,
            "loss": outcome.loss,
        }

    def common(self, seed: int) -> dict[str, Any]:
        """Return the fields of every run."""
        return {
            "store": str(self.root / "volumes"),
            "spacing": (self.args.spacing,) * 3,
            "precision": "32",
            "workers": 0,
            "device": "cpu",
            "seed": seed,
            "keep_checkpoints": 1,
        }

    def listed(self, name: str, rows: Sequence[Sequence[str]]) -> str:
        """Write a table of images, masks and splits, and return its path."""
        folders = ("images", "labels")
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        for row in rows:
            paths = [(self.args.data / folder / part).absolute() for folder, part in zip(folders, row, strict=False)]
            writer.writerow([*paths, *row[2:]])
        path = self.root / "lists" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        write_text(path, table.getvalue())
        return str(path)


def ended(outcome: Outcome | None) -> Outcome:
    """Return how a run ended; stop the study if it was interrupted."""
    assert outcome is not None
    if outcome.interrupted is not None:
        raise SystemExit(f"interrupted: {outcome.interrupted}; the same command continues")
    return outcome


# --- the table ------------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Line], labels: Sequence[int]) -> str:
    """Return Dice of each arm, its differences from scratch of the same seeds, and what was chosen, as Markdown."""
    scores: dict[tuple[str, int], dict[int, float]] = {}
    for run, line in results.items():
        kind, arm, *rest = run.split("/")
        if kind == "finetune":
            scores.setdefault((arm, int(rest[0])), {})[int(rest[1])] = 100 * line["dice"]
    head = ["arm", *(f"{number} labeled" for number in labels)]
    lines = [row(head), row(["---"] * len(head))]
    lines += [row([TITLES[arm], *(spread(scores.get((arm, n), {}).values()) for n in labels)]) for arm in TITLES]
    lines += ["", row(head), row(["---"] * len(head))]
    for arm in PRETRAINED:
        gains = [
            [value - scores[("scratch", n)][seed] for seed, value in scores.get((arm, n), {}).items()
             if seed in scores.get(("scratch", n), {})]
            for n in labels
        ]  # fmt: skip
        lines.append(row([f"{TITLES[arm]} - from scratch", *map(spread, gains)]))
    rates = sorted({line["rate"] for run, line in results.items() if run.startswith("choose/")})
    if rates:
        head = ["learning rate, to choose by", *TITLES.values()]
        lines += ["", row(head), row(["---"] * len(head))]
    for rate in rates:
        tried = [results.get(f"choose/{arm}/{rate:g}") for arm in TITLES]
        lines.append(row([f"{rate:g}", *("" if line is None else f"{100 * line['dice']:.1f}" for line in tried)]))
    return "\n".join(lines) + "\n"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: Any) -> str:
    """Return mean, standard deviation and number."""
    found = list(values)
    if not found:
        return ""
    deviation = statistics.stdev(found) if len(found) > 1 else math.nan
    return f"{statistics.mean(found):.1f} ± {deviation:.1f} ({len(found)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images and labels")
    parser.add_argument("--plans", type=Path, required=True, help="plans of nnU-Net with the network")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 60, 10], help="in the order of the runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], help="one is not chosen")
    parser.add_argument("--layer-decay", type=float, default=1.0, help="of the pretrained arms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=27.0, help="of the pretraining")
    parser.add_argument("--steps", type=int, default=300, help="of a fine-tuning; half as many more with many labels")
    parser.add_argument("--batch-size", type=int, default=2, help="of the fine-tuning")
    parser.add_argument("--spacing", type=float, default=2.0, help="millimeters of a voxel")
    parser.add_argument("--crop", type=int, nargs=3, default=(16, 24, 16), help="of the pretraining")
    parser.add_argument("--window", type=int, nargs=3, default=(20, 28, 20), help="of the fine-tuning")
    parser.add_argument("--only", default="*", help="pattern of the names of runs")
    parser.add_argument("--plan", action="store_true", help="list the runs that have no result")
    args = parser.parse_args()
    args.data, args.plans = args.data.expanduser().absolute(), args.plans.expanduser().absolute()
    args.crop, args.window = tuple(args.crop), tuple(args.window)
    Study(args).run_all()


if __name__ == "__main__":
    main()
