"""Measure what pretraining adds, and the contribution of each part, on one set of labeled images.

    python benchmarks/study.py --data DIR --output STUDY [--epochs 30] [--lightly FOLDER] [--plan] [--only PATTERN]

`--data` has train, val and test folders of classes. One encoder for each row of ARMS and each seed is pretrained on the
training images without labels, fine-tuned with shares of the labels, and scored on the validation and test images
together, which are used for nothing else but the curve of the held-out loss. Each arm with a choice of its own chooses
among SETTINGS by cross-validation inside the training images, at one share.

Every result is written to STUDY/results.jsonl when its run ends. The same command continues an interrupted study, also
in the middle of a run; seeds and arms may be added. STUDY/table.md is rewritten each time. `--only 'finetune/spark/*'`
carries out a part, for several machines or processes on one folder.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from simclr import train as train_simclr
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.commands.knn import command as knn
from sparkmim.data.labels import fold, label_share, read_labeled, read_matching
from sparkmim.pretraining.run import pretrain
from sparkmim.reporting.report.curves import read_metrics
from sparkmim.training.loop import Outcome
from sparkmim.transfer.prepare import FineTuning
from sparkmim.transfer.run import finetune
from sparkmim.transfer.tasks.classification import Classification
from sparkmim.utils.fields import NoSettings
from sparkmim.utils.io import write_json, write_text

MAIN_SHARE = 0.25
"""Of the labels: where settings are chosen and ablations are compared."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A way to an encoder.

    Attributes:
        title: in the table.
        kind: how it is made: pretrained by us, by SimCLR, or not at all.
        flags: fields of the pretraining.
        shares: of the labels to fine-tune with.
        tuned_as: the arm whose fine-tuning settings it takes.
        epochs: of the pretraining, times those of the study.
        views: of each fine-tuning, times those of the study.
        encoder_of: the arm whose encoders it takes, if it has none of its own.
        first_seed: of the pretraining.
        choices: among which SETTINGS it chooses; all if none are named.
    """

    title: str
    kind: str = "sparkmim"
    flags: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[float, ...] = (MAIN_SHARE,)
    tuned_as: str = "spark"
    epochs: float = 1.0
    views: float = 1.0
    encoder_of: str = ""
    first_seed: int = 0
    choices: tuple[str, ...] = ()


ALL = (1.0, 0.25, 0.1)
ARMS = {
    "spark": Arm("SparK, 60% hidden", shares=ALL),
    "spark-long": Arm("SparK, three times the epochs", epochs=3.0, shares=ALL),
    "scratch": Arm("from scratch", "none", shares=ALL, tuned_as="scratch"),
    "simclr": Arm(
        "SimCLR, in the same time",
        "simclr",
        epochs=5 / 6,
        shares=ALL,
        tuned_as="simclr",
        choices=("3e-3", "1e-2"),
    ),
    "spark-again": Arm("SparK, pretrained with another seed", first_seed=100),
    "spark-tuned-longer": Arm("the same, fine-tuned longer", views=3.0, encoder_of="spark-again"),
    "scratch-longer": Arm("from scratch, longer", "none", tuned_as="scratch", views=3.0, encoder_of="scratch"),
    "single-scale": Arm("decoded from one scale", flags={"hierarchy": False}),
    "zero-out": Arm("dense network, zeros where hidden", flags={"execution": "zero-out"}),
    "loss-on-all": Arm("loss on all patches", flags={"loss_on": "all"}),
    "mask-40": Arm("40% hidden", flags={"mask_ratio": 0.4}),
    "mask-75": Arm("75% hidden", flags={"mask_ratio": 0.75}),
    "width-128": Arm("decoder 128 wide", flags={"decoder_width": 128}),
    "width-384": Arm("decoder 384 wide", flags={"decoder_width": 384}),
    "width-768": Arm("decoder 768 wide", flags={"decoder_width": 768}),
    "width-768-short": Arm("decoder 768 wide, in the same time", flags={"decoder_width": 768}, epochs=7 / 30),
}
"""Rows of the table; a study's own decoder is `--decoder-width` wide. With ResNet-18 at 96 pixels in bf16, 30 epochs of
width 256 take as long as 7 of width 768, and not much less than 25 of SimCLR's pairs."""

