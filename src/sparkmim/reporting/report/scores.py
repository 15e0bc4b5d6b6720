"""Scores of a fine-tuned classifier: accuracy, classes, confusion matrix and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.text import counted
from .detection import detection_score
from .pictures import picture_in
from .segmentation import segmentation_score
from .tables import confusion_table, mistaken_for, unreadable
from .text import as_html, escaped, name_as_html

SETS = {"validation": "Validation images", "test": "Test images"}


def scores(results: Mapping[str, Any], mistakes: Path) -> str:
    """Return the scores of each set of images.

    Args:
        results: content of `results.json`.
        mistakes: folder of pictures of mistakes, with a subfolder for each set.
    """
    if "evaluation" in results:  # results of k-NN or a linear probe
        return ""
    return "".join(_score(results, name, mistakes / name) for name in SETS if name in results)


def _score(results: Mapping[str, Any], name: str, folder: Path) -> str:
    score = results[name]
    if "miou" in score:
        return segmentation_score(results, score, SETS[name], folder)
    if "map50" in score:
        return detection_score(results, score, SETS[name], folder)
    if "confusion" not in score:
        return _numbers(score, name)
    classes = results["classes"]
    return (
        f"<h3>{SETS[name]}</h3><p><b>{score['top1']:.1%}</b> of {score['images']:,} correct, mean per class "
        f"<b>{score['mean_per_class']:.1%}</b></p>"
        f"{_classes(classes, results['train']['per_class'], score['confusion'])}"
        f"{confusion_table(classes, score['confusion'])}{_mistakes(score['mistakes'], folder)}"
        f"{unreadable(list(score['unreadable'].items()))}"
    )


def _numbers(score: Mapping[str, Any], name: str) -> str:
    """Return the scores of a task other than classification."""
    numbers = {key: value for key, value in score.items() if isinstance(value, float)}
    items = "".join(f"<dt>{as_html(key)}</dt><dd>{value:.4g}</dd>" for key, value in numbers.items())
    lost = unreadable(list(score["unreadable"].items()))
    return f"<h3>{SETS[name]}</h3><p>{counted(score['images'], 'image')}</p><dl>{items}</dl>{lost}"


def _classes(classes: Sequence[str], trained: Sequence[int], confusion: Sequence[Sequence[int]]) -> str:
    """Return a table with recall, precision and the most frequent confusion of each class."""
    heads = ("class", "training images", "images", "recall", "precision", "most often predicted instead")
    rows = []
    for i, name in enumerate(classes):
        total, named = sum(confusion[i]), sum(row[i] for row in confusion)
        cells = (
            f"{trained[i]:,}",
            f"{total:,}",
            f"{confusion[i][i] / total:.1%}" if total else "",
            f"{confusion[i][i] / named:.1%}" if named else "",
            mistaken_for(classes, confusion[i], i),
        )
        rows.append(f"<tr><th scope=row>{escaped(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    return f"<table class=classes><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _mistakes(mistakes: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Return pictures of the most confident mistakes."""
    figures = []
    for mistake in mistakes:
        picture = picture_in(folder, mistake["picture"])
        if picture is not None:
            text = f"{escaped(mistake['class'])}, predicted {escaped(mistake['predicted'])}"
            figures.append(
                f'<figure><img alt="{text}" src="{picture}"><figcaption>{text} ({mistake["probability"]:.0%})'
                f"<br><small>{name_as_html(mistake['image'])}</small></figcaption></figure>"
            )
    return f"<p>Most confident mistakes:</p><div class=mistakes>{''.join(figures)}</div>" if figures else ""
