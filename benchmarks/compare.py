"""Times contestants against each other in one run, in turn (A B C A B C ...), and prints a Markdown table.

    python benchmarks/compare.py --model resnet50 official dense packed packed:--precision=bf16 \
        --official ~/SparK --official-deps ~/old-timm

The first contestant is the baseline. A contestant is a name (`official`, `dense`, `packed`, `masked-dense`) and, after
a colon, options of its own (see `contestant.py --help`), separated by commas. `--official` is a checkout of the
authors' code at commit a63e386, `--official-deps` a folder with timm 0.5.4, pytz, tensorboardX, tensorboard and
typed-argument-parser (`pip install --target`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from contestant import settings


class Contestant:
    """A contestant's process."""

    def __init__(self, spec: str, shared: list[str]) -> None:
        name, _, options = spec.partition(":")
        self.label = spec.replace("--", "").replace(":", " ").replace(",", " ")
        command = [sys.executable, str(Path(__file__).with_name("contestant.py")), name, *shared]
        self.process = subprocess.Popen(
            [*command, *filter(None, options.split(","))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.times: list[float] = []
        self.bytes, self.peak = self.ask("bytes"), self.ask("peak")

    def ask(self, request: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(request, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.label} died; run benchmarks/contestant.py by hand to see why")
        return float(json.loads(answer))


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = settings()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("contestants", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    names = set(vars(settings().parse_args([])))
    shared = [f"--{key.replace('_', '-')}={value}" for key, value in vars(args).items() if key in names and value]
    shared = [s.removesuffix("=True") for s in shared]  # of options that take no value
    contestants = [Contestant(spec, shared) for spec in args.contestants]
    for _ in range(args.rounds):
        for contestant in contestants:
            contestant.times.append(contestant.ask("time"))
    base = contestants[0]
    base_time = statistics.median(base.times)
    shown = " ".join(s for s in shared if "official" not in s)
    where = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    print(
        f"`{shown}`; {datetime.date.today()}, {where}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}, {args.rounds} rounds in turn\n"
    )
    print(
        "| contestant | seconds, median (min to max) | times faster than the first | bytes saved for backward | share "
        "| peak memory of a step | share |"
    )
    print("|---|---|---|---|---|---|---|")
    for c in contestants:
        median = statistics.median(c.times)
        print(
            f"| {c.label} | {median:.3f} ({min(c.times):.3f} to {max(c.times):.3f}) | {base_time / median:.2f} "
            f"| {c.bytes / 2**20:.0f} MiB | {c.bytes / base.bytes:.2f} "
            f"| {c.peak / 2**20:.0f} MiB | {c.peak / base.peak:.2f} |"
        )


if __name__ == "__main__":
    main()
