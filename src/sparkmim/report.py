"""`report.html`: a run to look at, one file that needs nothing but itself.

Curves are drawn here, as SVG of 1000 by 1000 units stretched to the page; `report.js` only adds the read-out, and reads
the places of the points off the curves. `report.css` gives everything its size and colour.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .atomic import write_text
from .units import duration

Numbers = NDArray[np.float64]

MOST_POINTS = 800
"""Of a curve."""

MOST_PICTURES = 6
MOST_BROKEN = 20

PICTURE_BACKGROUND = (27, 29, 33)
"""What the transparent parts of a reconstruction become; `--sheet` in report.css is the same."""


def write_report(run: Path) -> Path:
    """Write `report.html` from whatever files a run's folder has so far.

    It shows no absolute paths, asks for nothing from elsewhere, and replaces an older report at once.

    Args:
        run: the folder, with any of `config.json`, `plan.json`, `environment.json`, `metrics.jsonl`,
            `reconstructions/step-*.png` and `broken_images.txt`.

    Returns:
        The path of the report.
    """
    config, plan, environment = (_read_json(run / f"{n}.json") for n in ("config", "plan", "environment"))
    lines = read_metrics(run / "metrics.jsonl")
    name = run.resolve().name
    model = config.get("model", {}).get("model") or name
    sections = [
        _headline(str(model), name, lines, config, plan),
        _pictures(sorted((run / "reconstructions").glob("step-*.png"), key=_step_of)),
        _curves(lines),
        _section("Plan", _table(plan.items())),
        _section("Configuration", _groups(config)),
        _section("Environment", _table(environment.items())),
        _broken(run / "broken_images.txt"),
    ]
    here = Path(__file__)
    page = Template(here.with_name("report.html").read_text(encoding="utf-8")).substitute(
        title=f"{_text(model)}, {_text(name)}" if model != name else _text(name),
        style=here.with_name("report.css").read_text(encoding="utf-8"),
        script=here.with_name("report.js").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
    )
    path = run / "report.html"
    write_text(path, page)
    return path


# Reading


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without those that a crash cut off; none if there is no such file."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


@dataclass(frozen=True)
class Curve:
    """One number over the run: a row per line of metrics that has it."""

    step: Numbers
    epoch: Numbers
    value: Numbers

    def __len__(self) -> int:
        return len(self.value)

    def at(self, rows: NDArray[np.intp]) -> Curve:
        """Some rows."""
        return Curve(self.step[rows], self.epoch[rows], self.value[rows])


def curve(lines: Sequence[Mapping[str, float]], key: str) -> Curve:
    """The finite values of a key, by step; of a step written twice, the later line."""
    rows = {v["step"]: (v["step"], v.get("epoch", 0.0), v[key]) for v in lines if math.isfinite(v.get(key, math.nan))}
    table = np.array([rows[step] for step in sorted(rows)], dtype=np.float64).reshape(-1, 3)
    return Curve(*table.T)


def thin(values: Numbers, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Indices of at most `most` values that keep the shape: the first, the last, each stretch's lowest and highest."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2).astype(int)
    kept = {0, len(values) - 1}
    for low, high in pairwise(edges):
        kept |= {low + int(values[low:high].argmin()), low + int(values[low:high].argmax())}
    return np.array(sorted(kept))


def smooth_reach(count: int) -> int:
    """How many values to each side :func:`smooth` averages."""
    return max(2, count // 40)


def smooth(values: Numbers) -> Numbers:
    """A moving average; at the end of what there is to the left, at the start of as much as there is to both sides."""
    index = np.arange(len(values))
    reach = np.minimum(smooth_reach(len(values)), index)
    sums = np.concatenate([[0.0], values.cumsum()])
    low, high = index - reach, np.minimum(index + reach + 1, len(values))
    means: Numbers = (sums[high] - sums[low]) / (high - low)
    return means


# Text


_FOLDERS = re.compile(
    r"""(?<![\w./\\~-])(?:file:///?|[A-Za-z]:[\\/]|~?/(?!/))  # the root of an absolute path, no part of another word
    (?:[^\s/\\'",;]+(?:[ ][^\s/\\'",;-]+)*[\\/])*  # its folders, with spaces within but not at their ends
    (?=[^\s/\\'",;])  # what is left: its last component
    """,
    re.VERBOSE,
)


def without_folders(text: str) -> str:
    """A text with the absolute paths in it cut to their last component."""
    return _FOLDERS.sub("", text)


def _text(value: object) -> str:
    """A value as HTML."""
    if value is None:
        return '<span class="none">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) if value else '<span class="none">none</span>'
    return html.escape(without_folders(str(value)))


def number(value: float, digits: int = 4) -> str:
    """Readable: `0.6123`, `12,345`, `4e-5`. `report.js` writes numbers alike."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    return scientific(value, digits)


def scientific(value: float, digits: int = 4) -> str:
    """Short: `4e-5`, `1.25e-3`, `0`."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


# Sections


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(f"<tr><th scope=row>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>" if cells else ""


def _groups(config: Mapping[str, Any]) -> str:
    loose = {name: value for name, value in config.items() if not isinstance(value, dict)}
    groups = ({"general": loose} if loose else {}) | {k: v for k, v in config.items() if isinstance(v, dict)}
    cards = "".join(f"<div><h3>{_text(name)}</h3>{_table(values.items())}</div>" for name, values in groups.items())
    return f"<div class=groups>{cards}</div>" if cards else ""


def planned_steps(plan: Mapping[str, object]) -> int | None:
    """The number before or under "steps" in a plan."""
    if found := re.match(r"[\d,]*\d", str(plan.get("steps", ""))):
        return int(found[0].replace(",", ""))
    found = re.search(r"(\d[\d,]*) steps?\b", str(plan.get("epochs", "")))
    return int(found[1].replace(",", "")) if found else None


def _headline(
    model: str, name: str, lines: Sequence[Mapping[str, float]], config: Mapping[str, Any], plan: Mapping[str, object]
) -> str:
    """Model, run, how far it is, and the numbers one looks for first."""
    total = planned_steps(plan)
    done = int(max((line["step"] for line in lines), default=0))
    share = min(1.0, done / total) if total else None
    epoch = max((line.get("epoch", 0.0) for line in lines), default=0.0)
    note = "" if share is None else f"of {total:,}, {share:.0%}; "
    facts = [("Step", f"{done:,}", f"{note}epoch {number(epoch, 3)}")]
    loss, held_out, speed = (curve(lines, key) for key in ("loss", "val_loss", "images_per_second"))
    if len(loss):
        reach = min(smooth_reach(len(loss)), len(loss) - 1)
        note = f"mean of the last {reach + 1} lines; first {number(loss.value[0], 3)}"
        facts.append(("Loss", number(smooth(loss.value)[-1]), note))
    if len(held_out):
        best = held_out.value.argmin()
        note = f"lowest {number(held_out.value[best])} at step {held_out.step[best]:,.0f}"
        facts.append(("Held-out loss", number(held_out.value[-1]), note))
    if len(speed):
        memory = max((line.get("peak_memory_bytes", 0) for line in lines), default=0)
        note = f"median; {number(memory / 2**30, 3)} GiB at peak" if memory else "median"
        facts.append(("Images/s", number(float(np.median(speed.value)), 3), note))
        if batch := config.get("run", {}).get("batch_size"):
            spent = float((np.diff(speed.step, prepend=0.0) * batch / speed.value).sum())
            left = (total - done) * batch / float(np.median(speed.value)) if total else 0.0
            facts.append(
                ("Training time", duration(spent), f"{duration(left)} left" if left > 0 else "without evaluation")
            )
    status = "" if share is None else "finished" if share == 1 else "unfinished"
    return (
        f"<header><h1>{_text(model)}{f' <span class={status}>{status}</span>' if status else ''}</h1>"
        f"<p>Masked-image pretraining with sparkmim{f', run <b>{_text(name)}</b>' if name != model else ''}</p>"
        + ("" if share is None else f'<div class=progress><i style="width:{share:.2%}"></i></div>')
        + "<dl>"
        + "".join(f"<div><dt>{a}</dt><dd>{b}</dd><dd class=note>{c}</dd></div>" for a, b, c in facts)
        + "</dl></header>"
    )


def _step_of(path: Path) -> int:
    found = re.search(r"\d+", path.stem)
    return int(found[0]) if found else 0


def _pictures(paths: Sequence[Path]) -> str:
    """The last reconstructions in full, then the reconstructions alone over the run, one strip below the other."""
    if not paths:
        return ""
    alt = "images, their visible patches, and their reconstructions"
    whole = (
        f"<figure><figcaption>Step {_step_of(paths[-1]):,}</figcaption>"
        f'<img alt="{alt}" src="{_embed(_flat(paths[-1]))}"></figure>'
    )
    if len(paths) == 1:
        return _section("Reconstructions", f"<div class=pictures>{whole}</div>")
    chosen = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(MOST_PICTURES, len(paths)))})
    strips = "".join(
        f'<dt>step {_step_of(paths[i]):,}</dt><dd><img alt="reconstructions at step {_step_of(paths[i]):,}" '
        f'src="{_embed(_flat(paths[i], last_row=True))}"></dd>'
        for i in chosen
    )
    over = f"<figure><figcaption>Over the run</figcaption><dl>{strips}</dl></figure>"
    return _section("Reconstructions", f"<div class=pictures>{whole}{over}</div>")


def _flat(path: Path, *, last_row: bool = False) -> Image.Image:
    """A picture on the page's own dark sheet; of a grid on request the last row of tiles, which a gutter sets off."""
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    if last_row:
        gaps = np.flatnonzero(np.asarray(picture.getchannel("A"))[:, 0] < 255)
        top = int(gaps[-1]) + 1 if len(gaps) and gaps[-1] + 1 < picture.height else 0
        picture = picture.crop((0, top, picture.width, picture.height))
    sheet = Image.new("RGBA", picture.size, (*PICTURE_BACKGROUND, 255))
    sheet.alpha_composite(picture)
    sheet.thumbnail((1600, 1600), Image.Resampling.LANCZOS)
    return sheet.convert("RGB")


def _embed(picture: Image.Image) -> str:
    """A picture as a data URL, small enough that all make a few megabytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _broken(path: Path) -> str:
    """Images that could not be read."""
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not rows:
        return ""
    table = _table((name, error) for name, _, error in (row.partition("\t") for row in rows[:MOST_BROKEN]))
    note = f"{len(rows):,} could not be read" + (f"; the first {MOST_BROKEN}:" if len(rows) > MOST_BROKEN else ":")
    return _section("Broken images", f"<p>{note}</p>{table}")


# Curves


@dataclass(frozen=True)
class Axis:
    """Where values lie between the two ends of a chart's side, 0 to 1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: Numbers) -> Numbers:
        """0 at the low end, 1 at the high end."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        places: Numbers = ((np.log10(values) if self.log else values) - low) / (high - low)
        return places

    def label(self, tick: float) -> str:
        """All ticks of an axis with the same number of decimals, unless they are tiny or far apart."""
        step = math.inf if self.log or len(self.ticks) < 2 else self.ticks[1] - self.ticks[0]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if math.isfinite(step) else 4
        return f"{tick:,.{decimals}f}" if decimals < 4 else number(tick) if self.log else scientific(tick)


def axis(values: Numbers, *, parts: int = 4, zero: bool = False, whole: bool = False, tight: bool = False) -> Axis:
    """An axis with round ticks; logarithmic where a few values would squeeze all others (20 times their median).

    Args:
        values: what has to fit on it.
        parts: between ticks, about.
        zero: begin at zero.
        whole: ticks at whole numbers only.
        tight: end at the highest value rather than at a tick.
    """
    low, high = float(values.min()), float(values.max())
    if not tight and low > 0 and high > 20 * float(np.median(values)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = range(first, last + 1, math.ceil((last - first) / 5))
        return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in powers), log=True)
    low = min(low, 0.0) if zero else low
    if high <= low:
        low, high = (
            (low, low + (abs(low) or 1.0)) if zero else (low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2)
        )
    rough = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
    return Axis(ticks[0], high, tuple(t for t in ticks if t <= high)) if tight else Axis(ticks[0], ticks[-1], ticks)


def _curves(lines: Sequence[Mapping[str, float]]) -> str:
    """The loss in full width, the rest in small multiples, all over the same steps."""
    if not lines:
        return ""
    steps = axis(
        np.array([line["step"] for line in lines], dtype=np.float64), parts=5, zero=True, whole=True, tight=True
    )
    loss, held_out = curve(lines, "loss"), curve(lines, "val_loss")
    average = Curve(loss.step, loss.epoch, smooth(loss.value))
    series = [("training", "raw", loss), ("moving average", "main", average), ("held out", "held-out", held_out)]
    charts = [_chart("Loss", series, steps, parts=6)]
    for title, key, zero in (
        ("Learning rate", "lr", True),
        ("Weight decay", "weight_decay", True),
        ("Gradient norm", "grad_norm", True),
        ("Images/s", "images_per_second", True),
    ):
        charts.append(_chart(title, [("", "main thin", curve(lines, key))], steps, zero=zero))
    return _section("Curves", f"<p>over training steps</p><div class=charts>{''.join(charts)}</div>")


def _chart(
    title: str, series: Sequence[tuple[str, str, Curve]], steps: Axis, *, parts: int = 4, zero: bool = False
) -> str:
    """A chart of series (label, CSS classes, curve); nothing if all are empty."""
    series = [(label, style, curve) for label, style, curve in series if len(curve)]
    if not series:
        return ""
    heights = axis(np.concatenate([curve.value for _, _, curve in series]), parts=parts, zero=zero)
    legend, lines, data = [], [], []
    for label, style, full in series:
        shown = full.at(thin(full.value))
        points = " ".join(
            f"{x:.1f},{y:.1f}"
            for x, y in zip(1000 * steps.place(shown.step), 1000 - 1000 * heights.place(shown.value), strict=True)
        )
        if len(shown) == 1:  # a line of no length is a dot, one without a second point is nothing
            points = f"{points} {points}"
        lines.append(f'<polyline class="{style}" points="{points}"/>')
        if "held-out" in style:
            dots = " ".join(f"M{point}h0" for point in points.split())
            lines.append(f'<path class="{style} dots" d="{dots}"/>')
        legend.append(
            f'<li class="{style}">{f"<i></i>{label} " if label else ""}<b>{number(float(full.value[-1]))}</b></li>'
        )
        data.append([[float(f"{v:.6g}") for v in column] for column in (shown.step, shown.epoch, shown.value)])
    value = series[-1][2].value if len(series) == 1 else series[min(1, len(series) - 1)][2].value
    summary = (
        f"{title} over {series[0][2].step[-1]:,.0f} steps: from {number(float(value[0]))} to "
        f"{number(float(value[-1]))}, lowest {number(float(value.min()))}, highest {number(float(value.max()))}"
    )
    rows = list(zip(1 - heights.place(np.array(heights.ticks)), map(heights.label, heights.ticks), strict=True))
    columns = list(zip(steps.place(np.array(steps.ticks)), map(steps.label, steps.ticks), strict=True))
    row_labels = "".join(f'<span style="top:{place:.2%}">{label}</span>' for place, label in rows)
    column_labels = "".join(f'<span style="left:{place:.2%}">{label}</span>' for place, label in columns)
    grid = " ".join(f"M0,{1000 * place:.1f}H1000" for place, _ in rows)
    return (
        f"<figure class=chart><figcaption><h3>{title}{' (logarithmic)' if heights.log else ''}</h3>"
        f"<ul>{''.join(legend)}</ul></figcaption>"
        f"<div class=frame><div class=rows aria-hidden=true>{row_labels}</div>"
        f'<div class=plot tabindex=0 role=img aria-label="{summary}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio=none aria-hidden=true><path class=grid d="{grid}"/>'
        f"{''.join(lines)}</svg></div>"
        f"<div class=columns aria-hidden=true>{column_labels}</div></div>"
        f"<script type=application/json>{json.dumps(data, separators=(',', ':'))}</script></figure>"
    )
