"""One network of each family: forward and backward of the encoder, packed against masked-dense and ordinary dense.

    python benchmarks/families.py --output benchmarks/results/DATE-families.md [--only resnet50 vgg16_bn] [--rounds 3]

A row is kept as soon as it is measured, in a file beside the output, so an interrupted run can be continued.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import timm
import torch

from compare import Contestant, cpu_name
from contestant import settings

CONTESTANTS = ("dense", "masked-dense", "packed")

MEMBERS = (
    "gernet_m",  # byobnet
    "resnet50",
    "resnet50d",
    "resnext50_32x4d",
    "ecaresnet50t",
    "gcresnet50t",
    "resnetblur50",
    "seresnet50",  # senet, with squeeze-excite
    "legacy_senet154",
    "res2net50_26w_4s",
    "resnest26d",
    "skresnet34",
    "resnetv2_50",
    "nf_resnet50",
    "nfnet_f0",
    "resnetv2_50d_evos",
    "regnety_016",
    "convnext_tiny",
    "convnextv2_nano",
    "inception_next_tiny",
    "mambaout_tiny",
    "convmixer_768_32",
    "starnet_s3",
    "rdnet_tiny",
    "fasternet_t1",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "efficientnetv2_rw_t",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_medium",
    "hardcorenas_c",
    "mnasnet_100",
    "rexnet_100",
    "ghostnet_100",
    "repghostnet_100",
    "repvit_m1",
    "repvgg_a2",
    "mobileone_s1",
    "lcnetv2_base",
    "densenet121",
    "vgg16_bn",
    "dla34",
    "dpn68",
    "hrnet_w18",
    "hgnetv2_b2",
    "ese_vovnet39b",
    "selecsls42b",
    "cspresnet50",
    "cspdarknet53",
    "cspnext_tiny",
    "tresnet_m",
    "xception41",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "nasnetalarge",
    "pnasnet5large",
)

OTHERWISE = {"convmixer_768_32": ["--patch=28"], "selecsls42b": ["--patch=64", "--size=256"]}
"""Image sizes of networks whose total stride (7 and 64) does not fit a patch of 32 pixels."""


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a row: seconds and bytes kept of each contestant, or why it has none."""
    shared = [f"--model={model}", f"--batch={args.batch}", f"--size={args.size}", f"--ratio={args.ratio}"]
    shared += OTHERWISE.get(model, [])
    try:
        contestants = [Contestant(name, shared) for name in CONTESTANTS]
    except SystemExit as error:
        return {"model": model, "failed": str(error)}
    for _ in range(args.rounds):
        for contestant in contestants:
            contestant.times.append(contestant.ask("time"))
    row: dict[str, Any] = {"model": model}
    for name, contestant in zip(CONTESTANTS, contestants, strict=True):
        row[name] = {"seconds": contestant.times, "bytes": contestant.bytes}
        contestant.process.kill()
        contestant.process.wait()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | family | dense, s | masked-dense, s | packed, s | dense / packed | masked-dense / packed "
        "| bytes kept, packed / dense |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        family = timm.models._registry._model_to_module[row["model"]]
        if "failed" in row:
            lines.append(f"| {row['model']} | {family} | not measured | | | | | |")
            continue
        dense, oracle, packed = (statistics.median(row[name]["seconds"]) for name in CONTESTANTS)
        share = row["packed"]["bytes"] / row["dense"]["bytes"]
        lines.append(
            f"| {row['model']} | {family} | {dense:.3f} | {oracle:.3f} | {packed:.3f} | {dense / packed:.2f} "
            f"| {oracle / packed:.2f} | {share:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = settings()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    kept = args.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {row["model"] for row in rows}
    for model in args.only:
        if model not in known:
            rows.append(measure(model, args))
            with kept.open("a") as file:
                print(json.dumps(rows[-1]), file=file)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    what = "`python benchmarks/families.py`: forward and backward of the encoder"
    told = (
        f"batch {args.batch}, {args.size} px, {args.ratio:.0%} hidden, float32, {args.rounds} rounds in turn, medians"
    )
    where = f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}, timm {timm.__version__}"
    args.output.write_text(
        f"# One network of each family, {datetime.date.today()}\n\n"
        f"{what}, {told}; {where}, Python {platform.python_version()}.\n\n{table(rows)}\n"
    )


if __name__ == "__main__":
    main()