STRONG = {"policy": "trivial", "mixup": 0.2, "cutmix": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "learning rate 3.3e-4": {"lr": 1e-3 / 3},
    "1e-3": {"lr": 1e-3},
    "3e-3": {"lr": 3e-3},
    "3.3e-4, strong augmentation": {"lr": 1e-3 / 3, **STRONG},
    "1e-3, strong augmentation": {"lr": 1e-3, **STRONG},
    "3e-3, strong augmentation": {"lr": 3e-3, **STRONG},
    "1e-2": {"lr": 1e-2},
}
"""What cross-validation chooses from: changes of the recipe small-data, the learning rate as at 64 images a step.
SimCLR leaves out what was far behind for both others."""

THE_RECIPE = "the recipe"
"""Where nothing is chosen."""

FOLDS = 5

FIXED = ["model", "image_size", "decoder_width", "epochs", "views", "least_epochs", "choose_views", "folds"]
FIXED += ["pretrain_seeds"]
"""What all runs of a study have in common, beside the images."""


class Interrupted(Exception):
    """A run was told to stop, and has saved."""


class Study:
    """All runs of one study, in one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.root = args, args.output
        self.root.mkdir(parents=True, exist_ok=True)
        self.journal = self.root / "results.jsonl"
        self.train = read_labeled(args.data / "train")
        self.waiting: list[str] = []
        settings, asked = self.root / "settings.json", {name: str(getattr(args, name)) for name in FIXED}
        asked["images"] = Classification(NoSettings()).fingerprint(self.train)
        if not settings.exists():
            write_json(settings, asked)
        there = json.loads(settings.read_text())
        if there != asked:
            unlike = [f"{n} {there.get(n)} there, {asked[n]} asked for" for n in asked if there.get(n) != asked[n]]
            raise SystemExit(f"{self.root} holds a study of other settings ({'; '.join(unlike)}); use another --output")

    def results(self) -> dict[str, Line]:
        """Return the results of every run that has ended, by name."""
        text = self.journal.read_text() if self.journal.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return {line["run"]: line for line in lines}

    def asked(self, name: str) -> bool:
        """Return whether a run was asked for."""
        return not self.args.plan and fnmatch.fnmatch(name, self.args.only)

    def once(self, name: str, run: Callable[[Path], Line], needs: Iterable[str] = ()) -> None:
        """Carry out a run, unless it is done, was not asked for, or needs others that are not done."""
        done = self.results()
        if name in done:
            return
        if not self.asked(name) or not done.keys() >= set(needs):
            self.waiting.append(name)
            return
        print(f"\n=== {name}", flush=True)
        line = {"run": name, **run(self.root / name)}
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shutil.rmtree(RunFolder(self.root / name).checkpoints, ignore_errors=True)

    def run_all(self) -> None:
        """Carry out encoders and their k-NN, then settings, then fine-tuning; the main arms first."""
        contrastive = {self.made(name, 0) for name in self.args.arms if ARMS[name].kind == "simclr"}
        if self.args.lightly is None and any(self.asked(made) for made in contrastive - self.results().keys()):
            raise SystemExit("the arm simclr needs --lightly FOLDER; or leave it out by --arms")
        for name in self.args.arms:
            if ARMS[name].encoder_of:
                continue
            for seed in range(self.args.pretrain_seeds):
                made = self.made(name, seed)
                self.once(made, partial(self.pretrain, arm=ARMS[name], seed=seed))
                self.once(f"knn/{name}/{seed}", partial(self.knn, name=name, seed=seed), [made])
        for name in dict.fromkeys(ARMS[arm].tuned_as for arm in self.args.arms):
            for run, (setting, number) in self.choices(name).items():
                one = partial(self.cross_validate, name=name, setting=setting, number=number)
                self.once(run, one, [self.made(name, 0)])
        for name in self.args.arms:
            choices = self.choices(ARMS[name].tuned_as)
            for share in ARMS[name].shares:
                for seed in range(self.args.seeds):
                    one = partial(self.finetune, name=name, share=share, seed=seed)
                    self.once(f"finetune/{name}/{share:g}/{seed}", one, [self.made(name, seed), *choices])

    def made(self, name: str, seed: int) -> str:
        """Return the run that makes the encoder of a seed."""
        return f"pretrain/{ARMS[name].encoder_of or name}/{seed % self.args.pretrain_seeds}"

    def choices(self, name: str) -> dict[str, tuple[str, int]]:
        """Return the runs of a cross-validation, with their settings and folds."""
        return {
            f"choose/{name}/{place}/{number}": (setting, number)
            for place, setting in enumerate(SETTINGS)
            if setting in (ARMS[name].choices or SETTINGS)
            for number in range(self.args.folds)
        }

    # --- the runs ---------------------------------------------------------------------------------------------------

    def pretrain(self, run: Path, arm: Arm, seed: int) -> Line:
        args = self.args
        if arm.kind == "none":
            return {"seconds": 0.0}
        seed += arm.first_seed
        if arm.kind == "simclr":
            train_simclr(
                args.data / "train",
                run,
                lightly=args.lightly,
                model=args.model,
                image_size=args.image_size,
                epochs=arm.epochs * args.epochs,
                seed=seed,
                workers=args.workers,
                device=args.device,
            )
            return {"seconds": seconds(run, len(self.train))}
        epochs = arm.epochs * args.epochs
        chosen = {
            "model": args.model,
            "data": args.data / "train",
            "val_data": args.data / "val",
            "image_size": args.image_size,
            "decoder_width": args.decoder_width,
            "epochs": epochs,
            "val_every": epochs / 30,
            "monitor": "knn",
            "monitor_data": args.data,
            "monitor_every": epochs / 5,
            "seed": seed,
            "workers": args.workers,
            "device": args.device,
            "keep_checkpoints": 1,
            **arm.flags,
        }
        outcome = ended(pretrain(run, chosen=chosen))
        held_out = outcome.measured.get("val_loss")
        return {"seconds": seconds(run), "loss": outcome.loss, "val_loss": held_out, "curves": curves(run)}

    def encoder(self, name: str, seed: int) -> Path:
        """Return the encoder file that :meth:`made` writes."""
        return Path("none") if ARMS[name].kind == "none" else self.root / self.made(name, seed) / "encoder.safetensors"

    def knn(self, run: Path, name: str, seed: int) -> Line:
        args = self.args
        knn(
            self.encoder(name, seed),
            args.data / "train",
            (args.data / "val", args.data / "test"),
            run,
            model=args.model,
            image_size=args.image_size,
            workers=args.workers,
            device=args.device,
            seed=seed,
        )
        found = json.loads((run / "results.json").read_text())
        return {"top1": found["test"]["top1"], "neighbours": found["neighbours"], "images": found["test_images"]}

    def cross_validate(self, run: Path, name: str, setting: str, number: int) -> Line:
        held_out = {"folds": FOLDS, "fold": number}
        return self.classifier(run, name, MAIN_SHARE, 0, setting, self.args.choose_views, held_out, "validation")

    def finetune(self, run: Path, name: str, share: float, seed: int) -> Line:
        setting = self.chosen(ARMS[name].tuned_as)
        views = round(ARMS[name].views * self.args.views)
        return self.classifier(run, name, share, seed, setting, views, {"test_data": self.scored()}, "test")

    def chosen(self, name: str) -> str:
        """Return the settings of the best cross-validated accuracy; the recipe's if nothing is chosen."""
        results, found = self.results(), dict[str, list[float]]()
        for run, (setting, _) in self.choices(name).items():
            found.setdefault(setting, []).append(results[run]["top1"])
        return max(found, key=lambda setting: statistics.mean(found[setting]), default=THE_RECIPE)

    def classifier(
        self,
        run: Path,
        name: str,
        share: float,
        seed: int,
        setting: str,
        views: int,
        more: Mapping[str, Any],
        scored: str,
    ) -> Line:
        """Fine-tune, and return the scores of the last weights: there are no other validation images."""
        args, change = self.args, {} if setting == THE_RECIPE else dict(SETTINGS[setting])
        held = fold(self.train, more["folds"], more["fold"], seed)[0] if "folds" in more else self.train
        images = len(label_share(held, share, seed))
        chosen = {
            "model": args.model,
            "encoder": str(self.encoder(name, seed)),
            "data": args.data / "train",
            "image_size": (args.image_size, args.image_size),
            "label_share": share,
            "epochs": max(args.least_epochs, views / images),
            "seed": seed,
            "workers": args.workers,
            "device": args.device,
            "val_every": 1e9,  # after the last step alone
            "keep_checkpoints": 1,
            **more,
        }
        if "lr" in change:
            planned = FineTuning(None).resolve("small-data", {**chosen, "data": str(chosen["data"])}, 1)[0]
            change["lr"] *= math.sqrt(planned.run.batch_size / 64)
        ended(finetune(run, chosen=chosen | change))
        score = json.loads(RunFolder(run).results.read_text())[scored]
        return {
            "setting": setting,
            "top1": score["top1"],
            "mean_per_class": score["mean_per_class"],
            "images": score["images"],
            "seconds": seconds(run),
        }

    def scored(self) -> Path:
        """Write a table of the validation and test images together."""
        path = self.root / "scored.csv"
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        for split in ("val", "test"):
            folder = self.args.data / split
            part = read_matching(folder, self.train.classes, "train")
            for index, label in enumerate(part.labels):
                place = os.path.relpath(folder.absolute() / part.source.name(index), self.root.absolute())
                writer.writerow([place, self.train.classes[label]])
        if not path.exists() or path.read_text() != table.getvalue():
            write_text(path, table.getvalue())
        return path


