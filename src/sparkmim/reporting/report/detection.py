"""Scores of a detection: average precisions, a table of the classes, precision by recall, and images with mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .pictures import figures_of
from .tables import unreadable
from .text import escaped

HEADS = (
    ("class", ""),
    ("training objects", ""),
    ("objects", "those that are ignored (difficult, crowds) left out"),
    ("AP", "average precision, mean over overlaps of 0.5 to 0.95"),
    ("AP50", "average precision at an overlap of 0.5"),
    ("found", "share of the objects that are found at the threshold, at an overlap of 0.5"),
    ("right", "share of the detections at the threshold that are an object of the class"),
    ("missed", "objects that are not found"),
    ("false alarms", "detections that are no object of the class"),
)

WIDTH, HEIGHT, LEFT, BOTTOM = 560, 300, 44, 34
"""Of the curves, and of their axes' labels, in units of the drawing."""

MOST_CURVES = 12
"""Classes whose curves are drawn, those with most objects."""


def detection_score(results: Mapping[str, Any], score: Mapping[str, Any], title: str, folder: Path) -> str:
    """Return the scores of a set of images.

    Args:
        results: content of `results.json`.
        score: of the set.
        title: of the set.
        folder: of its pictures.
    """
    names = [category["name"] for category in results["categories"]]
    trained = results["train"]["per_class"]
    parts = [f"<h3>{title}</h3>"]
    kinds = [("", "boxes"), *([("mask_", "masks")] if "mask_map" in score else [])]
    for prefix, what in kinds:
        own = {key: score[f"{prefix}{key}"] for key in score if f"{prefix}{key}" in score}
        of = f" ({what})" if len(kinds) > 1 else ""
        parts.append(
            f"<p>{score['images']:,} images{of}: mAP <b>{own['map']:.1%}</b>, mAP50 <b>{own['map50']:.1%}</b>, "
            f"mAP75 {own['map75']:.1%}; small {_percent(own['map_small'])}, medium {_percent(own['map_medium'])}, "
            f"large {_percent(own['map_large'])}. At the threshold of {own['threshold']:.2f}, where F1 is highest, "
            f"{own['sensitivity']:.1%} of the objects are found, and {own['precision']:.1%} of the detections are "
            f"right.</p>{_classes(names, trained, own)}{_curves(names, own)}"
        )
    return "".join(parts) + _worst(score["worst"], folder) + unreadable(list(score["unreadable"].items()))


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _classes(names: Sequence[str], trained: Sequence[int], score: Mapping[str, Any]) -> str:
    rows = []
    for i, name in enumerate(names):
        hits, alarms, objects = score["found"][i], score["false"][i], score["objects"][i]
        cells = [
            f"{trained[i]:,}",
            f"{objects:,}",
            *(
                "" if score[key][i] is None else f"{score[key][i]:.1%}"
                for key in ("map_of_classes", "map50_of_classes")
            ),
            f"{hits / objects:.1%}" if objects else "",
            f"{hits / (hits + alarms):.1%}" if hits + alarms else "",
            f"{objects - hits:,}",
            f"{alarms:,}",
        ]
        rows.append(f"<tr><th scope=row>{escaped(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope=col title="{note}">{text}</th>' for text, note in HEADS)
    return f"<table class=classes><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(names: Sequence[str], score: Mapping[str, Any]) -> str:
    """Return the curves of precision by recall, as SVG."""
    drawn = [i for i, curve in enumerate(score["curves"]) if curve is not None]
    drawn = sorted(sorted(drawn, key=lambda i: -score["objects"][i])[:MOST_CURVES])
    if not drawn:
        return ""
    wide, tall = WIDTH - LEFT - 8, HEIGHT - BOTTOM - 8
    grid, labels = [], []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = LEFT + share * wide, 8 + (1 - share) * tall
        grid.append(f"M{LEFT},{y:.1f}H{LEFT + wide}M{x:.1f},8V{8 + tall}")
        labels.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
        labels.append(f'<text x="{x:.1f}" y="{8 + tall + 15}" text-anchor="middle">{share:g}</text>')
    lines, legend = [], []
    for place, i in enumerate(drawn):
        color = f"hsl({(210 + 137.5 * place) % 360:.0f} 70% 48%)"
        curve = score["curves"][i]
        points = " ".join(
            f"{LEFT + wide * k / (len(curve) - 1):.1f},{8 + (1 - value) * tall:.1f}" for k, value in enumerate(curve)
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        legend.append(
            f'<li><i style="color:{color}"></i>{escaped(names[i])} <b>{score["map50_of_classes"][i]:.1%}</b></li>'
        )
    return (
        "<figure class=recalls><figcaption><h3>Precision by recall, at an overlap of 0.5</h3>"
        f"<ul>{''.join(legend)}</ul></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="precision by recall of each class">'
        f'<path class=grid d="{"".join(grid)}"/>{"".join(labels)}'
        f'<text x="{LEFT + wide / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">recall</text>'
        f'<text transform="translate(11 {8 + tall / 2:.0f}) rotate(-90)" text-anchor="middle">precision</text>'
        f"{''.join(lines)}</svg></figure>"
    )


def _worst(worst: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return pictures of the images with most mistakes."""
    figures = figures_of(
        worst,
        folder,
        lambda one: f"{one['hits']} found, {one['missed']} missed, {one['false']} false alarms",
        "hits, misses and false alarms",
    )
    if not figures:
        return ""
    key = "".join(
        f'<i style="display:inline-block;width:.8em;height:.8em;margin:0 .4em 0 1em;background:{color}"></i>{text}'
        for color, text in (("#34c759", "found"), ("#ffcc00", "missed object"), ("#ff3b30", "false alarm"))
    )
    return f"<p>Images with most mistakes at the threshold:{key}</p><div class='pictures boxed'>{figures}</div>"
