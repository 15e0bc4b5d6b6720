"""Scores of a segmentation: a table of the classes, the confusion matrix of pixels, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.text import counted
from .pictures import figures_of
from .tables import confusion_table, mistaken_for, unreadable
from .text import escaped

HEADS = (
    ("class", ""),
    ("share of the pixels", ""),
    ("IoU", "intersection over union of all images' pixels together"),
    ("Dice", "of all images' pixels together"),
    ("Dice per image", "mean over the images that show the class or are predicted to"),
    ("recall", "share of the class's pixels that are found"),
    ("precision", "share of the pixels predicted as the class that are of it"),
    ("most often predicted instead", ""),
)


def segmentation_score(results: Mapping[str, Any], score: Mapping[str, Any], title: str, folder: Path) -> str:
    """Return the scores of a set of images.

    Args:
        results: content of `results.json`.
        score: of the set.
        title: of the set.
        folder: of its pictures.
    """
    classes, background = results["classes"], results["background"]
    dice, per_image = _share(score["dice"]), _share(score["dice_per_image"])
    aside = "" if background is None else f" (without {escaped(classes[background])})"
    return (
        f"<h3>{title}</h3><p>{counted(score['images'], 'image')}: "
        f"mean IoU <b>{score['miou']:.1%}</b>, mean Dice{aside} <b>{dice}</b>, per image <b>{per_image}</b>; "
        f"{score['accuracy']:.1%} of the pixels are right</p>{_classes(results, score)}"
        f"{confusion_table(classes, score['pixels'], percent=True)}{_worst(score['worst'], folder)}"
        f"{unreadable(list(score['unreadable'].items()))}"
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _classes(results: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """Return a table with the scores of each class."""
    classes, pixels = results["classes"], score["pixels"]
    total = max(1, sum(map(sum, pixels)))
    rows = []
    for i, name in enumerate(classes):
        own = sum(pixels[i])
        columns = ("iou", "dice_of_classes", "dice_per_image_of_classes", "recall", "precision")
        cells = [
            f"{own / total:.2%}",
            *("" if score[key][i] is None else f"{score[key][i]:.1%}" for key in columns),
            mistaken_for(classes, pixels[i], i),
        ]
        color = "#{:02x}{:02x}{:02x}".format(*results["colors"][i])
        mark = f'<i style="display:inline-block;width:.8em;height:.8em;margin-right:.5em;background:{color}"></i>'
        rows.append(f"<tr><th scope=row>{mark}{escaped(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope=col title="{note}">{text}</th>' for text, note in HEADS)
    return f"<table class=classes><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _worst(worst: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return pictures of the images of the lowest mean Dice."""
    figures = figures_of(
        worst, folder, lambda one: f"mean Dice {one['dice']:.1%}", "image, truth, prediction and errors"
    )
    return f"<p>Images of the lowest mean Dice:</p><div class=pictures>{figures}</div>" if figures else ""