def ended(outcome: Outcome | None) -> Outcome:
    """Return how a run ended; raise if it was interrupted."""
    assert outcome is not None
    if outcome.interrupted is not None:
        raise Interrupted(outcome.interrupted)
    return outcome


def curves(run: Path) -> dict[str, list[list[float]]]:
    """Return what a pretraining measured on held-out images, by epoch."""
    lines = read_metrics(run / "metrics.jsonl")
    return {
        key: [[line["epoch"], round(line[key], 4)] for line in lines if key in line] for key in ("val_loss", "knn_top1")
    }


def seconds(run: Path, batch: int = 0) -> float:
    """Return seconds of training without evaluations: images of each line of metrics over its speed."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "images_per_second" in line]
    config = run / "config.json"
    if config.exists():
        batch = json.loads(config.read_text())["run"]["batch_size"]
        shown = [line["step"] * batch for line in lines]
    else:
        shown = [line["epoch"] * batch for line in lines]
    before = [0, *shown[:-1]]
    spent = zip(shown, before, lines, strict=True)
    return round(sum((now - then) / line["images_per_second"] for now, then, line in spent), 1)


# --- the table ------------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Line]) -> str:
    """Return means, and differences with their standard errors, as Markdown."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for name, line in results.items():
        kind, arm, *rest = name.split("/")
        if kind == "knn":
            scores.setdefault((arm, "k-NN"), {})[int(rest[0])] = 100 * line["top1"]
        elif kind == "finetune":
            scores.setdefault((arm, f"{float(rest[0]):.0%} of labels"), {})[int(rest[1])] = 100 * line["top1"]
    columns = [f"{share:.0%} of labels" for share in ALL] + ["k-NN"]
    images = sorted({line["images"] for name, line in results.items() if name.startswith(("finetune", "knn"))})
    parts = [
        f"Top-1 in percent on {' or '.join(map(str, images))} images: mean, standard deviation over seeds, number.",
        "\n".join(rows(["encoder", *columns, "minutes"], score_rows(results, scores, columns))),
    ]
    for base in ("scratch", "spark"):
        compared = [
            [ARMS[arm].title, *(difference(scores.get((arm, c), {}), scores.get((base, c), {})) for c in columns)]
            for arm in ARMS
            if arm != base
        ]
        compared = [row for row in compared if any(row[1:])]
        if compared:
            parts += [
                f"Points above {ARMS[base].title!r}, of the same seeds: mean, standard error between seeds. "
                f"Another {images[-1]} images would differ by about "
                f"{100 * math.sqrt(0.24 / images[-1]):.1f} points in each score, less in differences.",
                "\n".join(rows(["encoder", *columns], compared)),
            ]
    settings: dict[tuple[str, str], list[float]] = {}
    for name, line in results.items():
        if name.startswith("choose/"):
            settings.setdefault((name.split("/")[1], line["setting"]), []).append(100 * line["top1"])
    if settings:
        arms = [arm for arm in ARMS if any(key[0] == arm for key in settings)]
        chosen = [[s, *(summary(settings.get((arm, s), [])) for arm in arms)] for s in SETTINGS]
        parts += [
            f"Settings of fine-tuning, by cross-validation inside the training images with {MAIN_SHARE:.0%} of the "
            f"labels: mean, standard deviation over folds, their number.",
            "\n".join(rows(["settings", *(ARMS[arm].title for arm in arms)], chosen)),
        ]
    return "\n\n".join(parts) + "\n"


