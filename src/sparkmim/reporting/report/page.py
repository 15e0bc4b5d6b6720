"""The report's page: sections in the frame of `template.html`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ...utils.io import read_json, write_text
from ...utils.text import duration
from .charts import charts
from .curves import curve, read_metrics, smooth, smooth_reach
from .pictures import pictures
from .scores import scores
from .tables import table, unreadable
from .text import as_html, number

TASKS = {None: "Masked-image pretraining", "finetune": "Fine-tuning", "refine": "Contrastive refinement"}
"""Title of a run by the `task` of its configuration."""


def write_report(run: Path) -> Path:
    """Write `report.html` from the files that a run's folder has so far.

    The report contains no absolute paths, loads nothing from elsewhere, and replaces an older one atomically.

    Args:
        run: the folder, with any of `config.json`, `plan.json`, `environment.json`, `metrics.jsonl`,
            `reconstructions/step-*.png`, `results.json`, `mistakes/`, `broken_images.txt` and
            `broken_held_out_images.txt`.

    Returns:
        The path of the report.
    """
    config, plan, environment, results = (
        _read_json(run / f"{name}.json") for name in ("config", "plan", "environment", "results")
    )
    lines = read_metrics(run / "metrics.jsonl")
    name = run.resolve().name
    described = config.get("model")
    model = (described.get("model") if isinstance(described, dict) else None) or name
    sections = [
        _headline(str(model), name, lines, config, plan),
        _section("Reconstructions", pictures(run / "reconstructions")),
        _section("Scores", _scores(results, run / "mistakes")),
        _section("Curves", charts(lines)),
        _section("Plan", table(plan.items())),
        _section("Configuration", _groups(config)),
        _section("Environment", table(environment.items())),
        _section("Unreadable images", _broken(run / "broken_images.txt")),
        _section("Unreadable held-out images", _broken(run / "broken_held_out_images.txt")),
    ]
    here = Path(__file__)
    page = Template(here.with_name("template.html").read_text(encoding="utf-8")).substitute(
        title=f"{as_html(model)}, {as_html(name)}" if model != name else as_html(name),
        style=here.with_name("style.css").read_text(encoding="utf-8"),
        script=here.with_name("script.js").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
    )
    path = run / "report.html"
    write_text(path, page)
    return path


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object, empty if there is no such file or it holds something else."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _scores(results: Mapping[str, Any], mistakes: Path) -> str:
    """Return the scores, or a note if they are not as this version writes them."""
    try:
        return scores(results, mistakes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return f"<p>results.json cannot be shown: {as_html(type(error).__name__)}.</p>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _groups(config: Mapping[str, Any]) -> str:
    loose = {name: value for name, value in config.items() if not isinstance(value, dict)}
    groups = ({"general": loose} if loose else {}) | {k: v for k, v in config.items() if isinstance(v, dict)}
    cards = "".join(f"<div><h3>{as_html(name)}</h3>{table(values.items())}</div>" for name, values in groups.items())
    return f"<div class=groups>{cards}</div>" if cards else ""


def planned_steps(plan: Mapping[str, object]) -> int | None:
    """Return the number before or under "steps" in a plan."""
    if found := re.match(r"[\d,]*\d", str(plan.get("steps", ""))):
        return int(found[0].replace(",", ""))
    found = re.search(r"(\d[\d,]*) steps?\b", str(plan.get("epochs", "")))
    return int(found[1].replace(",", "")) if found else None


def _headline(
    model: str, name: str, lines: Sequence[Mapping[str, float]], config: Mapping[str, Any], plan: Mapping[str, object]
) -> str:
    """Return the header: model, run, progress and the most important numbers."""
    total = planned_steps(plan)
    done = int(max((line["step"] for line in lines), default=0))
    share = min(1.0, done / total) if total else None
    epoch = max((line.get("epoch", 0.0) for line in lines), default=0.0)
    note = "" if share is None else f"of {total:,}, {share:.0%}; "
    facts = [("Step", f"{done:,}", f"{note}epoch {number(epoch, 3)}")]
    loss, held_out, speed = (curve(lines, key) for key in ("loss", "val_loss", "images_per_second"))
    if len(loss):
        reach = min(smooth_reach(len(loss)), len(loss) - 1)
        note = f"mean of the last {reach + 1} logged; first {number(loss.value[0], 3)}"
        facts.append(("Loss", number(smooth(loss.value)[-1]), note))
    if len(held_out):
        best = held_out.value.argmin()
        note = f"lowest {number(held_out.value[best])} at step {held_out.step[best]:,.0f}"
        facts.append(("Held-out loss", number(held_out.value[-1]), note))
    for key, label, of in (
        ("val_top1", "Top-1", "validation"),
        ("val_mean_per_class", "Mean per class", "validation"),
        ("val_miou", "Mean IoU", "validation"),
        ("val_dice", "Mean Dice", "validation"),
        ("val_map", "mAP", "validation"),
        ("val_map50", "mAP50", "validation"),
        ("val_mask_map", "Mask mAP", "validation"),
        ("knn_top1", "k-NN", "top-1"),
    ):
        accuracy = curve(lines, key)
        if len(accuracy):
            best = accuracy.value.argmax()
            note = f"{of}; highest {accuracy.value[best]:.1%} at step {accuracy.step[best]:,.0f}"
            facts.append((label, f"{accuracy.value[-1]:.1%}", note))
    if len(speed):
        memory = max((line.get("peak_memory_bytes", 0) for line in lines), default=0)
        note = f"median; {number(memory / 2**30, 3)} GiB at peak" if memory else "median"
        facts.append(("Images/s", number(float(np.median(speed.value)), 3), note))
        run = config.get("run", {})
        if batch := run.get("batch_size"):
            # Steps more than an interval before the first line belong to the run that this one was resumed from.
            before = max(0.0, speed.step[0] - run.get("log_every", speed.step[0]))
            spent = float((np.diff(speed.step, prepend=before) * batch / speed.value).sum())
            left = (total - done) * batch / float(np.median(speed.value)) if total else 0.0
            facts.append(
                ("Training time", duration(spent), f"{duration(left)} left" if left > 0 else "without evaluation")
            )
    status = "" if share is None else "finished" if share == 1 else "unfinished"
    return (
        f"<header><h1>{as_html(model)}{f' <span class={status}>{status}</span>' if status else ''}</h1>"
        f"<p>{TASKS[config.get('task')]} with sparkmim{f', run <b>{as_html(name)}</b>' if name != model else ''}</p>"
        + ("" if share is None else f'<div class=progress><i style="width:{share:.2%}"></i></div>')
        + "<dl>"
        + "".join(f"<div><dt>{a}</dt><dd>{b}</dd><dd class=note>{c}</dd></div>" for a, b, c in facts)
        + "</dl></header>"
    )


def _broken(path: Path) -> str:
    """Return the table of images that could not be read."""
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    broken = (row.partition("\t") for row in rows)
    return unreadable([(name, error) for name, _, error in broken])
