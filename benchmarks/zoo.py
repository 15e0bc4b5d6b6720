"""Networks of other packages and written by hand on visible patches, one of each family, by the public API.

    make zoo                                       installs the packages into .venv-zoo and runs what is below
    python benchmarks/zoo.py --output docs/results/zoo.md [--only monai 'torchvision/r*'] [--jobs 2] [--timeout 600]
    python benchmarks/zoo.py --list
    python benchmarks/zoo.py --one monai/VNet,\\ 3-D   one network, in this process

For each network, in a process of its own: `sparkmim.Backbone` without `stages=`, its check as before a pretraining,
three training steps of `sparkmim.SparK`, the trained encoder's state dict loaded strictly into a fresh network, and
`reconstruct`. Nothing is downloaded: weights are random. An outcome is kept as soon as it is known, in a file (.jsonl)
beside the table, so the same command continues an interrupted run; outcomes of other versions of the engine or of the
package are not reused, but with `--missing`.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import sparkmim
from zoo_networks import ENTRIES, HAND, Entry

PARTLY = "passes in part"
"""Of a network that is an encoder and nothing else, more than a hundredth of what it uses itself is not reached: a
stage is lost."""

PASSES, REFUSED, FAILS, CRASHES, TIMEOUT, NOT_BUILT = "passes", "refused", "fails", "crashes", "time limit", "not built"


def short(text: object, length: int = 220) -> str:
    text = " ".join(str(text).split()).replace("|", "\\|")
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def package_version(entry: Entry) -> str:
    try:
        return "" if entry.package == HAND else version(entry.package)
    except PackageNotFoundError:
        return "not installed"


def engine() -> str:
    """Return what outcomes depend on: a digest of the engine and the models, and versions."""
    digest, root = hashlib.sha256(), Path(sparkmim.__file__).parent
    for path in sorted(path for folder in ("sparse", "models") for path in (root / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return f"engine {digest.hexdigest()[:12]}, torch {torch.__version__}, timm {version('timm')}"


# --- one network ------------------------------------------------------------------------------------------------------


def outcome(entry: Entry) -> dict[str, Any]:
    """Return what a network comes to: its maps, how much of it they reach, the check, and the first failure."""
    row: dict[str, Any] = {"key": entry.key, "dims": entry.dims, "levels": [], "verdict": NOT_BUILT, "remarks": []}
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.manual_seed(0)
            network = entry.build()
            caught.clear()  # what the package itself warns of
            row["verdict"] = CRASHES
            _checked(entry, network, row)
        except (sparkmim.UnsupportedOperation, ValueError, TypeError) as error:
            # the sentences of the project; what torch says of a shape is no RuntimeError of ours either
            row["verdict"] = NOT_BUILT if row["verdict"] == NOT_BUILT else REFUSED
            row["remarks"].append(short(f"{type(error).__name__}: {error}"))
        except Exception as error:
            row["remarks"].append(short(f"{type(error).__name__}: {error}"))
            row["traceback"] = traceback.format_exc()[-2000:]
    row["remarks"] += dict.fromkeys(f"warns: {short(w.message, 160)}" for w in caught if _of_project(w))
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _of_project(warning: warnings.WarningMessage) -> bool:
    return "sparkmim" in warning.filename or Path(warning.filename).resolve() == Path(__file__).resolve()


def _checked(entry: Entry, network: nn.Module, row: dict[str, Any]) -> None:
    start = time.perf_counter()
    backbone = sparkmim.Backbone(network, in_chans=entry.in_chans, levels=entry.levels)
    row["seconds_of_backbone"] = round(time.perf_counter() - start, 1)
    row["levels"] = [["x".join(map(str, sorted({*level.stride}))), level.channels] for level in backbone.levels]
    if backbone.aligned:
        row["remarks"].append(f"padded: {short(', '.join(backbone.aligned), 60)}")
    if entry.patch_size is not None:
        row["remarks"].append(f"patch size {entry.patch_size}" + (f", levels={entry.levels}" if entry.levels else ""))
    report = backbone.check(entry.patch_size, quick=True)  # as before a pretraining
    unreached = set(backbone.unreached_parameters())
    sizes = {name: parameter.numel() for name, parameter in backbone.module.named_parameters()}
    row["reached"] = sum(size for name, size in sizes.items() if name not in unreached)
    row["parameters"] = sum(sizes.values())
    row["deviation"] = report.deviation
    if report.precision != torch.float64:
        row["remarks"].append(f"checked in {str(report.precision).removeprefix('torch.')}")
    if not report.passed:
        failed = [f"{r.check}/{r.mode} {r.deviation:.0e}" for r in report.results if not r.passed and not r.error]
        row["verdict"] = FAILS if failed else REFUSED
        row["remarks"] += [short(error) for error in report.errors[:1]] + [", ".join(failed[:4])] * bool(failed)
        return
    _trained(entry, row)
    row["verdict"] = PASSES
    reached, parameters = row["reached"], row["parameters"]
    if not entry.whole and reached < 0.99 * parameters:
        idle = _idle_parameters(entry)
        row["remarks"] += [f"{idle / parameters:.1%} of the parameters are not used by the network itself"] * (idle > 0)
        row["verdict"] = PASSES if reached >= 0.99 * (parameters - idle) else PARTLY


def _idle_parameters(entry: Entry) -> int:
    """Return how many trainable parameters have no gradient after an ordinary pass in training mode."""
    network = entry.build().train()
    outputs = network(torch.randn(2, entry.in_chans, *[{1: 4096, 2: 256, 3: 64}[entry.dims]] * entry.dims))
    values = [v for v in tree_leaves(outputs) if isinstance(v, torch.Tensor) and v.requires_grad]
    torch.autograd.backward(values, [torch.ones_like(value) for value in values])
    return sum(p.numel() for p in network.parameters() if p.requires_grad and p.grad is None)


def _trained(entry: Entry, row: dict[str, Any]) -> None:
    """Take three training steps, load the encoder into a fresh network, and reconstruct."""
    torch.manual_seed(0)
    backbone = sparkmim.Backbone(entry.build(), in_chans=entry.in_chans, levels=entry.levels)
    width = max(64, *backbone.strides[-1])  # halved with each doubling of the resolution
    model = sparkmim.SparK(backbone, patch_size=entry.patch_size, decoder_width=width).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    patches = 2 if entry.dims == 3 else 4
    images = torch.randn(4, entry.in_chans, *[patches * n for n in backbone.size_divisor(model.patch_size)])
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    for _ in range(3):
        loss = model(images).loss
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [n for n, p in model.encoder.named_parameters() if torch.equal(p, before[n]) and p.requires_grad]
    still = [name for name in still if name not in model.unreached and before[name].abs().sum() > 0]
    if still:
        row["remarks"].append(f"reached but not trained: {short(', '.join(still), 80)}")
    nn.Module.load_state_dict(entry.build(), model.encoder.state_dict(), strict=True)
    model.eval()
    with torch.no_grad():
        picture = model.reconstruct(images)
    if picture.shape != images.shape or not picture.isfinite().all():
        raise ArithmeticError(f"reconstruct returned {tuple(picture.shape)}, or values that are not finite")


# --- all of them ------------------------------------------------------------------------------------------------------


class Journal:
    """Outcomes so far, a line of JSON each; those of other versions are passed over."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[str, dict[str, Any]]()
        self.engine = engine()
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            self.rows[row["key"]] = row

    def known(self, entry: Entry) -> bool:
        row = self.rows.get(entry.key, {})
        return bool(row.get("engine") == self.engine and row.get("version") == package_version(entry))

    def keep(self, entry: Entry, row: dict[str, Any]) -> None:
        row |= {"engine": self.engine, "version": package_version(entry), "date": str(datetime.date.today())}
        self.rows[entry.key] = row
        entries = [e.key for e in ENTRIES if e.key in self.rows]
        self.path.write_text("".join(json.dumps(self.rows[key]) + "\n" for key in entries))


