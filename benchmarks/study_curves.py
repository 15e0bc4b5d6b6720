"""The held-out loss and the k-NN accuracy of a study's pretrainings by epoch, as a picture.

pip install matplotlib
python benchmarks/study_curves.py STUDY/results.jsonl PICTURE.png [--arms spark spark-long ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from study import ARMS

SHOWN = {"val_loss": "held-out loss", "knn_top1": "k-NN top-1 on val, %"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    args = parser.parse_args(arguments)
    lines = [json.loads(line) for line in args.results.read_text().splitlines()]
    made = {line["run"].split("/")[1]: line["curves"] for line in lines if line.get("curves")}
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(10, 3.6), layout="constrained")
    for axis, (key, label) in zip(axes, SHOWN.items(), strict=True):
        for arm in args.arms:
            points = {round(epoch, 1): value for epoch, value in made.get(arm, {}).get(key, [])}  # of two ends the last
            if points:
                percent = 100 if key == "knn_top1" else 1
                axis.plot(list(points), [percent * value for value in points.values()], label=ARMS[arm].title)
        axis.set(xlabel="epoch", ylabel=label)
    axes[0].set_ylim(top=1.0)  # what the mean of each patch would have
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize="small")
    figure.savefig(args.picture, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
