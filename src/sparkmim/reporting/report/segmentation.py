"""Scores of a segmentation: a table of the classes, the confusion matrix of pixels, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .pictures import embed
from .tables import unreadable
from .text import escaped, name_as_html

MOST_CLASSES = 40
"""Classes of the largest confusion matrix that is shown."""

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
        f"<h3>{title}</h3><p>{score['images']:,} images: mean IoU <b>{score['miou']:.1%}</b>, mean Dice{aside} "
        f"<b>{dice}</b>, per image <b>{per_image}</b>; {score['accuracy']:.1%} of the "
        f"pixels</p>{_classes(results, score)}{_confusion(classes, score['pixels'])}{_worst(score['worst'], folder)}"
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
        others = [(count, j) for j, count in enumerate(pixels[i]) if j != i and count]
        most = max(others, default=None)
        columns = ("iou", "dice_of_classes", "dice_per_image_of_classes", "recall", "precision")
        cells = [
            f"{own / total:.2%}",
            *("" if score[key][i] is None else f"{score[key][i]:.1%}" for key in columns),
            "" if most is None else f"{escaped(classes[most[1]])} ({most[0] / own:.0%})",
        ]
        color = "#{:02x}{:02x}{:02x}".format(*results["colors"][i])
        mark = f'<i style="display:inline-block;width:.8em;height:.8em;margin-right:.5em;background:{color}"></i>'
        rows.append(f"<tr><th scope=row>{mark}{escaped(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope=col title="{note}">{text}</th>' for text, note in HEADS)
    return f"<table class=classes><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _confusion(classes: Sequence[str], pixels: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix in percent of each row, each cell shaded by it."""
    if len(classes) > MOST_CLASSES:
        return ""
    head = "".join(f"<th scope=col><span>{escaped(name)}</span></th>" for name in classes)
    rows = []
    for i, (name, row) in enumerate(zip(classes, pixels, strict=True)):
        total = max(1, sum(row))
        cells = "".join(
            f'<td class={"right" if i == j else "wrong"} style="--share:{count / total:.3f}">'
            f"{f'{100 * count / total:.1f}' if count else ''}</td>"
            for j, count in enumerate(row)
        )
        rows.append(f"<tr><th scope=row>{escaped(name)}</th>{cells}</tr>")
    return (
        "<p>Confusion matrix in percent: rows are classes, columns are predictions.</p>"
        f"<div class=wide><table class=confusion><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _worst(worst: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return pictures of the images of the lowest mean Dice."""
    figures = []
    for one in worst:
        path = folder / Path(one["picture"]).name  # never outside of it
        if path.is_file() and not path.is_symlink():
            with Image.open(path) as file:
                picture = embed(file.convert("RGB"))
            figures.append(
                f"<figure><figcaption>mean Dice {one['dice']:.1%} <small>{name_as_html(one['image'])}</small>"
                f'</figcaption><img alt="image, truth, prediction and errors" src="{picture}"></figure>'
            )
    return f"<p>Images of the lowest mean Dice:</p><div class=pictures>{''.join(figures)}</div>" if figures else ""