def apart(entry: Entry, timeout: float) -> dict[str, Any]:
    """Return the outcome of a network, found in another process."""
    command = [sys.executable, __file__, "--one", entry.key]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true"}
    settings = {name: os.environ.get(name, value) for name, value in settings.items()}
    row: dict[str, Any] = {"key": entry.key, "dims": entry.dims, "levels": [], "remarks": [], "seconds": timeout}
    try:
        done = subprocess.run(command, timeout=timeout, capture_output=True, text=True, env={**os.environ, **settings})
    except subprocess.TimeoutExpired:
        return row | {"verdict": TIMEOUT, "remarks": [f"took longer than {timeout:g} s"]}
    found = re.search(r"^(\{.*\})$", done.stdout, re.MULTILINE)
    if found is None:
        return row | {
            "verdict": CRASHES,
            "remarks": [short(f"ended with code {done.returncode}: {done.stderr[-300:]}")],
        }
    outcome_of_process: dict[str, Any] = json.loads(found[1])
    return outcome_of_process


def document(rows: dict[str, dict[str, Any]], command: str) -> str:
    """Return the Markdown page of all outcomes."""
    listed = [(entry, rows[entry.key]) for entry in ENTRIES if entry.key in rows]
    counts = Counter(row["verdict"] for _, row in listed)
    engines = Counter(row["engine"] for _, row in listed)
    said = ", ".join(f"{counts[v]} {v}" for v in (PARTLY, REFUSED, FAILS, CRASHES, TIMEOUT, NOT_BUILT) if counts[v])
    packages = sorted({f"{e.package} {row['version']}" for e, row in listed if row["version"]}, key=str.lower)
    lines = [
        "# Networks of other packages on visible patches",
        "",
        f"{datetime.date.today()}: `{command}`, which `make zoo` runs",
        "",
        "One network of each family, with random weights and without `stages=` or registration: `sparkmim.Backbone`,",
        "its check, three training steps, a strict load of the trained encoder into a fresh network, and",
        "`reconstruct`. The deviation is the largest, relative, of feature maps, gradients and running statistics in",
        "the four properties, in float64 (1e-08 passes, or ten times what rounding of the images alone changes), or",
        "in float32 (2e-03, of gradients 5e-02) where a check of volumes would take minutes: a remark says so. Of a",
        "whole segmentation network, detector or classifier the maps of its encoder are wanted; what lies behind them",
        "is not reached. Any other passes in part if more than 1% of the parameters that it uses itself are not",
        "reached.",
        "Padding that is added, and a patch size other than the total stride, are remarks.",
        "",
        f"Packages: {', '.join(packages)}. Checked: {'; '.join(f'{n} by {name}' for name, n in engines.items())}.",
        "",
        f"{counts[PASSES]} of {len(listed)} networks pass ({counts[PASSES] / max(1, len(listed)):.0%})"
        + (f"; {said}." if said else ".")
        + (f" {left} of the list are yet to be checked." if (left := len(ENTRIES) - len(listed)) else ""),
        "",
        "| network | package | dims | maps (stride:channels) | verdict | deviation | million parameters | reached "
        "| Backbone, s | remark |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry, row in listed:
        levels = " ".join(f"{stride}:{channels}" for stride, channels in row["levels"])
        total = row.get("parameters", 0)
        share = f"{total / 1e6:.2f} | {row['reached'] / total:.1%}" if total else " | "
        deviation = row.get("deviation", math.inf)
        lines.append(
            f"| {entry.name} | {entry.package} | {row['dims']} | {levels} | {row['verdict']} "
            f"| {f'{deviation:.0e}' if math.isfinite(deviation) else ''} | {share} "
            f"| {row.get('seconds_of_backbone', '')} | {'; '.join(row['remarks'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--only", nargs="+", default=[], help="packages, PACKAGE/NAME, or patterns with * and ?")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that one network may take")
    parser.add_argument("--again", action="store_true", help="check what the file of outcomes holds once more")
    parser.add_argument("--missing", action="store_true", help="keep outcomes of other versions, and check the others")
    parser.add_argument("--list", action="store_true", help="list the networks, and exit")
    parser.add_argument("--one", help="a network to check in this process; prints a line of JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(outcome(next(entry for entry in ENTRIES if entry.key == args.one))))
        return 0
    chosen = [e for e in ENTRIES if not args.only or any(fnmatch(e.key, p) or e.package == p for p in args.only)]
    if args.list:
        print("\n".join(f"{entry.key} ({entry.dims}-D)" for entry in chosen))
        return 0
    if args.output is None or args.output.suffix != ".md":
        parser.error(f"--output must name a Markdown file (.md), got {args.output}")
    if not chosen:
        parser.error(f"no network is called {' '.join(args.only)}; --list shows the names")
    journal = Journal(args.output.with_suffix(".jsonl"))
    known = {entry.key for entry in chosen if journal.known(entry) or (args.missing and entry.key in journal.rows)}
    left = [entry for entry in chosen if args.again or entry.key not in known]
    print(f"{len(chosen)} networks, {len(chosen) - len(left)} known from {journal.path}", flush=True)
    command = shlex.join(["python", *sys.argv])
    with ThreadPoolExecutor(args.jobs) as pool:
        for number, (entry, row) in enumerate(
            zip(left, pool.map(lambda e: apart(e, args.timeout), left), strict=True), 1
        ):
            journal.keep(entry, row)
            remark = f": {row['remarks'][0]}" if row["remarks"] and row["verdict"] != PASSES else ""
            print(f"{number}/{len(left)} {row['verdict']:10} {entry.key}, {row['seconds']} s{remark}", flush=True)
            args.output.write_text(document(journal.rows, command))
    args.output.write_text(document(journal.rows, command))
    verdicts = Counter(journal.rows[entry.key]["verdict"] for entry in chosen)
    print(f"\n{verdicts[PASSES]} of {len(chosen)} networks pass: {dict(verdicts)}\ntable: {args.output}")
    return 0 if set(verdicts) <= {PASSES, REFUSED} else 1


if __name__ == "__main__":
    sys.exit(main())