def score_rows(
    results: Mapping[str, Line], scores: Mapping[tuple[str, str], Mapping[int, float]], columns: list[str]
) -> Iterator[list[str]]:
    for arm, what in ARMS.items():
        cells = [summary(list(scores.get((arm, column), {}).values())) for column in columns]
        if any(cells):
            spent = [line["seconds"] / 60 for name, line in results.items() if name.startswith(f"pretrain/{arm}/")]
            yield [what.title, *cells, f"{statistics.mean(spent):.0f}" if spent else ""]


def summary(values: list[float]) -> str:
    """Return mean, standard deviation and number."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Return mean and standard error of the differences between the same seeds."""
    each = [one[seed] - other[seed] for seed in one if seed in other]
    if not each:
        return ""
    error = f" ± {statistics.stdev(each) / math.sqrt(len(each)):.1f}" if len(each) > 1 else ""
    return f"{statistics.mean(each):+.1f}{error}"


def rows(heads: list[str], cells: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    for row in [heads, ["---"] * len(heads), *cells]:
        yield f"| {' | '.join(row)} |"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--lightly", type=Path, help="folder with lightly, for simclr")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="auto")
    for name, kind, default, text in (
        ("image-size", int, 96, "pixels"),
        ("decoder-width", int, 256, "channels"),
        ("epochs", float, 100.0, "of pretraining"),
        ("views", int, 60_000, "of images in a fine-tuning"),
        ("least-epochs", float, 10.0, "of a fine-tuning, however many images there are"),
        ("choose-views", int, 30_000, "of images in a fine-tuning that chooses settings"),
        ("folds", int, 2, f"to choose settings with, of {FOLDS}; 0 takes the recipe as it is"),
        ("seeds", int, 3, "of fine-tuning, and of the choice of labels"),
        ("pretrain-seeds", int, 1, "of pretraining, to which those of fine-tuning are dealt out"),
        ("workers", int, 1, "processes that read images"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} ({default})")
    parser.add_argument("--only", default="*", help="carry out the runs whose names match, as 'finetune/spark/*'")
    parser.add_argument("--plan", action="store_true", help="name the runs that are left, and carry out none")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    study = Study(parse(arguments))
    try:
        study.run_all()
    except Interrupted as signal:
        print(f"{signal}: saved; the same command continues", file=sys.stderr)
        return 75
    finally:
        if study.results():
            write_text(study.root / "table.md", table(study.results()))
    for name in study.waiting:
        print(name)
    print(f"{len(study.results())} runs have ended, {len(study.waiting)} are left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
