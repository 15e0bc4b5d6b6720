"""Tables of names and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...utils.text import counted
from .text import as_html, escaped, name_as_html

MOST_UNREADABLE = 20
"""Maximum number of images named."""

MOST_CLASSES = 40
"""Classes of the largest confusion matrix that is shown."""


def table(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table with a row for each name and value."""
    cells = "".join(f"<tr><th scope=row>{as_html(k)}</th><td>{as_html(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>" if cells else ""


def unreadable(images: Sequence[tuple[str, str]]) -> str:
    """Return a table of images that could not be read, with their errors."""
    if not images:
        return ""
    more = f"; the first {MOST_UNREADABLE}" if len(images) > MOST_UNREADABLE else ""
    count = counted(len(images), "image")
    rows = "".join(
        f"<tr><th scope=row>{name_as_html(name)}</th><td>{as_html(error)}</td></tr>"
        for name, error in images[:MOST_UNREADABLE]
    )
    return f"<p>{count} could not be read{more}:</p><table>{rows}</table>"


def confusion_table(classes: Sequence[str], confusion: Sequence[Sequence[int]], *, percent: bool = False) -> str:
    """Return a confusion matrix, each cell shaded by its share of the row; nothing for too many classes.

    Args:
        classes: their names.
        confusion: how many of each class (row) are predicted as each class (column).
        percent: show shares of the row, not numbers.
    """
    if len(classes) > MOST_CLASSES:
        return ""
    head = "".join(f"<th scope=col><span>{escaped(name)}</span></th>" for name in classes)
    rows = []
    for i, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        total = max(1, sum(row))
        texts = [(f"{100 * count / total:.1f}" if percent else str(count)) if count else "" for count in row]
        cells = "".join(
            f'<td class={"right" if i == j else "wrong"} style="--share:{count / total:.3f}">{text}</td>'
            for j, (count, text) in enumerate(zip(row, texts, strict=True))
        )
        rows.append(f"<tr><th scope=row>{escaped(name)}</th>{cells}</tr>")
    return (
        f"<p>Confusion matrix{' in percent' * percent}: rows are classes, columns are predictions.</p>"
        f"<div class=wide><table class=confusion><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def mistaken_for(classes: Sequence[str], row: Sequence[int], own: int) -> str:
    """Return the class that another one is most often predicted as, with its share; nothing without mistakes.

    Args:
        classes: their names.
        row: of the confusion matrix.
        own: number of the row's class.
    """
    count, other = max(((count, j) for j, count in enumerate(row) if j != own), default=(0, 0))
    return f"{escaped(classes[other])} ({count / sum(row):.0%})" if count else ""
