"""Networks generated at random: each equals the ordinary network and the masked-dense reference, or is refused.

    python benchmarks/random_networks.py --count 2000 [--first 0] [--jobs 2] [--output FILE.md]
    python benchmarks/random_networks.py --alone             each block of the generator by itself
    python benchmarks/random_networks.py --show 139          the code of one network, and what it comes to

Values, gradients and running statistics are compared in float64, in evaluation and training mode, at an image size and
a batch size that the check did not use: with nothing hidden against the ordinary network, on a random mask against the
reference, with NaN at hidden pixels, and against the network that adds the biases of its convolutions afterwards. The
check has to pass as well. The exit code is 1 if a network is wrong; the table names the smallest network of each kind.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

import network_generator as generator
from network_generator import EQUAL, REFUSED, SKIPPED, Network, Verdict


def outcome(task: tuple[Network, bool]) -> dict[str, Any]:
    """Return what a network comes to, with a smaller one that is wrong in the same way."""
    network, shrinks = task
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    verdict = generator.verdict_of(network)
    small = generator.shrink(network, verdict) if shrinks and not verdict.right else network
    return {
        "seed": network.seed,
        "network": str(network),
        "outcome": verdict.outcome,
        "detail": verdict.detail,
        "smallest": str(small),
        "source": "" if verdict.right else generator.source(small),
        "seconds": round(time.perf_counter() - start, 3),
    }


def reason(message: str) -> str:
    """Return the function and the reason of a refusal, without the names and numbers of one network."""
    message = re.sub(r"^in module '[^']*': ", "", message).split(" Either register")[0]
    message = re.sub(r" \(map\(.*?\)\)(?=[ .)]|$)", "", message).replace(
        " cannot be carried out on visible patches", ""
    )
    message = re.sub(r"\(\d[\d, ]*\)|torch\.Size\(\[[\d, ]*\]\)", "(...)", message)
    return re.sub(r"\b\d+\b", "N", message)[:160]


def kind(row: dict[str, Any]) -> str:
    """Return what is wrong with a network, and the blocks of the smallest that is wrong in the same way."""
    blocks = sorted(set(re.findall(r"[a-z_]+\.[a-z0-9_]+", row["smallest"])))
    return f"{row['outcome'].split(':')[0]} | {', '.join(blocks)}"


def report(rows: list[dict[str, Any]], command: str, seconds: float) -> str:
    """Return a Markdown report of all outcomes."""
    counts = Counter(row["outcome"].split(":")[0] for row in rows)
    wrong = [row for row in rows if not Verdict(row["outcome"]).right]
    lines = [
        f"# Networks at random, {datetime.date.today()}",
        "",
        f"`{command}`: torch {torch.__version__}, Python {platform.python_version()}, {seconds:.0f} s.",
        "",
        f"{len(rows)} networks: {counts[EQUAL]} equal, {counts[REFUSED]} refused, {len(wrong)} wrong"
        f"{f', {counts[SKIPPED]} do not run by themselves' if counts[SKIPPED] else ''}.",
        "",
    ]
    if wrong:
        lines += ["| wrong | networks | for example |", "|---|---|---|"]
        for name, count in Counter(row["outcome"].split(":")[0] for row in wrong).most_common():
            lines.append(
                f"| {name} | {count} | {next(r['smallest'] for r in wrong if r['outcome'].startswith(name))} |"
            )
        kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in wrong:
            kinds[kind(row)].append(row)
        lines += ["", "| what is wrong | blocks of the smallest network | networks | seeds |", "|---|---|---|---|"]
        for name, alike in sorted(kinds.items(), key=lambda item: -len(item[1])):
            lines.append(f"| {name} | {len(alike)} | {', '.join(str(row['seed']) for row in alike[:8])} |")
        lines += ["", "One network of each:", ""]
        for name, alike in sorted(kinds.items(), key=lambda item: -len(item[1])):
            first = min(alike, key=lambda row: len(row["source"]))
            lines += [
                f"{name}: {first['smallest']}; {first['detail']}",
                "",
                "```python",
                first["source"].rstrip(),
                "```",
                "",
            ]
    reasons = Counter(reason(row["detail"]) for row in rows if row["outcome"] == REFUSED)
    if reasons:
        lines += [
            "",
            "| refused | networks |",
            "|---|---|",
            *(f"| {name} | {n} |" for name, n in reasons.most_common()),
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="networks")
    parser.add_argument("--first", type=int, default=1000, help="first seed; the tests use those below 1000")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--alone", action="store_true", help="each block by itself instead")
    parser.add_argument("--show", type=int, help="a seed, whose network is printed and tried")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for smaller networks")
    parser.add_argument("--output", type=Path, help="Markdown file; all outcomes go beside it (.jsonl)")
    args = parser.parse_args()
    if args.show is not None:
        network = generator.generate(args.show)
        verdict = generator.verdict_of(network)
        print(f"{network}\n\n{generator.source(network)}\n{verdict.outcome} {verdict.detail}")
        return int(not verdict.right)
    seeds = range(args.first, args.first + args.count)
    networks = list(generator.alone()) if args.alone else [generator.generate(seed) for seed in seeds]
    start = time.monotonic()
    rows = []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        tasks = ((network, not args.no_shrink) for network in networks)
        for row in pool.imap(outcome, tasks, chunksize=4):
            rows.append(row)
            if not Verdict(row["outcome"]).right:
                print(f"seed {row['seed']}: {row['outcome']} {row['detail'][:100]}; {row['smallest']}", flush=True)
            if len(rows) % 200 == 0:
                print(f"{len(rows)} of {len(networks)}, {time.monotonic() - start:.0f} s", flush=True)
    text = report(rows, " ".join(["python", *sys.argv]), time.monotonic() - start)
    print("\n" + text.split("\nOne network of each")[0])
    if args.output:
        args.output.write_text(text)
        args.output.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return int(any(not Verdict(row["outcome"]).right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
