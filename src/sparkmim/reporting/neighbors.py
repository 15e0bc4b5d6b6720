"""A page of images and their nearest neighbors: rows of pictures, loaded from nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image

from ..utils.text import printable
from .report.pictures import embed

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #1b1d21 }
table { border-spacing: 6px } td { vertical-align: top; width: 132px } img { display: block; max-width: 128px }
td:first-child { padding-right: 14px; border-right: 2px solid #1b1d21 }
small { display: block; max-width: 128px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
small { color: #5b616b }
@media (prefers-color-scheme: dark) {
  body { background: #1b1d21; color: #e6e8eb } td:first-child { border-color: #e6e8eb } small { color: #9aa1ab }
}
"""


class Pictured(NamedTuple):
    """An image of a row.

    Attributes:
        picture: of it.
        name: of it.
        note: below the name; its similarity to the query.
    """

    picture: Image.Image
    name: str
    note: str = ""


def neighbors_page(title: str, about: str, rows: Sequence[Sequence[Pictured]]) -> str:
    """Return a page with a row for each query: it, and its neighbors, the nearest first.

    Args:
        title: of the page.
        about: a sentence below it.
        rows: of at least the query each.
    """
    cells = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1><p>{escape(about)}</p>\n<table>{cells}</table></html>\n"
    )


def _cell(shown: Pictured) -> str:
    name = escape(printable(shown.name))
    note = f"<small>{escape(shown.note)}</small>" if shown.note else ""
    return f'<td><img src="{embed(shown.picture)}" alt="{name}"><small title="{name}">{name}</small>{note}</td>'
