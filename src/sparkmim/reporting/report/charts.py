"""Charts of a run, as SVG of 1000 by 1000 units stretched to the page.

`script.js` adds the read-out, taking positions from the curves' points; `style.css` sets sizes and colors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from ...utils.text import counted
from .axes import Axis, axis
from .curves import Curve, curve, smooth, thin
from .text import number


def charts(lines: Sequence[Mapping[str, float]]) -> str:
    """Return all charts over the same steps: the loss in full width, the others small."""
    if not lines:
        return ""
    steps = axis(
        np.array([line["step"] for line in lines], dtype=np.float64), parts=5, zero=True, whole=True, tight=True
    )
    loss, held_out = curve(lines, "loss"), curve(lines, "val_loss")
    average = Curve(loss.step, loss.epoch, smooth(loss.value))
    series = [("training", "raw", loss), ("moving average", "main", average), ("held out", "held-out", held_out)]
    drawn = [chart("Loss", series, steps, parts=6)]
    accuracy = [
        ("top-1", "held-out", curve(lines, "val_top1")),
        ("mean per class", "main thin", curve(lines, "val_mean_per_class")),
    ]
    drawn.append(chart("Validation accuracy", accuracy, steps))
    segmented = [
        ("mean IoU", "held-out", curve(lines, "val_miou")),
        ("mean Dice", "main thin", curve(lines, "val_dice")),
    ]
    drawn.append(chart("Validation scores", segmented, steps))
    detected = [
        ("mAP", "held-out", curve(lines, "val_map")),
        ("mAP50", "main thin", curve(lines, "val_map50")),
        ("mask mAP", "main", curve(lines, "val_mask_map")),
    ]
    drawn.append(chart("Average precision of validation", detected, steps, zero=True))
    neighbours = [
        ("top-1", "held-out", curve(lines, "knn_top1")),
        ("mean per class", "main thin", curve(lines, "knn_mean_per_class")),
    ]
    drawn.append(chart("k-NN accuracy", neighbours, steps))
    for title, key, zero in (
        ("Learning rate", "lr", True),
        ("Weight decay", "weight_decay", True),
        ("Gradient norm", "grad_norm", True),
        ("Images/s", "images_per_second", True),
    ):
        drawn.append(chart(title, [("", "main thin", curve(lines, key))], steps, zero=zero))
    return f"<p>over training steps</p><div class=charts>{''.join(drawn)}</div>"


def chart(
    title: str, series: Sequence[tuple[str, str, Curve]], steps: Axis, *, parts: int = 4, zero: bool = False
) -> str:
    """Return a chart of series (label, CSS classes, curve); an empty text if all are empty."""
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
        if len(shown) == 1:  # two equal points draw a dot, a single one draws nothing
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
        f"{title} over {counted(int(series[0][2].step[-1]), 'step')}: from {number(float(value[0]))} to "
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
